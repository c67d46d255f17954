"""GSE, guided stochastic exploration: growth by gradient among a few connections that were drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dstbench.methods.allocate import global_top, top
from dstbench.methods.checks import valid
from dstbench.methods.dynamic import SET, chance
from dstbench.methods.scores import magnitude
from dstbench.suite.layer import Layer


@dataclass
class GSE(SET):
    """SET over all Layers together that draws `subset` weights off the mask for each active one, and grows the best.

    The gradient of an update's pass is computed on the mask and on what was drawn; the drawn weights of largest
    gradient grow, from zero, and as many active weights of smallest magnitude go. Every Layer keeps one weight.

    Passes: every pass reads the mask; the gradient is on it too, in the pass of an update also on what was drawn.
    FLOPs: 3 f_S a step, and (2 + 1 + `subset`) f_S in that of an update, where Layers are alike; never a dense
        gradient. Drawing is charged neither by the paper nor here.
    Defaults: `subset` 1 and the uniform distribution are the paper's simplest choice; `alpha` 0.2 and its cosine from
        its code; `stop`, `period`, `init` and erk as for this suite's other dynamic methods.
    Ambiguous: the paper's distributions GraBo and GraEst draw by activations and gradients of neurons, which methods
        are not given here: left out. Its cost is linear in the active weights; here a random number is drawn for every
        weight of a Layer. In the code a step is taken as well: that is `after_step`. It draws with replacement, from
        all positions, active ones too, and takes the gradient on samples drawn for that, 10 a class; here as many as
        `subset` says are drawn, off the mask and each once, and the gradient is that of the step's batch.
    Reference: Heddes et al., arXiv 2401.06898, algorithm 1, and its code.
    """

    alpha: float = 0.2
    subset: float = 1.0

    name: ClassVar[str] = "gse"
    citation: ClassVar[str] = "Heddes et al. 2024, arXiv 2401.06898"

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, subset=(0, math.inf))

    def begin(self, t: int) -> None:
        if not self.due(t):
            return
        for layer in self.layers:
            if (mask := layer.forward_mask) is not None:
                drawn = min(round(self.subset * layer.nnz()), layer.numel - layer.nnz())
                layer.grad_mask = mask | top(chance(layer, self.rng).masked_fill(mask, -math.inf), drawn)

    def update(self, t: int) -> None:
        """Grow the best of what was drawn, drop the smallest of what was active."""
        total = sum(layer.nnz() for layer in self.layers)
        scores = torch.cat([layer.grad.abs().masked_fill(~drawn(layer), -math.inf).flatten() for layer in self.layers])
        most = int((scores > -math.inf).count_nonzero())
        moved = min(self.moved(t, total), most, total - len(self.layers))
        grown = top(scores, moved).split([layer.numel for layer in self.layers])
        kept = global_top([magnitude(layer) for layer in self.layers], total - moved)
        for layer, new, old in zip(self.layers, grown, kept, strict=True):
            layer.activate(old | new.view(layer.shape))
            layer.zero_grad()


def drawn(layer: Layer) -> Tensor:
    """What the pass computed the gradient of beyond what it read, a bool mask."""
    assert layer.forward_mask is not None and layer.grad_mask is not None, "masks are set in setup"
    return layer.grad_mask & ~layer.forward_mask
