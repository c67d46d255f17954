"""A task whose data a seeded generator makes: points around sixteen centres, four of them to a class."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn

from dstbench import Batch, Recipe, Task

CENTRES = 1.5 * torch.randn(16, 20, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Example(Task):
    """Which of four classes a point is in; every batch is new, a function of (split, seed, step)."""

    contract = 2

    def fingerprint(self) -> str:
        """That of the centres."""
        return hashlib.sha256(CENTRES.numpy().tobytes()).hexdigest()[:12]

    def build(self, seed: int, width: float = 1.0) -> nn.Module:
        """Two hidden layers."""
        hidden = max(1, round(48 * width))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Linear(20, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 4)
            )

    def example(self) -> Tensor:
        """Two points."""
        return torch.zeros(2, 20)

    def batches(self, split: str, seed: int, start: int = 0) -> Iterator[Batch]:
        """`train` and `calibration` without end; ten batches of `valid` and `test`, the same for all seeds."""
        endless = split in ("train", "calibration")
        for step in count(start) if endless else range(start, 10):
            key = hashlib.sha256(f"{split} {seed if endless else 0} {step}".encode()).digest()
            rng = torch.Generator().manual_seed(int.from_bytes(key[:7]))
            centre = torch.randint(16, (self.recipe.batch,), generator=rng)
            yield CENTRES[centre] + torch.randn(len(centre), 20, generator=rng), centre % 4


EXAMPLE = Example(
    name="example_task",
    recipe=Recipe(steps=300, batch=50, lr={"sgd": 0.1, "adam": 3e-3}),
    chance=0.25,
    target=0.9,
)
