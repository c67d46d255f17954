"""Denoising: images with Gaussian noise in, clean images out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dstbench.suite.task import SPLITS, Batch, Task
from dstbench.tasks import data as sets
from dstbench.tasks.seeded import Factory, build, epochs, generator, named

if TYPE_CHECKING:
    from dstbench.suite.model import SparseModel

METRICS = {"psnr": True, "mse": False}  # name -> whether higher is better


@dataclass(frozen=True)
class DenoisingTask(Task):
    """A network that is trained by the squared error to give back the clean image.

    Pixels lie between 0 and 1; the input has Gaussian noise of the standard deviation `noise`, anew in every training
    step, and the same for all runs in `valid` and `test`. `metric` is "psnr", -10 log10 of the mean squared error over
    all pixels of the split, in dB, or "mse". `data` is the name of a set of images; `model` and `arguments` as in
    `ArrayTask`; its outputs are flattened before they are compared.

    Reference: Bungert et al. 2022, arXiv 2105.04319, section 4.4; noise and network: the authors' code.
    """

    metric: str = "psnr"
    model: Factory = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    widths: Mapping[str, int] = field(default_factory=dict)
    data: str = "digits"
    noise: float = 0.05
    evaluation_batch: int = 500

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"{self.name}: metric is {self.metric!r}; choose one of {', '.join(METRICS)}")
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"{self.name}: noise is {self.noise}; give a standard deviation, 0 or more")
        object.__setattr__(self, "higher_is_better", METRICS[self.metric])

    def prepare(self) -> None:
        """Read and check the data; DataError if it is missing or corrupt."""
        sets.load(self.data, self.root, self.download)

    def fingerprint(self) -> str:
        """That of the data set."""
        return sets.load(self.data, self.root, self.download).fingerprint

    def build(self, seed: int, width: float = 1.0) -> nn.Module:
        """A new network, initialised from `seed` alone; ValueError: see `ArrayTask`."""
        return build(self.name, self.model, self.arguments, self.widths, seed, width)

    def example(self) -> Tensor:
        """Two images of the training split, (2, C, H, W)."""
        return self._pixels(sets.load(self.data, self.root, self.download).splits["train"][:2])

    def batches(self, split: str, seed: int, start: int = 0) -> Iterator[Batch]:
        """Noisy images (B, C, H, W) and clean ones: `train` and `calibration` without end, `valid` and `test` whole.

        Every epoch is a new order of the images; what does not fill its last batch is left out. ValueError for an
        unknown split, and for a batch larger than the training split.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
        splits = sets.load(self.data, self.root, self.download).splits
        if split in SPLITS[:2]:
            return self._endless(splits["train"], split, seed, start)
        # Drawn for the split as a whole, so that the metric does not follow the size of batches.
        clean = self._pixels(splits[split])
        noisy = self._noisy(clean, generator(split, "noise"))
        return zip(*(part.split(self.evaluation_batch)[start:] for part in (noisy, clean)), strict=True)

    def loss(self, model: SparseModel, batch: Batch) -> Tensor:
        """The mean squared error."""
        inputs, targets = batch
        return nn.functional.mse_loss(model(inputs).flatten(1), targets.flatten(1))

    @torch.no_grad()
    def evaluate(self, model: SparseModel, split: str, device: torch.device) -> float:
        """The metric over all pixels of a split; the caller sets evaluation mode."""
        total, number = 0.0, 0
        for inputs, targets in self.batches(split, seed=0):
            error = model(inputs.to(device)).flatten(1).float() - targets.to(device).flatten(1)
            total += float(error.square().sum(dtype=torch.float64))
            number += targets.numel()
        error = total / number
        return error if self.metric == "mse" else -10 * math.log10(max(error, 1e-30))

    def describe(self) -> dict[str, Any]:
        """Everything but the recipe, for the record."""
        own = {"data": self.data, "noise": self.noise, "model": named(self.model), "arguments": dict(self.arguments)}
        return super().describe() | own

    def _endless(self, pool: Tensor, split: str, seed: int, start: int) -> Iterator[Batch]:
        for step, index in epochs(self.name, pool, self.recipe.batch, seed, split, start):
            clean = self._pixels(index)
            yield self._noisy(clean, generator(seed, split, "noise", step)), clean

    def _noisy(self, clean: Tensor, rng: torch.Generator) -> Tensor:
        return clean + self.noise * torch.randn(clean.shape, generator=rng)

    def _pixels(self, index: Tensor) -> Tensor:
        """Float32 from 0 to 1."""
        data = sets.load(self.data, self.root, self.download)
        images, peak = data.images[index], _peak(data)
        return (images * data.std + data.mean if images.is_floating_point() else images.float()) / peak


@lru_cache(maxsize=4)
def _peak(data: sets.Images) -> float:
    """The largest value of a pixel; images that are scaled already are looked through for it."""
    if not data.images.is_floating_point():
        return 255.0
    return float((data.images * data.std + data.mean).max().round())
