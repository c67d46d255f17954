"""Gradual magnitude pruning, from dense to sparse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dstbench.methods.allocate import Densities, counts, global_top, top, uniform
from dstbench.methods.checks import valid
from dstbench.methods.schedules import cubic, due
from dstbench.methods.scores import magnitude
from dstbench.suite.layer import Layer
from dstbench.suite.method import Method

SCOPES = ("global", "layer")


@dataclass
class Magnitude(Method):
    """Keeps the largest weights, in number falling cubically between the shares `start` and `stop` of the run.

    `scope` "global" ranks all Layers together, "layer" gives each the same sparsity. Pruned weights stay zero. Masks
    change every `period` steps (0: the recipe's, or less so that at least `updates` fit) and at the window's end.

    Passes: read the mask, and compute the gradient on it; dense before `start`.
    FLOPs: 3 f_D (1 - s_t) a step, with f taken Layer by Layer; ranking is not charged.
    Defaults: the window from 10 to 75 % of the run in at least 20 updates is this suite's rule for short runs (the
        paper's own windows differ by task); `scope` as in the codes of GraNet and of RigL's reproduction.
    Ambiguous: the paper prunes each layer alike; global ranking is what most later comparisons use.
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
        valid(self, scope=SCOPES, stop=(0, 1), start=(0, self.stop), period=(0, math.inf), updates=(1, math.inf))

    def begin(self, t: int) -> None:
        first, last = (int(share * (self.recipe.steps - 1)) for share in (self.start, self.stop))
        period = self.period or max(1, min(self.recipe.period, (last - first) // self.updates))
        if t == last or due(t - first, period, last - first):
            self.prune(cubic(t, first, last))

    def prune(self, progress: float) -> None:
        """Leave all but the share `progress` of the weights that are to go."""
        prune(self.layers, uniform(self.layers, 1 - self.sparsity), self.scope, progress)


def prune(layers: Sequence[Layer], densities: Densities, scope: str = "global", progress: float = 1.0) -> None:
    """Keep the weights of largest magnitude: see `largest`."""
    for layer, mask in zip(layers, largest(layers, [*map(magnitude, layers)], densities, scope, progress), strict=True):
        layer.activate(mask)


def largest(
    layers: Sequence[Layer],
    scores: Sequence[Tensor],
    densities: Densities,
    scope: str = "global",
    progress: float = 1.0,
) -> list[Tensor]:
    """Masks of the largest scores, at the share `progress` of the way from all weights to the counts of `densities`.

    `scope` "layer": as many of each Layer as its density says; "global": as many in all, wherever they are.
    """
    final = counts(layers, densities)
    if scope == "global":
        return global_top(scores, between(sum(score.numel() for score in scores), sum(final.values()), progress))
    kept = (between(layer.numel, final[layer.name], progress) for layer in layers)
    return [top(score, k) for score, k in zip(scores, kept, strict=True)]


def between(now: int, then: int, progress: float) -> int:
    """The count at the share `progress` of the way."""
    return now - round(progress * (now - then))
