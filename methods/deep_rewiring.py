"""DEEP R, deep rewiring: a connection has a sign for life; where a step would change it, another takes its place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dstbench.methods.checks import valid
from dstbench.methods.dynamic import chance, grow
from dstbench.methods.static import Static
from dstbench.suite.layer import Layer


@dataclass
class DeepRewiring(Static):
    """After every step a weight whose sign has changed goes, and one of its Layer that is off grows, with random sign.

    The optimiser's step is followed by the rest of the random walk: every active weight moves towards zero by the
    learning rate times `alpha`, and by Gaussian noise of standard deviation sqrt(2 lr `temperature`). A weight grows at
    zero; the sign that it must keep is that of its zero.

    Passes: every pass reads the mask and computes the gradient on it alone.
    FLOPs: 3 f_S a step; the noise, one number an active weight, is charged neither by the paper nor here.
    Defaults: `alpha` 1e-4 and `temperature` 1e-11 are of the size of the paper's on MNIST at a rate of 0.05, where the
        noise has a deviation of 1e-6 and does next to nothing; `init` and erk as for this suite's other dynamic
        methods.
    Ambiguous: the number of active weights is constant in each Layer (the paper: in the network, connectivity being
        given by layer in its experiments). The paper's step is plain SGD; here it is the recipe's, with its momentum
        and weight decay. A weight of exactly zero keeps its place and its sign, as in the paper; its code starts
        what grows at 1e-12 and drops zeros. What goes may come back at once, with a new sign.
    Reference: Bellec et al., arXiv 1711.05136, algorithm 1.
    """

    alpha: float = 1e-4
    temperature: float = 1e-11

    name: ClassVar[str] = "deep_rewiring"
    family: ClassVar[str] = "dynamic"
    citation: ClassVar[str] = "Bellec et al., ICLR 2018, arXiv 1711.05136"

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, alpha=(0, math.inf), temperature=(0, math.inf))

    def step(self, t: int) -> None:
        signs = [layer.weight.signbit() for layer in self.layers]
        super().step(t)
        for layer, negative in zip(self.layers, signs, strict=True):
            self.walk(layer, negative, self.lr(t))

    def walk(self, layer: Layer, negative: Tensor, lr: float) -> None:
        """The rest of the step, then the exchange of weights that are not `negative` as before."""
        weight, mask = layer.weight, layer.forward_mask
        assert mask is not None, "masks are set in setup"
        noise = torch.zeros_like(weight)
        noise[mask] = torch.randn(layer.nnz(), generator=self.rng, dtype=weight.dtype).to(weight.device)
        inwards = torch.where(negative, 1.0, -1.0).to(weight.dtype)
        weight = weight + mask * (lr * self.alpha * inwards + math.sqrt(2 * lr * self.temperature) * noise)
        weight = torch.where(weight == 0, -0.0 * inwards, weight)  # a sum that is zero has lost the sign
        layer.assign(weight)
        kept = mask & (weight.signbit() == negative)
        if gone := layer.nnz() - int(kept.count_nonzero()):
            layer.activate(kept)
            zeros = torch.copysign(torch.zeros_like(weight), chance(layer, self.rng) - 0.5)
            layer.activate(grow(kept, chance(layer, self.rng), gone), zeros)
