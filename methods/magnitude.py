"""Gradual magnitude pruning, from dense to sparse."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from methods.allocate import counts, cut, top, uniform
from methods.checks import choose, within
from methods.schedules import cubic, due
from methods.scores import magnitude
from suite.method import Method

SCOPES = ("global", "layer")


@dataclass
class Magnitude(Method):
    """Keeps the largest weights, in number falling cubically between the shares `start` and `stop` of the run.

    `scope` "global" ranks all Layers together, "layer" gives each the same sparsity. Pruned weights stay zero. Masks
    change every `period` steps (0: the recipe's, or less so that at least `updates` fit) and at the window's end.
    Reference: Zhu & Gupta, arXiv 1710.01878, equation 1, with initial sparsity 0.
    """

    scope: str = "global"
    start: float = 0.1
    stop: float = 0.75
    period: int = 0
    updates: int = 20

    name: ClassVar[str] = "magnitude"
    family: ClassVar[str] = "dense-to-sparse"
    citation: ClassVar[str] = "Zhu & Gupta 2017, arXiv 1710.01878"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("magnitude: scope", self.scope, SCOPES)
        within("magnitude: stop", self.stop, 0, 1)
        within("magnitude: start", self.start, 0, self.stop)
        within("magnitude: period", self.period, 0, math.inf)
        within("magnitude: updates", self.updates, 1, math.inf)

    def begin(self, t: int) -> None:
        first, last = (int(share * (self.recipe.steps - 1)) for share in (self.start, self.stop))
        period = self.period or max(1, min(self.recipe.period, (last - first) // self.updates))
        if t == last or due(t - first, period, last - first):
            self.prune(cubic(t, first, last))

    def prune(self, progress: float) -> None:
        """Leave all but the share `progress` of the weights that are to go."""
        scores = [magnitude(layer) for layer in self.layers]
        sizes = [layer.numel for layer in self.layers]
        final = counts(self.layers, uniform(self.layers, 1 - self.sparsity)).values()
        if self.scope == "global":
            cut(self.layers, scores, between(sum(sizes), sum(final), progress))
            return
        for layer, score, n, k in zip(self.layers, scores, sizes, final, strict=True):
            layer.activate(top(score, between(n, k, progress)))


def between(now: int, then: int, progress: float) -> int:
    """The count at the share `progress` of the way."""
    return now - round(progress * (now - then))
