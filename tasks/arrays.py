"""Inputs and targets as tensors in memory: tables of measurements, and sequences made by code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dstbench.suite.task import SPLITS, Batch, Task
from dstbench.tasks import data as sets
from dstbench.tasks.seeded import Factory, build, epochs, named

if TYPE_CHECKING:
    from dstbench.suite.model import SparseModel
    from dstbench.tasks.data.tabular import Table

METRICS = {"accuracy": True, "mse": False}  # name -> whether higher is better


@dataclass(frozen=True)
class ArrayTask(Task):
    """A network on a table of the data sets: classes, by cross entropy, or numbers, by the squared error.

    `metric` is "accuracy", the share of samples of which every place that is asked for is right, or "mse", the mean
    squared error; its direction follows. `model` is timm's name of a network or a factory, `arguments` go to it;
    `widths` names the arguments that a narrower or wider network scales, and what they must be multiples of. Outputs
    are (N, K), or (N, T, K) for targets (N, T). `evaluation_batch` does not change the metric.
    """

    model: Factory = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    widths: Mapping[str, int] = field(default_factory=dict)
    data: str = ""
    evaluation_batch: int = 1000

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"{self.name}: metric is {self.metric!r}; choose one of {', '.join(METRICS)}")
        object.__setattr__(self, "higher_is_better", METRICS[self.metric])

    def prepare(self) -> None:
        """Read and check the data; DataError if it is missing or corrupt."""
        self._data()

    def fingerprint(self) -> str:
        """That of the data set."""
        return self._data().fingerprint

    def build(self, seed: int, width: float = 1.0) -> nn.Module:
        """A new network, initialised from `seed` alone; ValueError: see `widths`."""
        return build(self.name, self.model, self.arguments, self.widths, seed, width)

    def example(self) -> Tensor:
        """Two inputs of the training split."""
        data = self._data()
        return data.inputs[data.splits["train"][:2]]

    def batches(self, split: str, seed: int, start: int = 0) -> Iterator[Batch]:
        """`train` and `calibration` without end, `valid` and `test` whole and in order.

        Every epoch is a new order of the samples; what does not fill its last batch is left out. ValueError for an
        unknown split, and for a batch larger than the training split.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
        data = self._data()
        if split in SPLITS[:2]:
            pool = epochs(self.name, data.splits["train"], self.recipe.batch, seed, split, start)
            return ((data.inputs[index], data.targets[index]) for _, index in pool)
        parts = data.splits[split].split(self.evaluation_batch)[start:]
        return ((data.inputs[index], data.targets[index]) for index in parts)

    def loss(self, model: SparseModel, batch: Batch) -> Tensor:
        """Cross entropy, with the recipe's smoothing, over all places that are asked for; or the squared error."""
        inputs, targets = batch
        outputs = model(inputs)
        if self.metric == "mse":
            return nn.functional.mse_loss(outputs, targets)
        smoothing = self.recipe.label_smoothing
        return nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten(), label_smoothing=smoothing)

    @torch.no_grad()
    def evaluate(self, model: SparseModel, split: str, device: torch.device) -> float:
        """The metric on a whole split; the caller sets evaluation mode."""
        total, number = 0.0, 0
        for inputs, targets in self.batches(split, seed=0):
            outputs, targets = model(inputs.to(device)), targets.to(device)
            if self.metric == "mse":
                total += float((outputs.float() - targets).square().sum(dtype=torch.float64))
                number += targets.numel()
            else:
                right = (outputs.argmax(-1) == targets) | (targets < 0)
                total += int(right.flatten(1).all(1).sum() if right.dim() > 1 else right.sum())
                number += len(targets)
        return total / number

    def describe(self) -> dict[str, Any]:
        """Everything but the recipe, for the record."""
        return super().describe() | {
            "data": self.data,
            "synthetic": self._data().synthetic,
            "model": named(self.model),
            "arguments": dict(self.arguments),
        }

    def _data(self) -> Table:
        return sets.load(self.data, self.root, self.download)
