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

    With n the target of a Layer, an update leaves n - `mutation` n weights and grows others, from zero, up to n +
    `soft` n. Both shares are halved at 90/160 of the run and zero from 120/160 on, where the last update falls even if
    no period ends there. EM has `mutation` alone; EM&S has `soft` alone and trains above the target until the last
    update. Least important are the weights of smallest |w| + `lam_grad` |g|; just pruned, they may grow again.
    Passes: every pass reads the mask, which is larger than the target while `soft` lasts; the gradient is on it alone.
    FLOPs: 3 f_S a step at the density of that step, soft bound included.
    Defaults: `mutation` 0.2 of the active weights (2 % of all at 90 % sparsity), `soft` 0.5 of the preset em_s
        (densities .15, .125, .10 at 90 %), their steps and `lam_grad` 0 from the authors' code; `period` (theirs is 5
        epochs) and erk as for this suite's other dynamic methods; `init` by valid (docs/tuning.md).
    Ambiguous: the README gives densities .12, .11, .10 to EM&S, the scripts those above. The code updates at the first
        batch of an epoch, epoch 0 included, and steps as well: here an update follows the optimiser's step, the first
        one is part of `setup`, after random initial weights were pruned by magnitude. The code takes weights that are
        zero for inactive and prunes ties together; here a grown weight is active at once, and counts are exact. Its
        densities are uniform with the first and the last layer dense; here the task says which layers are, and uniform
        densities over all of them starve small layers (`allocation` "uniform" gives them).
        It never clears momentum off the mask, and its |g| is zero by the time it is read, so that `lam_grad` does
        nothing there; here it does.
    Reference: Yuan et al., arXiv 2110.14032, section 3.
    """

    init: str = "dense"
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
        valid(self, period=(0, math.inf), mutation=(0, 1), soft=(0, math.inf), lam_grad=(0, math.inf))

    def setup(self, gradients: Gradients) -> None:
        target = self.targets()
        begin_sparse(self.layers, [top(layer.weight.abs(), target[layer.name]) for layer in self.layers], self.init)
        self.update(0, magnitude)

    def targets(self) -> dict[str, int]:
        """How many weights of each Layer are active in the end."""
        return counts(self.layers, allocate(self.allocation, self.layers, 1 - self.sparsity))

    def switch(self, share: float) -> int:
        """The step at a share of the run."""
        return int(share * (self.recipe.steps - 1))

    def strength(self, t: int) -> float:
        """What is left at step t of `mutation` and `soft`."""
        return 0.0 if t >= self.switch(ENDED) else 0.5 if t >= self.switch(HALVED) else 1.0

    def step(self, t: int) -> None:
        super().step(t)
        last = self.switch(ENDED)
        if t == last or schedules.due(t, self.period or self.recipe.period, last):
            self.update(t, self.importance)

    def update(self, t: int, importance: Callable[[Layer], Tensor]) -> None:
        """Prune every Layer by importance, then grow at random."""
        strength = self.strength(t)
        for layer, n in zip(self.layers, self.targets().values(), strict=True):
            keep = n - round(strength * self.mutation * n)
            full = min(layer.numel, n + round(strength * self.soft * n))
            kept = top(importance(layer), keep)
            layer.activate(kept)
            layer.activate(grow(kept, chance(layer, self.rng), full - keep))

    def importance(self, layer: Layer) -> Tensor:
        """The score by which weights stay."""
        return magnitude(layer) + self.lam_grad * layer.grad.abs() if self.lam_grad else magnitude(layer)
