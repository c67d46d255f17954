"""Prune and retrain: once, or in rounds with rewinding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

from torch import Tensor

from dstbench.methods.allocate import uniform
from dstbench.methods.checks import valid
from dstbench.methods.magnitude import SCOPES, prune
from dstbench.suite.method import Gradients, Method
from dstbench.suite.model import SparseModel
from dstbench.suite.recipe import Recipe


@dataclass
class OneShot(Method):
    """Trains densely, keeps the largest weights at the share `at` of the run, and fine-tunes them.

    `scope` "global" ranks all Layers together, "layer" gives each the same sparsity. `finetune` "restart": before and
    after the cut the recipe's learning-rate schedule is run through as a whole, in the steps that there are, and the
    optimiser starts anew; "continue": schedule and optimiser go on as if nothing had happened.
    Passes: dense before the cut; after it every pass reads the mask and computes the gradient on it alone.
    FLOPs: 3 f_D a step before the cut, 3 f_S after it; the one sort is charged neither by the papers nor here.
    Defaults: `at`, `scope` and `finetune` are ours: half of the steps for each part. The preset 180_20 is the baseline
        of ML-LinBreg, arXiv 2602.03535: 180 dense epochs and 20 of fine-tuning.
    Ambiguous: Han et al. choose a threshold for each layer, a multiple of its standard deviation; here the count is
        exact. They retrain at a smaller rate; that of the 180_20 baseline is not known to us. `finetune` "restart" is
        the default because weights are then judged at the end of a training, as in the paper, and because repeating
        the schedule did better than going on at its last rate in Renda et al., arXiv 2003.02389.
    Reference: Han et al., arXiv 1506.02626, section 3, with one round of pruning.
    """

    at: float = 0.5
    scope: str = "global"
    finetune: str = "restart"

    name: ClassVar[str] = "oneshot"
    family: ClassVar[str] = "dense-to-sparse"
    citation: ClassVar[str] = "Han et al., NeurIPS 2015, arXiv 1506.02626"

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, at=(0, 1), scope=SCOPES, finetune=("restart", "continue"))

    @property
    def cut(self) -> int:
        """The first step that reads the largest weights alone."""
        return min(round(self.at * self.recipe.steps), self.recipe.steps - 1)

    def lr(self, t: int) -> float:
        if self.finetune == "continue":
            return super().lr(t)
        return self.recipe.lr[self.kind] * restarted(self.recipe, (0, self.cut), t)

    def begin(self, t: int) -> None:
        if t == self.cut:
            self.thin()
            if self.finetune == "restart":
                self.restart()

    def thin(self) -> None:
        """The cut."""
        prune(self.layers, uniform(self.layers, 1 - self.sparsity), self.scope)


@dataclass
class IMP(Method):
    """Prunes by magnitude over all Layers in `rounds`, and trains again after each from rewound weights.

    The run is split into `rounds` + 1 trainings of equal length, the first of them dense; `budget` = `rounds` + 1 makes
    each as long as the task's. Every cut leaves the same share of the weights, and the last training runs at the target
    sparsity. Each training runs through the recipe's learning-rate schedule and starts the optimiser anew. `rewind`
    "weights": survivors, and all that is no Layer, running statistics included, go back to their values at the share
    `rewind_at` of the first training (0: initialisation); "lr": they stay, and the schedule alone is rewound.
    A dense copy of the network is held for that, and counted in memory.
    Passes: the first training is dense; later every pass reads the mask and computes the gradient on it alone.
    FLOPs: the sum over all trainings, 3 f_S a step at the density of that training; sorts are charged neither by the
        papers nor here.
    Defaults: `rounds` are ours, because all trainings share the steps of one run (Frankle & Carbin prune a fifth a
        round, at most). `rewind_at` 0.1 of a training is a little later than the 0.1 to 7 % that arXiv 1903.01611
        rewinds to: trainings are short here.
    Ambiguous: with late rewinding the papers resume the schedule at the rewind point too; here, so that all trainings
        are equally long, each has the whole schedule. What becomes of the optimiser's state is not said: forgotten.
        Small networks are pruned layer by layer in the first paper, larger ones globally; here all are.
    Reference: Frankle & Carbin, arXiv 1803.03635, section 2; late rewinding: arXiv 1903.01611; learning-rate rewinding:
        Renda et al., arXiv 2003.02389.
    """

    rounds: int = 4
    rewind: str = "weights"
    rewind_at: float = 0.1

    name: ClassVar[str] = "imp"
    family: ClassVar[str] = "dense-to-sparse"
    citation: ClassVar[str] = "Frankle & Carbin, ICLR 2019, arXiv 1803.03635; Renda et al., ICLR 2020, arXiv 2003.02389"

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, rounds=(1, math.inf), rewind=("weights", "lr"), rewind_at=(0, 1))

    @property
    def starts(self) -> list[int]:
        """The first step of every training."""
        return [k * self.recipe.steps // (self.rounds + 1) for k in range(self.rounds + 1)]

    def setup(self, gradients: Gradients) -> None:
        if self.recipe.steps <= self.rounds:
            raise ValueError(
                f"imp: {self.recipe.steps} steps do not split into {self.rounds} rounds + 1 trainings; "
                "give fewer rounds, or more steps (budget)"
            )

    def lr(self, t: int) -> float:
        return self.recipe.lr[self.kind] * restarted(self.recipe, self.starts, t)

    def begin(self, t: int) -> None:
        starts, late = self.starts, self.rewind == "weights"
        if late and t == round(self.rewind_at * starts[1]):
            self.remember()
        if t in starts[1:]:
            density = (1 - self.sparsity) ** (starts.index(t) / self.rounds)
            prune(self.layers, uniform(self.layers, density))
            self.restart()
            if late:
                self.recall()

    def remember(self) -> None:
        """Keep every value of the network."""
        values = {layer.key: layer.weight for layer in self.layers} | others(self.model)
        self.memory.update({f"rewind.{name}": value.clone() for name, value in values.items()})

    def recall(self) -> None:
        """Set the network back to what is kept; pruned weights stay zero."""
        for layer in self.layers:
            layer.assign(self.memory[f"rewind.{layer.key}"])
        for name, value in others(self.model).items():
            value.copy_(self.memory[f"rewind.{name}"])


def restarted(recipe: Recipe, starts: Sequence[int], t: int) -> float:
    """The factor on the learning rate at step t where each of `starts` begins a training with the whole schedule.

    It is the recipe's at the step that is the same share of the run as t is of its training, rounded down.
    """
    first = max(start for start in starts if start <= t)
    end = min((start for start in starts if start > t), default=recipe.steps)
    return recipe.factor((t - first) * recipe.steps // (end - first))


def others(model: SparseModel) -> dict[str, Tensor]:
    """Every parameter and buffer that is no Layer's, by its name in the network; not copied."""
    own = {layer.key for layer in model.layers}
    named = chain(model.net.named_parameters(), model.net.named_buffers())
    return {name: tensor.detach() for name, tensor in named if name not in own}
