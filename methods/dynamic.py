"""Dynamic sparse training: drop the smallest weights, grow as many elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from dstbench.methods import schedules
from dstbench.methods.allocate import exchange, top
from dstbench.methods.checks import valid
from dstbench.methods.static import Static
from dstbench.suite.layer import Layer


@dataclass
class SET(Static):
    """Every `period` steps (0: the recipe's) each Layer drops its smallest weights and grows as many at random.

    The share dropped falls from `alpha` to `floor` along half a cosine that ends at the share `stop` of the run, and
    with it the updates. An update takes the place of the optimiser's step, and the number dropped is rounded down. With
    `after_step` an update follows every `period`-th step, and the number is rounded up. Weights just dropped may grow
    again and then keep value and state; others start at zero.
    Passes: every pass reads the mask and computes the gradient on it alone.
    FLOPs: 3 f_S a step; random growth and the sort that drops are charged neither by the papers nor here.
    Defaults: `alpha`, cosine and `stop` from RigL (arXiv 1911.11134, section 4), which also gives SET this schedule;
        `period` and `init` from this suite's fairness rules; erk as in RigL and ITOP. The itop presets (`alpha` 0.5,
        `floor` 0.005, updates to the end) are those of ITOP's code (arXiv 2102.02887). Its longer period, 1500 steps
        for SET and 4000 for RigL on CIFAR-10 at batch 128, is not taken over: the presets use the recipe's.
    Ambiguous: SET drops the smallest positive and the largest negative weights apart, RigL's SET, as here, by
        magnitude. RigL's code replaces the step by the update and rounds down; ITOP's, like the others that derive from
        SNFS's, steps, then updates, and rounds up, so that a Layer never stops: that is `after_step`. No update follows
        the last step, where the code may have one.
    Reference: Mocanu et al., arXiv 1707.04780, on the schedule of RigL, arXiv 1911.11134.
    """

    period: int = 0
    alpha: float = 0.3
    stop: float = 0.75
    floor: float = 0.0
    after_step: bool = False

    name: ClassVar[str] = "set"
    family: ClassVar[str] = "dynamic"
    citation: ClassVar[str] = "Mocanu et al., Nature Communications 2018, arXiv 1707.04780"

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, period=(0, math.inf), alpha=(0, 1), floor=(0, self.alpha), stop=(0, 1))

    def due(self, t: int) -> bool:
        """Whether step t is an update of the topology; with `after_step` that step is counted, as it has been taken."""
        return schedules.due(t + self.after_step, self.period or self.recipe.period, self.stop * self.recipe.steps)

    def fraction(self, t: int) -> float:
        """The share of a Layer's weights that an update at step t drops."""
        return schedules.cosine(t + self.after_step, self.alpha, self.stop * self.recipe.steps, self.floor)

    def moved(self, t: int, count: int) -> int:
        """How many of `count` weights an update at step t drops."""
        return (math.ceil if self.after_step else math.floor)(self.fraction(t) * count)

    def step(self, t: int) -> None:
        if self.after_step or not self.due(t):
            super().step(t)
        if self.due(t):
            self.update(t)

    def update(self, t: int) -> None:
        """Drop and grow in every Layer."""
        for layer in self.layers:
            exchange(layer, self.moved(t, layer.nnz()), self.growth(layer))

    def growth(self, layer: Layer) -> Tensor:
        """The score by which weights grow, shape of the weight."""
        return chance(layer, self.rng)


@dataclass
class RigL(SET):
    """SET that grows where the gradient is largest, which is dense in the pass of an update.

    Passes: every pass reads the mask; the gradient is on the mask too, but dense in the pass of an update.
    FLOPs: (3 f_S ΔT + 2 f_S + f_D) / (ΔT + 1) a step, as if updates never stopped; here an update takes the place of a
        step, so that our period is ΔT + 1, and dense gradients are counted where they are computed: none after `stop`.
    Defaults: `alpha`, cosine and `stop` from the paper, section 4; erk is one of its two allocations; `period` and
        `init` from this suite's fairness rules. The itop preset: see `set`. The svite preset is the unstructured SViTE
        (Chen et al., arXiv 2106.04533, and its code): that of itop, but updates end at 0.8 of the run. Its period, 7000
        or 15 000 steps of 600 epochs, is about 1 % of its run, and its cosine ends with the run: here the recipe's
        period, and a cosine to the last update. Queries, keys and values of all heads are one Layer in timm's ViT, as
        in the code, so ERK gives them one density.
    Ambiguous: the code updates at step 0 already and breaks ties by noise: here the first update is at `period`, and
        among ties the first in memory wins. A dropped weight loses its momentum; the authors' code does not clear it.
        There an update does not advance the count of steps, so that the optimiser takes all of the budget's; here it
        takes the place of one, and the budget counts both: 93 of 100 at a period of 10. At 99 % the authors keep the
        first layer dense; here ERK decides, or the task.
    Reference: Evci et al., arXiv 1911.11134, algorithm 1.
    """

    name: ClassVar[str] = "rigl"
    citation: ClassVar[str] = "Evci et al., ICML 2020, arXiv 1911.11134"

    def begin(self, t: int) -> None:
        if self.due(t):
            alone = type(self).growth is RigL.growth  # another score may want more than the largest gradients
            for layer in self.layers:
                if alone:
                    layer.stream(partial(candidates, layer, self.moved(t, layer.nnz())))
                else:
                    layer.grad_mask = None

    def growth(self, layer: Layer) -> Tensor:
        score = layer.grad.abs()
        if layer.streamed is not None:  # then that is zero where it was not kept, and so below or level with these
            index, size = layer.streamed
            score.view(-1)[index.long()] = size
        return score


def candidates(layer: Layer, count: int, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Of the entries that the pass did not read, the `count` of largest gradient: places in memory, and sizes."""
    size, read = grad.abs(), layer.forward_mask
    if read is not None:
        size.masked_fill_(read, -math.inf)
    index = top(size, min(count, layer.numel - layer.nnz())).flatten().nonzero().flatten()
    return index.int(), size.flatten()[index]


def chance(layer: Layer, rng: torch.Generator) -> Tensor:
    """A uniformly random score of every weight of a Layer."""
    return torch.rand(layer.shape, generator=rng).to(layer.parameter.device)


def grow(kept: Tensor, growth: Tensor, count: int) -> Tensor:
    """The bool mask `kept` and the `count` other entries of largest `growth`."""
    return kept | top(growth.masked_fill(kept, -math.inf), count)
