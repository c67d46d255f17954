"""Image classification: a timm model or factory on images in memory; batches are a function of (seed, step)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from dstbench.suite.task import SPLITS, Batch, Task
from dstbench.tasks import data as sets


@dataclass(frozen=True)
class VisionTask(Task):
    """A network that classifies the images of a data set.

    `model` is timm's name of a network or a factory, `arguments` go to it; `widths` names the arguments that a narrower
    or wider network scales, and what they must be multiples of; `data` is a name of `dstbench.tasks.data.LOADERS`;
    `images` keeps that many training images (0: all); `pad` and `flip` augment training by random crops of the
    zero-padded image and by mirroring; `evaluation_batch` is fixed by the task and does not change the metric.
    """

    model: str | Callable[..., nn.Module] = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    widths: Mapping[str, int] = field(default_factory=dict)
    data: str = "digits"
    images: int = 0
    pad: int = 0
    flip: bool = False
    evaluation_batch: int = 500

    def prepare(self) -> None:
        """Read and check the data; DataError if it is missing or corrupt."""
        self._data()

    def fingerprint(self) -> str:
        """That of the data set."""
        return self._data().fingerprint

    def build(self, seed: int, width: float = 1.0) -> nn.Module:
        """A new network, initialised from `seed` alone; the global generator is as before. ValueError: see `widths`."""
        if width != 1 and not self.widths:
            raise ValueError(f"{self.name}: the network has one width; name what to scale in the task's `widths`")
        arguments = {**self.arguments, **{k: scaled(self.arguments[k], width, m) for k, m in self.widths.items()}}
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)
        try:
            if callable(self.model):
                return self.model(**arguments)
            import timm

            return timm.create_model(self.model, pretrained=False, **arguments)
        finally:
            torch.set_rng_state(state)

    def example(self) -> Tensor:
        """Two images of the training split, (2, C, H, W)."""
        data = self._data()
        return data.scaled(data.images[data.splits["train"][:2]])

    def batches(self, split: str, seed: int, start: int = 0) -> Iterator[Batch]:
        """Batches (B, C, H, W), (B,): `train` and `calibration` without end, `valid` and `test` whole and in order.

        Every epoch of `train` is a new order of the images; what does not fill its last batch is left out. ValueError
        for an unknown split, and for a batch larger than the training split.
        """
        data = self._data()
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
        if split in ("train", "calibration"):
            return self._endless(data, split, seed, start)
        return self._whole(data, split, start)

    def describe(self) -> dict[str, Any]:
        """Everything but the recipe, for the record."""
        model = self.model if isinstance(self.model, str) else f"{self.model.__module__}:{self.model.__qualname__}"
        own = {key: getattr(self, key) for key in ("data", "images", "pad", "flip")}
        return super().describe() | own | {"model": model, "arguments": dict(self.arguments)}

    def _data(self) -> sets.Images:
        return sets.load(self.data, self.root, self.download)

    def _endless(self, data: sets.Images, split: str, seed: int, start: int) -> Iterator[Batch]:
        pool, size = data.splits["train"][: self.images or None], self.recipe.batch
        if len(pool) < size:
            raise ValueError(f"{self.name}: recipe.batch {size} is larger than the {len(pool)} training images")
        epoch, order = -1, pool
        for step in count(start):
            now, place = divmod(step, len(pool) // size)
            if now != epoch:
                epoch, order = now, pool[torch.randperm(len(pool), generator=generator(seed, split, "epoch", now))]
            index = order[place * size : (place + 1) * size]
            images = data.images[index]
            if split == "train" and (self.pad or self.flip):
                images = crop_flip(images, self.pad, self.flip, generator(seed, split, "augment", step))
            yield data.scaled(images), data.labels[index]

    def _whole(self, data: sets.Images, split: str, start: int) -> Iterator[Batch]:
        for index in data.splits[split].split(self.evaluation_batch)[start:]:
            yield data.scaled(data.images[index]), data.labels[index]


def scaled(value: Any, width: float, multiple: int) -> Any:
    """`width` times a number, or each of several: the nearest multiple of `multiple`, at least one of it."""
    if isinstance(value, tuple):
        return tuple(scaled(v, width, multiple) for v in value)
    return value if width == 1 else multiple * max(1, round(width * value / multiple))


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator that is a function of the key alone."""
    number = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big")
    return torch.Generator().manual_seed(number)


def crop_flip(images: Tensor, pad: int, flip: bool, rng: torch.Generator) -> Tensor:
    """Each image (of N, C, H, W) gets its own crop of the zero-padded image and, if `flip`, its own coin for mirroring.

    Reference: He et al. 2016, arXiv 1512.03385, section 4.2.
    """
    n, c, h, w = images.shape
    top, left = torch.randint(2 * pad + 1, (2, n, 1), generator=rng)
    rows, columns = top + torch.arange(h), left + torch.arange(w)
    if flip:
        columns = torch.where(torch.rand(n, 1, generator=rng) < 0.5, columns.flip(1), columns)
    padded = nn.functional.pad(images, (pad,) * 4)
    batch, channels = torch.arange(n)[:, None, None, None], torch.arange(c)[None, :, None, None]
    return padded[batch, channels, rows[:, None, :, None], columns[:, None, None, :]]
