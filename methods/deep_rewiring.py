"""DEEP R, deep rewiring: a connection has a sign for good; where a step would change it, another takes its place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dstbench.methods.allocate import active
from dstbench.methods.checks import valid
from dstbench.methods.dynamic import chance, grow
from dstbench.methods.static import Static
from dstbench.suite.layer import Layer
from dstbench.suite.method import Gradients

SIGNS = ("fixed", "drawn")


@dataclass
class DeepRewiring(Static):
    """After every step a weight whose sign has changed goes, and one of its Layer that is off grows, at random.

    The optimiser's step is followed by the rest of the random walk: every active weight moves towards zero by the
    learning rate times `alpha`, and by Gaussian noise of standard deviation sqrt(2 lr `temperature`). A weight grows at
    zero; the sign that it must keep is that of its zero. Signs are those of the first weights and random elsewhere:
    with `signs` "fixed" each position has one for the whole run, with "drawn" one that is drawn when it grows.

    Passes: every pass reads the mask and computes the gradient on it alone.
    FLOPs: 3 f_S a step; the noise, one number an active weight, is charged neither by the paper nor here.
    Defaults: `alpha` 1e-4 and `temperature` 1e-11 are of the size of the paper's on MNIST at a rate of 0.05, where the
        noise has a deviation of 1e-6 and does next to nothing; `signs` "fixed" as in the authors' scripts with dense
        matrices; `init` and erk as for this suite's other dynamic methods.
    Ambiguous: the number of active weights is constant in each Layer (the paper: in the network, connectivity being
        given by layer in its experiments). The paper's step is plain SGD; here it is the recipe's, with its momentum
        and weight decay. A weight of exactly zero keeps its place and its sign, as in the paper; its code starts what
        grows at 1e-12 and drops zeros. What goes may come back at once. The authors' script with sparse matrices, which
        has no place to hold signs of what is off, draws them.
    Reference: Bellec et al., arXiv 1711.05136, algorithm 1.
    """

    alpha: float = 1e-4
    temperature: float = 1e-11
    signs: str = "fixed"

    name: ClassVar[str] = "deep_rewiring"
    family: ClassVar[str] = "dynamic"
    citation: ClassVar[str] = "Bellec et al., ICLR 2018, arXiv 1711.05136"
    version: ClassVar[int] = 2
    keeps: ClassVar[dict[str, str]] = {"negative": "the sign of every position, where signs are fixed"}

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, alpha=(0, math.inf), temperature=(0, math.inf), signs=SIGNS)

    def setup(self, gradients: Gradients) -> None:
        super().setup(gradients)
        if self.signs == "fixed":
            self.memory |= {f"negative.{layer.name}": negatives(layer, self.rng) for layer in self.layers}

    def step(self, t: int) -> None:
        before = [layer.weight.signbit() for layer in self.layers]
        super().step(t)
        for layer, negative in zip(self.layers, before, strict=True):
            self.walk(layer, negative, self.lr(t))

    def walk(self, layer: Layer, negative: Tensor, lr: float) -> None:
        """The rest of the step, then the exchange of weights that are not `negative` as before."""
        layer.assign(walked(layer, negative, lr * self.alpha, math.sqrt(2 * lr * self.temperature), self.rng))
        kept = active(layer) & (layer.weight.signbit() == negative)
        if gone := layer.nnz() - int(kept.count_nonzero()):
            layer.activate(kept)
            grown, fixed = grow(kept, chance(layer, self.rng), gone), self.memory.get(f"negative.{layer.name}")
            layer.activate(grown, zeros(layer, negatives(layer, self.rng) if fixed is None else fixed))


def walked(layer: Layer, negative: Tensor, pull: float, deviation: float, rng: torch.Generator) -> Tensor:
    """The weight of a Layer after all that is active has moved by `pull` towards zero, and by noise."""
    weight, mask = layer.weight, active(layer)
    noise = torch.zeros_like(weight)
    noise[mask] = torch.randn(layer.nnz(), generator=rng, dtype=weight.dtype).to(weight.device)
    inwards = torch.where(negative, 1.0, -1.0).to(weight.dtype)
    weight = weight + mask * (pull * inwards + deviation * noise)
    return torch.where(weight == 0, -0.0 * inwards, weight)  # a sum that is zero has lost the sign


def negatives(layer: Layer, rng: torch.Generator) -> Tensor:
    """Which positions of a Layer are negative: active ones as their weights are, the others at random."""
    drawn = chance(layer, rng) < 0.5
    return torch.where(active(layer), layer.weight.signbit(), drawn)


def zeros(layer: Layer, negative: Tensor) -> Tensor:
    """Zeros of these signs."""
    return torch.where(negative, -0.0, 0.0).to(layer.weight.dtype)
