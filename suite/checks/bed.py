"""A network and a task made for checking: every kind of Layer there is, on random data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dstbench.suite.recipe import Recipe
from dstbench.suite.task import SPLITS, Batch, Task

CLASSES = 4


class Mixed(nn.Module):
    """Convolutions: plain without bias, grouped, dilated; batch norm; one linear layer used twice, one tied to it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2)
        self.dilated = nn.Conv2d(8, 16, 3, padding=2, dilation=2)
        self.twice = nn.Linear(16, 16)
        self.tied = nn.Linear(16, 16, bias=False)
        self.tied.weight = self.twice.weight
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = self.dilated(self.grouped(x).relu()).relu().mean((2, 3))
        return self.head(self.tied(self.twice(self.twice(x).relu()).relu()).relu())


@dataclass(frozen=True)
class MixedTask(Task):
    """Four noisy Gaussian classes of 4x8x8 images through `Mixed`."""

    def fingerprint(self) -> str:
        """There is no data to change."""
        return "0" * 12

    def build(self, seed: int, width: float = 1.0) -> nn.Module:
        """A new `Mixed`."""
        if width != 1:
            raise ValueError(f"{self.name}: the network has one width")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Mixed()

    def example(self) -> Tensor:
        """Two images."""
        return torch.zeros(2, 4, 8, 8)

    def batches(self, split: str, seed: int, start: int = 0) -> Iterator[Batch]:
        """Batches of (seed, step) alone."""
        centres = torch.randn(CLASSES, 4, 8, 8, generator=torch.Generator().manual_seed(7))
        t = start
        while split in ("train", "calibration") or t < 4:
            place = SPLITS.index(split) + 4 * (seed if split == "train" else 0)
            rng = torch.Generator().manual_seed(place * 10**6 + t)
            labels = torch.randint(CLASSES, (self.recipe.batch,), generator=rng)
            yield centres[labels] + torch.randn(len(labels), 4, 8, 8, generator=rng), labels
            t += 1


MIXED = MixedTask(
    "check/mixed",
    Recipe(steps=48, batch=16, lr={"sgd": 0.02, "adam": 2e-3}, precision="bf16"),
    chance=1 / CLASSES,
)
