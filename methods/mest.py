"""MEST, memory-economic sparse training: elastic mutation (EM), and with a soft memory bound (EM&S)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dstbench.methods import schedules
from dstbench.methods.allocate import allocate, begin_sparse, counts, top
from dstbench.methods.checks import valid
from dstbench.methods.dynamic import chance, grow
from dstbench.methods.scores import magnitude
from dstbench.methods.static import Static
from dstbench.suite.layer import Layer
from dstbench.suite.method import Gradients

HALVED, ENDED = 90 / 160, 120 / 160  # shares of the run


@dataclass
class MEST(Static):
    """Every `period` steps (0: the recipe's) each Layer is pruned and grows at random, at first beyond its target.

    With n the target of a Layer, an update leaves n - `mutation` n weights and grows others, from zero, up to the
    target of a network whose density is higher by `soft`. Both shares are halved at 90/160 of the run and zero from
    120/160 on, where the last update falls even if no period ends there. EM has `mutation` alone; EM&S has `soft` alone
    and trains above the target until the last update. Least important are the weights of smallest |w| + `lam_grad` |g|;
    just pruned, they may grow again.
    Passes: every pass reads the mask, which is larger than the target while `soft` lasts; the gradient is on it alone.
    FLOPs: 3 f_S a step at the density of that step, soft bound included.
    Defaults: from the authors' scripts, which have 90 and 95 %: `mutation` 0.2 of the active weights (sparsities .92,
        .91, .90 and .96, .955, .95 after pruning), `soft` 0.05 of all weights in the preset em_s (densities .15, .125,
        .10 and .10, .075, .05), and their steps; `lam_grad` 0 from the code; `period` (theirs is 5 epochs) and erk as
        for this suite's other dynamic methods; `init` by valid (docs/tuning.md).
    Ambiguous: the README gives densities .12, .11, .10 to EM&S, the scripts those above; at other sparsities than
        theirs `soft` goes on as it is, and so grows beside the target. The code updates before an epoch, the first
        included: here after every `period`-th step, and the first one is part of `setup`, after random initial weights
        were pruned by magnitude. Numbers dropped are rounded down, as by the code's percentile. The code takes weights
        that are zero for inactive and prunes ties together; here a grown weight is active at once, and counts are
        exact. Its densities are uniform with the first and the last layer dense; here the task says which layers are,
        and uniform densities over all of them starve small layers (`allocation` "uniform" gives them). It never clears
        momentum off the mask, and its |g| is zero by the time it is read, so that `lam_grad` does nothing there; here
        it does.
    Reference: Yuan et al., arXiv 2110.14032, section 3.
    """

    period: int = 0
    mutation: float = 0.2
    soft: float = 0.0
    lam_grad: float = 0.0

    name: ClassVar[str] = "mest"
    family: ClassVar[str] = "dynamic"
    citation: ClassVar[str] = "Yuan et al., NeurIPS 2021, arXiv 2110.14032"
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, period=(0, math.inf), mutation=(0, 1), soft=(0, 1), lam_grad=(0, math.inf))

    def setup(self, gradients: Gradients) -> None:
        left = {name: self.left(n, self.strength(0)) for name, n in self.targets().items()}
        begin_sparse(self.layers, [top(layer.weight.abs(), left[layer.name]) for layer in self.layers], self.init)
        self.update(0, magnitude)

    def targets(self, above: float = 0.0) -> dict[str, int]:
        """How many weights of each Layer are active at the density of the end, or so far above it."""
        return counts(self.layers, allocate(self.allocation, self.layers, min(1.0, 1 - self.sparsity + above)))

    def switch(self, share: float) -> int:
        """How many steps have been taken at a share of the run."""
        return int(share * (self.recipe.steps - 1)) + 1

    def strength(self, taken: int) -> float:
        """What is left of `mutation` and `soft` after so many steps."""
        return 0.0 if taken >= self.switch(ENDED) else 0.5 if taken >= self.switch(HALVED) else 1.0

    def left(self, n: int, strength: float) -> int:
        """How many of `n` weights an update leaves before it grows others."""
        return n - int(strength * self.mutation * n)

    def step(self, t: int) -> None:
        super().step(t)
        last = self.switch(ENDED)
        if t + 1 == last or schedules.due(t + 1, self.period or self.recipe.period, last):
            self.update(t + 1, self.importance)

    def update(self, taken: int, importance: Callable[[Layer], Tensor]) -> None:
        """Prune every Layer by importance, then grow at random."""
        strength = self.strength(taken)
        target, bound = self.targets(), self.targets(strength * self.soft)
        for layer in self.layers:
            n = target[layer.name]
            keep = self.left(n, strength)
            kept = top(importance(layer), keep)
            layer.activate(kept)
            layer.activate(grow(kept, chance(layer, self.rng), max(n, bound[layer.name]) - keep))

    def importance(self, layer: Layer) -> Tensor:
        """The score by which weights stay."""
        return magnitude(layer) + self.lam_grad * layer.grad.abs() if self.lam_grad else magnitude(layer)
