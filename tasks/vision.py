"""Image classification: a timm model or factory on images in memory; batches are a function of (seed, step)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from dstbench.suite.task import SPLITS, Batch, DataError, Task
from dstbench.tasks import data as sets
from dstbench.tasks.augment import BINS, crop_flip, cutout, mixed, rand_augment
from dstbench.tasks.seeded import Factory, build, epochs, generator, named

if TYPE_CHECKING:
    from dstbench.suite.model import SparseModel


@dataclass(frozen=True)
class ImageTask(Task):
    """A network that classifies images: what images in memory and images on disk share.

    `model` is timm's name of a network or a factory, `arguments` go to it; `widths` names the arguments that a narrower
    or wider network scales, and what they must be multiples of; `data` is a name of `dstbench.tasks.data.names()`, or
    `{"folder": path, "size": pixels}` for images of your own.

    `flip` mirrors a training image with a chance of a half. `randaugment` (operations, magnitude of 0 to 30), then
    `mixup` and `cutmix` (α of their Beta distribution), with which the share `mixing` of batches is mixed: their
    targets are soft. `top5` asks for the share of images whose class is among the five likeliest, as a second metric.
    `evaluation_batch` is fixed by the task and does not change the metric. `device` is where images that fit live; no
    part of identity.
    """

    model: Factory = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    widths: Mapping[str, int] = field(default_factory=dict)
    data: str | Mapping[str, Any] = "digits"
    flip: bool = False
    randaugment: tuple[int, int] = (0, 0)
    mixup: float = 0.0
    cutmix: float = 0.0
    mixing: float = 1.0
    top5: bool = False
    evaluation_batch: int = 500
    device: torch.device | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        operations, magnitude = self.randaugment
        for name, good, wanted in (
            ("randaugment", operations >= 0 and 0 <= magnitude <= BINS, f"(operations, magnitude of 0 to {BINS})"),
            ("mixup", self.mixup >= 0, "an α, or 0 for none"),
            ("cutmix", self.cutmix >= 0, "an α, or 0 for none"),
            ("mixing", 0 <= self.mixing <= 1, "a share of the batches in [0, 1]"),
        ):
            if not good:
                raise ValueError(f"{self.name}: {name} is {getattr(self, name)}; give {wanted}")

    def on(self, device: torch.device) -> Self:
        """The same task with its images on `device`, where they fit."""
        return replace(self, device=device)

    def class_count(self) -> int:
        """How many classes the data has; DataError where it is missing."""
        raise NotImplementedError

    @property
    def outputs(self) -> int:
        """How many classes the network tells apart: as arguments or the factory's default say; 0 where none does."""
        for name in ("num_classes", "outputs"):
            if name in self.arguments:
                return int(self.arguments[name])
        if isinstance(self.model, str):
            return 1000
        given = inspect.signature(self.model).parameters.get("num_classes")
        return given.default if given and isinstance(given.default, int) else 0

    def judged(self) -> dict[str, Any]:
        """As in `Task`; where the data has fewer classes than the network, chance is one in those and no target is."""
        found, here = super().judged(), self.class_count()
        return found | {"chance": 1 / here, "target": None} if here < self.outputs else found

    def loss(self, model: SparseModel, batch: Batch) -> Tensor:
        """Cross entropy; soft targets of fewer classes than the network has are zero for the others."""
        inputs, targets = batch
        outputs = model(inputs)
        if targets.dim() == 2:
            targets = nn.functional.pad(targets, (0, outputs.shape[-1] - targets.shape[-1]))
        return nn.functional.cross_entropy(outputs, targets, label_smoothing=self.recipe.label_smoothing)

    def build(self, seed: int, width: float = 1.0) -> nn.Module:
        """A new network, initialised from `seed` alone; the global generator is as before. ValueError: see `widths`."""
        return build(self.name, self.model, self.arguments, self.widths, seed, width)

    @torch.no_grad()
    def further(self, model: SparseModel, split: str, device: torch.device) -> dict[str, float]:
        """`top5` where the task asks for it: the share of images whose class is among the five likeliest."""
        if not self.top5:
            return {}
        total = right = 0
        for inputs, targets in self.batches(split, seed=0):
            outputs = model(inputs.to(device))
            best = outputs.topk(min(5, outputs.shape[-1])).indices
            right += int((best == targets.to(device)[:, None]).any(-1).sum())
            total += len(targets)
        return {"top5": right / total}

    def describe(self) -> dict[str, Any]:
        """Everything but the recipe, for the record; augmentations that the task has not are left out."""
        added = ("randaugment", "mixup", "cutmix", "mixing", "top5")
        own = {key: getattr(self, key) for key in added if getattr(self, key) != getattr(ImageTask, key)}
        data = self.data if isinstance(self.data, str) else {k: _plain(v) for k, v in self.data.items()}
        own |= {"data": data, "flip": self.flip, "model": named(self.model), "arguments": dict(self.arguments)}
        return super().describe() | own

    def _fits(self) -> None:
        """Read the data; DataError where it has more classes than the network."""
        here = self.class_count()
        if 0 < self.outputs < here:
            raise DataError(
                f"{self.name}: {self.data} has {here} classes, and the network tells {self.outputs} apart; give it the "
                "argument num_classes, or a folder with fewer"
            )

    def _mixed(self, images: Tensor, labels: Tensor, classes: int, seed: int, step: int) -> Batch:
        """A training batch, mixed where the task says so."""
        if not (self.mixup or self.cutmix):
            return images, labels
        return mixed(images, labels, classes, self.mixup, self.cutmix, self.mixing, (seed, "train", "mix", step))


