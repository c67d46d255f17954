"""Image classification from disk: files are decoded and augmented by worker processes while the network trains."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dstbench.suite.task import SPLITS, Batch, DataError
from dstbench.tasks import data as sets
from dstbench.tasks.data import folder, stream
from dstbench.tasks.data.stream import Streamed
from dstbench.tasks.seeded import epochs, generator
from dstbench.tasks.vision import ImageTask

Sample = tuple[int, int]  # an image, and the seed of its augmentation
MOST = 16  # workers that are used unless more are asked for


@dataclass(frozen=True)
class StreamedImages(ImageTask):
    """A network that classifies images read from disk, such as ImageNet's; batches are a function of (seed, step).

    Training images are random crops of a share `scale` of the image, scaled to `size`, mirrored where `flip` says,
    through `randaugment`, and with chance `erase` blanked in a random box, all by torchvision's transforms;
    evaluation scales the shorter side to `resize` and takes the central `size`. `interpolation` is bilinear or
    bicubic. `workers` processes decode (-1: one a core, at most 16; 0: none); they change no batch.
    """

    data: Any = "imagenet"
    size: int = 224
    resize: int = 256
    scale: tuple[float, float] = (0.08, 1.0)
    erase: float = 0.0
    interpolation: str = "bilinear"
    workers: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"{self.name}: interpolation is {self.interpolation!r}; give bilinear or bicubic")

    def prepare(self) -> None:
        """List and check the folder; DataError if it is missing, laid out otherwise, or has too many classes.

        Of at most 512 images the header is read; no image is decoded.
        """
        self._fits()

    def class_count(self) -> int:
        """That of the folder."""
        return len(self._set().classes)

    def fingerprint(self) -> str:
        """That of the folder, see `stream.index`."""
        return self._set().fingerprint

    def example(self) -> Tensor:
        """Two images of noise, (2, 3, size, size): nothing is read."""
        return torch.randn(2, 3, self.size, self.size, generator=generator(self.name, "example"))

    def batches(self, split: str, seed: int, start: int = 0) -> Iterator[Batch]:
        """Batches (B, 3, size, size), (B,), as of a VisionTask: starting at step k equals skipping k.

        Raises:
            ValueError: For an unknown split, and for a batch larger than the training split.
            DataError: For an image that cannot be decoded; the text names it.
        """
        data = self._set()
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
        if split in ("valid", "test"):
            order = data.splits[split].split(self.evaluation_batch)[start:]
            return self._loaded(data, ([(i, 0) for i in index.tolist()] for index in order), self._plain())
        if split == "calibration":
            return self._loaded(data, self._samples(data, split, seed, start), self._plain())
        return self._training(data, seed, start)

    def describe(self) -> dict[str, Any]:
        """As of any ImageTask; `workers` change nothing and are left out."""
        own = {key: getattr(self, key) for key in ("size", "resize", "scale", "erase", "interpolation")}
        return super().describe() | own

    def _set(self) -> Streamed:
        if isinstance(self.data, str):
            return sets.load(self.data, self.root, self.download)
        return stream.index(Path(self.data["folder"]).expanduser().absolute())

    def _training(self, data: Streamed, seed: int, start: int) -> Iterator[Batch]:
        batches = self._loaded(data, self._samples(data, "train", seed, start), self._augmenting())
        return (
            self._mixed(images, labels, len(data.classes), seed, step)
            for step, (images, labels) in enumerate(batches, start)
        )

    def _samples(self, data: Streamed, split: str, seed: int, start: int) -> Iterator[list[Sample]]:
        steps = epochs(self.name, data.splits["train"], self.recipe.batch, seed, split, start)
        return ([(i, _number(seed, split, step, slot)) for slot, i in enumerate(part.tolist())] for step, part in steps)

    def _loaded(
        self, data: Streamed, samples: Iterator[list[Sample]], transform: Callable[[Any], Tensor]
    ) -> Iterator[Batch]:
        """The batches of these samples, scaled, in their order."""
        workers = min(MOST, _cores()) if self.workers < 0 else self.workers
        loader = torch.utils.data.DataLoader(
            Files(data, transform), batch_sampler=samples, num_workers=workers, generator=generator("loader")
        )
        mean, std = (255 * torch.tensor(v)[:, None, None].to(self.device) for v in (stream.MEAN, stream.STD))
        try:
            for images, labels in loader:
                if self.device is not None:
                    images, labels = images.to(self.device), labels.to(self.device)
                yield images.float().sub_(mean).div_(std), labels
        except DataError as error:  # of a worker, with its traceback as text
            raise DataError(str(error).strip().rpartition("DataError: ")[2]) from None

    def _augmenting(self) -> Callable[[Any], Tensor]:
        from torchvision.transforms import v2

        kind = v2.InterpolationMode(self.interpolation)
        steps: list[Any] = [v2.RandomResizedCrop(self.size, self.scale, interpolation=kind)]
        steps += [v2.RandomHorizontalFlip()] * self.flip
        steps += [v2.RandAugment(*self.randaugment, interpolation=kind)] * bool(self.randaugment[0])
        steps += [v2.PILToTensor()]
        mean = [round(255 * value) for value in stream.MEAN]
        steps += [v2.RandomErasing(self.erase, value=mean)] * bool(self.erase)
        return v2.Compose(steps)

    def _plain(self) -> Callable[[Any], Tensor]:
        from torchvision.transforms import v2

        kind = v2.InterpolationMode(self.interpolation)
        return v2.Compose([v2.Resize(self.resize, interpolation=kind), v2.CenterCrop(self.size), v2.PILToTensor()])


class Files(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The images of a folder by (index, seed), each augmented as its seed says, whichever process decodes it."""

    def __init__(self, data: Streamed, transform: Callable[[Any], Tensor]) -> None:
        self.data, self.transform = data, transform

    def __getitem__(self, sample: Sample) -> tuple[Tensor, int]:
        index, seed = sample
        image = folder.picture(self.data.path(index))
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)  # torchvision's transforms draw from it alone
        try:
            return self.transform(image), int(self.data.labels[index])
        finally:
            torch.set_rng_state(state)


def _number(*key: int | str) -> int:
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
