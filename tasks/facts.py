"""Facts of the data sets of images: shape, classes and training images, known without reading them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Facts:
    """Shape (C, H, W) of an image, the number of classes, and that of training images (0: unknown)."""

    shape: tuple[int, int, int]
    classes: int
    train: int = 0


FACTS = {
    "digits": Facts((1, 8, 8), 10, 1_000),
    "mnist5k": Facts((1, 28, 28), 10, 3_500),
    "mnist": Facts((1, 28, 28), 10, 55_000),
    "fashion_mnist": Facts((1, 28, 28), 10, 55_000),
    "kmnist": Facts((1, 28, 28), 10, 55_000),
    "svhn": Facts((3, 32, 32), 10, 65_932),
    "cifar10": Facts((3, 32, 32), 10, 45_000),
    "cifar100": Facts((3, 32, 32), 100, 45_000),
    "tiny_imagenet": Facts((3, 64, 64), 200),  # any number of its classes may be there
    "imagenet": Facts((3, 224, 224), 1000, 1_281_167),
}


def example(task: Any) -> Tensor:
    """One input of the task, (1, ...), of the right shape; without its data where the data set is one of `FACTS`.

    Raises:
        DataError: If the data has to be read, and is missing.
    """
    if facts := getattr(task, "facts", None):
        return torch.zeros(1, *facts.shape)
    name = getattr(task, "data", None)
    known = FACTS.get(name) if isinstance(name, str) and hasattr(task, "model") else None
    size = dict(getattr(task, "arguments", {})).get("img_size")
    if known and size in (None, known.shape[1]):
        return torch.zeros(1, *known.shape)
    return task.example()[:1]
