"""Images in memory, and what every set of them needs: statistics, a fixed order, checksums."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

CONSTANT = 1e-9  # variance of pixels: one other pixel among 10^9 gives as much, rounding a thousandth of it


@dataclass(frozen=True, eq=False)
class Images:
    """Images (N, C, H, W) with labels (N,), the indices of each split, and a fingerprint of the content.

    `scaled` brings uint8 images to zero mean and unit variance by `mean` and `std` (C, 1, 1), the statistics of the
    training split; floating images are so already. Splits are disjoint and the same for every seed. `classes` are the
    names of the labels, where the source has them.
    """

    images: Tensor
    labels: Tensor
    splits: Mapping[str, Tensor]
    mean: Tensor
    std: Tensor
    fingerprint: str
    classes: tuple[str, ...] = ()

    def scaled(self, images: Tensor) -> Tensor:
        """Float32, zero mean and unit variance per channel over the training split."""
        return images if images.is_floating_point() else images.float().sub_(self.mean).div_(self.std)

    @property
    def outputs(self) -> int:
        """How many classes there are: named ones, else the highest label and those below it."""
        return len(self.classes) or int(self.labels.max()) + 1

    def on(self, device: torch.device) -> Images:
        """The same images on a device, splits aside; themselves where they do not fit into half of its free memory."""
        if self.images.device == device:
            return self
        if device.type == "cuda" and self.images.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
            return self
        moved = {name: getattr(self, name).to(device) for name in ("images", "labels", "mean", "std")}
        return replace(self, **moved)


def halves(
    images: Tensor, labels: Tensor, tests: int, valid: int, classes: tuple[str, ...], fingerprint: str
) -> Images:
    """A set that is published as training images followed by `tests` test images, and has no valid split.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        tests: How many of the last images are the test split.
        valid: How many training images are held out, by a permutation that is the same in every run.
        classes: Names of the labels.
        fingerprint: 12 hex digits.
    """
    count = len(labels) - tests
    order = shuffled(count)
    splits = {"train": order[valid:], "valid": order[:valid], "test": torch.arange(count, len(labels))}
    return Images(images, labels, splits, *statistics(images, splits["train"]), fingerprint, classes)


def shuffled(count: int) -> Tensor:
    """A permutation of range(count) that is the same in every run: splits must not follow the seed."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def statistics(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel of the uint8 images (N, C, H, W) at `index`, each (C, 1, 1).

    The deviation of a constant channel is given as 1: scaled, the channel is 0.
    """
    count = len(index) * images.shape[2] * images.shape[3]
    total = square = torch.zeros(images.shape[1], dtype=torch.float64)
    for part in index.split(1000):
        chunk = images[part].int()
        total, square = total + chunk.sum((0, 2, 3)), square + chunk.square().sum((0, 2, 3))
    mean = total / count
    variance = square / count - mean**2
    deviation = variance.sqrt().where(variance > CONSTANT, torch.ones_like(variance))
    return mean.float()[:, None, None], deviation.float()[:, None, None]


def problem(path: Path, md5: str) -> str:
    """What is wrong with a file that should have this checksum, or nothing."""
    if not os.path.isfile(path):
        return "no file but something else" if os.path.exists(path) else "no such file"
    try:
        found = hashlib.md5(path.read_bytes()).hexdigest()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if found == md5 else f"its md5 is not {md5}: the file is corrupt"


def digest(*parts: str | bytes) -> str:
    """12 hex digits over strings or bytes one after the other."""
    return hashlib.sha256(b"".join(p.encode() if isinstance(p, str) else p for p in parts)).hexdigest()[:12]
