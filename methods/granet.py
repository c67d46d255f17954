"""GraNet: gradual magnitude pruning that goes on rewiring what is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dstbench.methods.allocate import allocate, counts, cut, uniform
from dstbench.methods.allocate import start as start_sparse
from dstbench.methods.checks import valid
from dstbench.methods.dynamic import RigL
from dstbench.methods.magnitude import between
from dstbench.methods.schedules import cubic
from dstbench.methods.scores import magnitude
from dstbench.suite.method import Gradients


@dataclass
class GraNet(RigL):
    """RigL on a falling number of weights: every update first prunes by magnitude over all Layers together.

    Random masks of `start_density` (never below the target) are pruned along a cubic curve between the shares `start`
    and `prune_stop` of the run, where the last prune falls even if no period ends there. Every update, before and after
    that, ends with neuro-regeneration: each Layer drops its smallest weights, a share that falls from `alpha` to
    `floor`, and grows as many by the gradient of the pass. Pruned weights may grow again at once, but from zero.
    Passes: every pass reads the mask; the gradient is on the mask too, but dense in the pass of an update.
    FLOPs: 3 f_S a step at the density of that step, plus one f_D an update; here the dense gradient stands in place of
        the sparse one: 2 f_S + f_D in the pass of an update.
    Defaults: start at 0.5 with erk, `alpha` 0.5, `floor` 0.005 and rewiring to the end from the authors' code;
        `prune_stop` from its 110 of 160 epochs on CIFAR (on ImageNet 30 of 100); `period` (theirs is 1000 steps on
        CIFAR, 4000 on ImageNet) and `init` from this suite's fairness rules.
    Ambiguous: as in the code the optimiser steps first, then comes the update, and the number dropped is rounded up
        (`after_step`). The code's curve ends one update short of the target; here it ends on it. Masks in the code are
        Bernoulli draws; here counts are exact. The code does not rewire before its pruning begins; here updates come
        from the first period on.
    Reference: Liu et al., arXiv 2106.10404, section 4.
    """

    alpha: float = 0.5
    stop: float = 1.0
    floor: float = 0.005
    after_step: bool = True
    start_density: float = 0.5
    start: float = 0.0
    prune_stop: float = 110 / 160

    name: ClassVar[str] = "granet"
    family: ClassVar[str] = "dense-to-sparse"
    citation: ClassVar[str] = "Liu et al., NeurIPS 2021, arXiv 2106.10404"
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, start_density=(0, 1), prune_stop=(0, self.stop), start=(0, self.prune_stop))

    def setup(self, gradients: Gradients) -> None:
        start_sparse(self.layers, self.densities(), self.rng, self.init)

    def densities(self) -> dict[str, float]:
        """Of the first masks, by Layer."""
        return allocate(self.allocation, self.layers, max(self.start_density, 1 - self.sparsity))

    def window(self) -> tuple[int, int]:
        """After how many steps the cubic curve begins and ends."""
        steps = self.recipe.steps
        return int(self.start * steps), int(self.prune_stop * (steps - 1)) + self.after_step

    def due(self, t: int) -> bool:
        return t + self.after_step == self.window()[1] or super().due(t)

    def update(self, t: int) -> None:
        (first, last), now = self.window(), t + self.after_step
        if now <= last:
            ends = (self.densities(), uniform(self.layers, 1 - self.sparsity))
            most, least = (sum(counts(self.layers, densities).values()) for densities in ends)
            left = between(most, least, cubic(now, first, last))
            cut(self.layers, [magnitude(layer) for layer in self.layers], left)
        super().update(t)