@dataclass(frozen=True)
class VisionTask(ImageTask):
    """A network that classifies the images of a data set in memory.

    `images` keeps that many training images (0: all); `pad` augments training by random crops of the zero-padded
    image, `cutout` by a square of that side that is blanked; see ImageTask for the others. On a GPU, images that fit
    live there and are augmented there.
    """

    images: int = 0
    pad: int = 0
    cutout: int = 0

    def prepare(self) -> None:
        """Read and check the data; DataError if it is missing or corrupt, or has more classes than the network."""
        self._fits()

    def class_count(self) -> int:
        """That of the data set."""
        return self._set().outputs

    def fingerprint(self) -> str:
        """That of the data set."""
        return self._set().fingerprint

    def example(self) -> Tensor:
        """Two images of the training split, (2, C, H, W)."""
        data = self._set()
        return data.scaled(data.images[data.splits["train"][:2]])

    def batches(self, split: str, seed: int, start: int = 0) -> Iterator[Batch]:
        """Batches (B, C, H, W), (B,): `train` and `calibration` without end, `valid` and `test` whole and in order.

        Every epoch of `train` is a new order of the images; what does not fill its last batch is left out. With mixup
        or cutmix its targets are (B, classes), probabilities. ValueError for an unknown split, and for a batch larger
        than the training split.
        """
        data = self._data()
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
        if split in ("train", "calibration"):
            return self._endless(data, split, seed, start)
        return self._whole(data, split, start)

    def describe(self) -> dict[str, Any]:
        """As of any ImageTask."""
        own = {"images": self.images, "pad": self.pad, **({"cutout": self.cutout} if self.cutout else {})}
        return super().describe() | own

    def _set(self) -> sets.Images:
        data = sets.load(self.data, self.root, self.download)
        if self.randaugment[0] and data.images.is_floating_point():
            raise ValueError(f"{self.name}: randaugment needs 8-bit images; those of {self.data!r} are floating ones")
        return data

    def _data(self) -> sets.Images:
        data = self._set()
        return data if self.device is None else _placed(data, self.device)

    def _endless(self, data: sets.Images, split: str, seed: int, start: int) -> Iterator[Batch]:
        pool = data.splits["train"][: self.images or None]
        outputs = data.outputs if self.mixup or self.cutmix else 0
        for step, index in epochs(self.name, pool, self.recipe.batch, seed, split, start):
            place = index.to(data.labels.device)
            images, labels = data.images[place], data.labels[place]
            if split == "calibration":
                yield data.scaled(images), labels
            else:
                yield self._mixed(self._augmented(data, images, seed, step), labels, outputs, seed, step)

    def _augmented(self, data: sets.Images, images: Tensor, seed: int, step: int) -> Tensor:
        """Training images, augmented and scaled."""
        if self.pad or self.flip:
            images = crop_flip(images, self.pad, self.flip, generator(seed, "train", "augment", step))
        if self.randaugment[0]:
            images = rand_augment(images, *self.randaugment, generator(seed, "train", "operations", step))
        images = data.scaled(images)
        return cutout(images, self.cutout, generator(seed, "train", "cutout", step)) if self.cutout else images

    def _whole(self, data: sets.Images, split: str, start: int) -> Iterator[Batch]:
        for index in data.splits[split].split(self.evaluation_batch)[start:]:
            place = index.to(data.labels.device)
            yield data.scaled(data.images[place]), data.labels[place]


@lru_cache(maxsize=2)
def _placed(data: sets.Images, device: torch.device) -> sets.Images:
    return data.on(device)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
