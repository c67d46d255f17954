"""Task: what is trained, on what data, and under which rules."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from dstbench.suite.recipe import Recipe
from dstbench.suite.values import number

if TYPE_CHECKING:
    from dstbench.suite.model import SparseModel

Batch = tuple[Tensor, Tensor]
SPLITS = ("train", "calibration", "valid", "test")


class DataError(Exception):
    """A data set is missing or corrupt; the text names folder, file and the command that gets it."""


@dataclass(frozen=True)
class Task:
    """What is trained and how it is judged; a subclass says where batches come from.

    `dense` are patterns of layers that no method may sparsify; "!*lora*" asks for adapters beside frozen weights, which
    else stay dense too. `chance` is the metric of guessing (None: not known), `target` the value that cost-to-target
    boards aim at; `source` says where the recipe is published: paper and table, or repository. `root` and `download`
    say where data lies and whether the network may be asked; these three are no part of a run's identity. Splits are
    fixed over seeds: select on `valid`, report on `test`. A class whose splits are all the same data, because it judges
    the optimisation and not what is learnt, says so by `one_split`.
    """

    one_split: ClassVar[bool] = False

    name: str
    recipe: Recipe
    version: int = 1
    dense: tuple[str, ...] = ()
    metric: str = "accuracy"
    higher_is_better: bool = True
    chance: float | None = 0.0
    target: float | None = None
    source: str = ""
    root: Path | None = field(default=None, compare=False)
    download: bool = field(default=False, compare=False)

    def prepare(self) -> None:
        """Make sure that the data is there and whole; DataError if not. Called before any run starts."""

    def fingerprint(self) -> str:
        """12 hex digits that change whenever the data does."""
        raise NotImplementedError

    def build(self, seed: int, width: float = 1.0) -> nn.Module:
        """A new network, initialised from `seed` alone; `width` times as wide, ValueError where it has one width."""
        raise NotImplementedError

    def example(self) -> Tensor:
        """One batch of inputs (any size), for measuring."""
        raise NotImplementedError

    def batches(self, split: str, seed: int, start: int = 0) -> Iterator[Batch]:
        """Batches of `split` from step `start` on; `train` and `calibration` have no end; of (seed, step) alone."""
        raise NotImplementedError

    def loss(self, model: SparseModel, batch: Batch) -> Tensor:
        """The training loss of a batch, a scalar."""
        inputs, targets = batch
        return nn.functional.cross_entropy(model(inputs), targets, label_smoothing=self.recipe.label_smoothing)

    @torch.no_grad()
    def evaluate(self, model: SparseModel, split: str, device: torch.device) -> float:
        """The metric on a whole split (accuracy: share of right answers); the caller sets evaluation mode."""
        right = total = 0
        for inputs, targets in self.batches(split, seed=0):
            right += int((model(inputs.to(device)).argmax(-1) == targets.to(device)).sum())
            total += len(targets)
        return right / total

    def further(self, model: SparseModel, split: str, device: torch.device) -> dict[str, float]:
        """Metrics beside that of the boards, by name, on a whole split, for the record; by default none."""
        return {}

    def on(self, device: torch.device) -> Self:
        """The same task with its data on the device, where that helps and it fits."""
        return self

    def judged(self) -> dict[str, Any]:
        """How scores are read, for the record: metric, higher_is_better, chance and target, in plain values.

        Raises:
            TypeError: For a chance or a target that is neither a number nor None.
            ValueError: For one that is not finite.
        """
        found = {"metric": str(self.metric), "higher_is_better": bool(self.higher_is_better)}
        for name in ("chance", "target"):
            value = getattr(self, name)
            if value is not None:
                value = number(value, f"{self.name}: {name} is")
                if not math.isfinite(value):
                    raise ValueError(f"{self.name}: {name} is {value}; a finite number is expected")
            found[name] = value
        return found

    def describe(self) -> dict[str, Any]:
        """Everything but the recipe, for the record."""
        keys = ("name", "version", "dense", "metric", "higher_is_better", "chance", "target", "source")
        return {key: getattr(self, key) for key in keys}
