"""Shared fixtures: small networks and a task on random data that trains in a second."""

from __future__ import annotations

import os

# Torch reads these once, when it is loaded. Tests run side by side, so that more threads only get in each other's way.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from dstbench.suite.recipe import Recipe
from dstbench.suite.task import SPLITS, Batch, Task


@pytest.hookimpl(tryfirst=True)  # before pytest deselects what is slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow all but n parameter sets, the last, the first and some between, of a test marked `sampled(n)`."""
    sets: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sampled"):
            sets.setdefault(item.nodeid.split("[")[0], []).append(item)
    for members in sets.values():
        (wanted,) = members[0].get_closest_marker("sampled").args
        last = len(members) - 1
        kept = {last, *(round(i * last / max(1, wanted - 1)) for i in range(wanted - 1))}
        for place, item in enumerate(members):
            if place not in kept:
                item.add_marker("slow")


settings.register_profile("steady", deadline=None)  # a loaded machine is no failure
settings.load_profile("steady")


class ConvNet(nn.Module):
    """A plain, a grouped and a dilated convolution, batch norm, a reused and a tied linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2)
        self.dilated = nn.Conv2d(8, 12, 3, padding=2, dilation=2)
        self.twice = nn.Linear(12, 12)
        self.tied = nn.Linear(12, 12, bias=False)
        self.tied.weight = self.twice.weight
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = self.dilated(self.grouped(x).relu()).relu().mean((2, 3))
        return self.head(self.tied(self.twice(self.twice(x).relu()).relu()).relu())


class Perceptron(nn.Module):
    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.first = nn.Linear(12, width)
        self.second = nn.Linear(width, width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x.flatten(1)).relu()).relu())


@dataclass(frozen=True)
class Blobs(Task):
    """Four noisy Gaussian classes; `image` makes them 3x8x8 for ConvNet."""

    name: str = "test/blobs"
    recipe: Recipe = field(default_factory=lambda: Recipe(steps=60, batch=16, lr={"sgd": 0.05, "adam": 3e-3}))
    chance: float = 0.25
    image: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, 8, 8) if self.image else (12,)

    def fingerprint(self) -> str:
        return "0" * 12

    def build(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return ConvNet() if self.image else Perceptron()

    def example(self) -> Tensor:
        return torch.zeros(2, *self.shape)

    def batches(self, split: str, seed: int, start: int = 0) -> Iterator[Batch]:
        centres = torch.randn(4, *self.shape, generator=torch.Generator().manual_seed(7))
        t = start
        while split in ("train", "calibration") or t < 4:
            place = SPLITS.index(split) + 4 * (seed if split == "train" else 0)
            rng = torch.Generator().manual_seed(place * 10**6 + t)
            labels = torch.randint(4, (self.recipe.batch,), generator=rng)
            yield centres[labels] + torch.randn(len(labels), *self.shape, generator=rng), labels
            t += 1


@pytest.fixture
def blobs() -> Blobs:
    return Blobs()


@pytest.fixture
def images() -> Blobs:
    return Blobs(name="test/images", image=True)


@pytest.fixture(autouse=True, scope="session")
def kernel_cache(tmp_path_factory) -> Iterator[None]:
    """Compiled kernels of this session's own, built once for all its processes."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSTBENCH_CACHE", str(root / "kernels"))
        yield


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
