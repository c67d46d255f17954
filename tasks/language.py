"""Language models of characters or bytes: the next token of any text file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dstbench.suite.task import SPLITS, Batch, DataError, Task
from dstbench.tasks import data as sets
from dstbench.tasks.data.text import UNITS, Text, of_file
from dstbench.tasks.seeded import Factory, build, generator, named

if TYPE_CHECKING:
    from dstbench.suite.model import SparseModel

METRICS = ("loss", "perplexity")


@dataclass(frozen=True)
class LanguageTask(Task):
    """A network that predicts the next token of a text, at every place of a window of `block` tokens.

    Training reads random windows of the first nine tenths of the text. The last tenth is cut into windows that do not
    overlap, all of it but less than one window: those at even places are `valid`, those at odd places `test`, so that
    each is a sample of what nanoGPT estimates its validation loss on. `metric` is "loss", nats a token, or
    "perplexity", its exponential; lower is better.

    `data` is the name of a text among the data sets, or "file:NAME" for a file of the data root; `unit` is
    "characters" or "bytes". `model` is a factory that takes `vocab` and `block`, and `arguments`. `vocab` is the number
    of tokens that the text must have; 0: as many as it has.
    """

    metric: str = "loss"
    higher_is_better: bool = False
    model: Factory = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    widths: Mapping[str, int] = field(default_factory=dict)
    data: str = "embedded_text"
    unit: str = "characters"
    vocab: int = 0
    block: int = 64
    evaluation_batch: int = 64

    def __post_init__(self) -> None:
        for name, choices in (("metric", METRICS), ("unit", UNITS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{self.name}: {name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        if self.block < 1:
            raise ValueError(f"{self.name}: block is {self.block}; give the tokens of a window, at least 1")

    def prepare(self) -> None:
        """Read and check the text.

        Raises:
            DataError: If it is missing, corrupt, no UTF-8, shorter than two held-out windows, or of another vocabulary.
        """
        found = (text := self._text()).vocabulary(self.unit)
        if self.vocab not in (0, found):
            raise DataError(
                f"{self.name}: {text.source} has {found} different {self.unit}, vocab is {self.vocab}; "
                f"take the text that the task is written for, or a task with vocab 0"
            )
        held = text.tokens(self.unit)[1]
        if len(held) <= 2 * self.block:
            raise DataError(
                f"{self.name}: {text.source}: the last tenth has {len(held)} {self.unit}, and {2 * self.block + 1} are "
                f"needed for two windows; give a longer text, or a smaller block than {self.block}"
            )

    def fingerprint(self) -> str:
        """Of the text's sha256, 12 hex digits."""
        return self._text().fingerprint

    def build(self, seed: int, width: float = 1.0) -> nn.Module:
        """A new network, initialised from `seed` alone; ValueError: see `ArrayTask`."""
        vocab = self.vocab or self._text().vocabulary(self.unit)
        return build(
            self.name, self.model, {"vocab": vocab, "block": self.block, **self.arguments}, self.widths, seed, width
        )

    def example(self) -> Tensor:
        """Two windows, int64 (2, block)."""
        return torch.zeros(2, self.block, dtype=torch.int64)

    def batches(self, split: str, seed: int, start: int = 0) -> Iterator[Batch]:
        """Windows (B, block) and the tokens that follow each of their places (B, block).

        `train` and `calibration` are random and without end, `valid` and `test` whole and in order. ValueError for an
        unknown split.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
        text, held = self._text().tokens(self.unit)
        if split in SPLITS[:2]:
            return self._endless(text, split, seed, start)
        first = torch.arange(0, len(held) - self.block, self.block)[SPLITS[2:].index(split) :: 2]
        return (self._windows(held, part) for part in first.split(self.evaluation_batch)[start:])

    def loss(self, model: SparseModel, batch: Batch) -> Tensor:
        """Cross entropy, nats a token."""
        inputs, targets = batch
        logits, smoothing = model(inputs), self.recipe.label_smoothing
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=smoothing)

    @torch.no_grad()
    def evaluate(self, model: SparseModel, split: str, device: torch.device) -> float:
        """The metric over every place of the split's windows; the caller sets evaluation mode."""
        total, number = 0.0, 0
        for inputs, targets in self.batches(split, seed=0):
            logits = model(inputs.to(device)).flatten(0, 1).float()
            total += float(nn.functional.cross_entropy(logits, targets.to(device).flatten(), reduction="sum"))
            number += targets.numel()
        loss = total / number
        return loss if self.metric == "loss" else math.exp(min(loss, 700.0))

    def describe(self) -> dict[str, Any]:
        """Everything but the recipe, for the record."""
        own = {key: getattr(self, key) for key in ("data", "unit", "vocab", "block")}
        return super().describe() | own | {"model": named(self.model), "arguments": dict(self.arguments)}

    def _text(self) -> Text:
        if self.data.startswith("file:"):
            return of_file(Path(self.root or "data") / self.data.removeprefix("file:"))
        return sets.load(self.data, self.root, self.download)

    def _endless(self, text: Tensor, split: str, seed: int, start: int) -> Iterator[Batch]:
        for step in count(start):
            rng = generator(seed, split, step)
            yield self._windows(text, torch.randint(len(text) - self.block, (self.recipe.batch,), generator=rng))

    def _windows(self, text: Tensor, first: Tensor) -> Batch:
        places = first[:, None] + torch.arange(self.block)
        return text[places], text[places + 1]
