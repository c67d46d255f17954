"""Dynamic sparse training: drop the smallest weights, grow as many elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from methods import schedules
from methods.allocate import exchange
from methods.checks import within
from methods.static import Static
from suite.layer import Layer


@dataclass
class SET(Static):
    """Every `period` steps (0: the recipe's) each Layer drops its smallest weights and grows as many at random.

    The share dropped falls from `alpha` to `floor` at the share `stop` of the run. An update takes the place of the
    optimiser's step. Weights just dropped may grow again and then keep value and state; others start at zero.
    Reference: Mocanu et al., arXiv 1707.04780, on the schedule of RigL, arXiv 1911.11134, appendix.
    """

    period: int = 0
    alpha: float = 0.3
    stop: float = 0.75
    floor: float = 0.0

    name: ClassVar[str] = "set"
    family: ClassVar[str] = "dynamic"
    citation: ClassVar[str] = "Mocanu et al., Nature Communications 2018, arXiv 1707.04780"

    def __post_init__(self) -> None:
        super().__post_init__()
        within(f"{self.name}: period", self.period, 0, math.inf)
        within(f"{self.name}: alpha", self.alpha, 0, 1)
        within(f"{self.name}: floor", self.floor, 0, self.alpha)
        within(f"{self.name}: stop", self.stop, 0, 1)

    def due(self, t: int) -> bool:
        """Whether step t is an update of the topology."""
        return schedules.due(t, self.period or self.recipe.period, self.stop * self.recipe.steps)

    def step(self, t: int) -> None:
        if not self.due(t):
            return super().step(t)
        fraction = schedules.cosine(t, self.alpha, self.stop * self.recipe.steps, self.floor)
        for layer in self.layers:
            moved = int(fraction * layer.nnz())
            exchange(layer, layer.nnz() - moved, self.growth(layer), moved)

    def growth(self, layer: Layer) -> Tensor:
        """The score by which weights grow, shape of the weight."""
        return torch.rand(layer.shape, generator=self.rng).to(layer.parameter.device)


@dataclass
class RigL(SET):
    """SET that grows where the gradient is largest, which is dense in the pass of an update.

    Reference: Evci et al., arXiv 1911.11134, algorithm 1.
    """

    name: ClassVar[str] = "rigl"
    citation: ClassVar[str] = "Evci et al., ICML 2020, arXiv 1911.11134"

    def begin(self, t: int) -> None:
        if self.due(t):
            for layer in self.layers:
                layer.grad_mask = None

    def growth(self, layer: Layer) -> Tensor:
        return layer.grad.abs()
