"""Images a second from disk, ours beside torchvision's: python -m benchmarks.loading

Two loops over the same folder of JPEGs take turns, each with the same workers, batch and augmentation (a random crop
scaled to `--size`, mirrored): batches of StreamedImages, and torchvision's usual loop, ImageFolder through a shuffled
DataLoader with RandomResizedCrop, RandomHorizontalFlip, ToTensor and Normalize. Both give normalised float32 batches.
Without `--data` the folder is made: noise of 500x375 pixels, ImageNet's mean size, scaled up from coarse grains, as
JPEG of quality 90. Each sample is a pass over the training images from the start of its workers on; printed are the
medians and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks import timing
from dstbench.suite.recipe import Recipe
from dstbench.tasks.data.stream import MEAN, STD
from dstbench.tasks.streaming import StreamedImages


def make(root: Path, classes: int, train: int, val: int, sides: tuple[int, int]) -> None:
    """An image folder `{train,val}/class<i>/<n>.JPEG` of so many images a class; sides vary between the two given."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            place = root / split / f"class{label}"
            place.mkdir(parents=True)
            for i in range(count):
                low, high = sides
                size = tuple(int(s) for s in rng.integers(low, high, 2, endpoint=True))
                coarse = rng.integers(0, 256, (max(2, size[1] // 4), max(2, size[0] // 4), 3), dtype=np.uint8)
                image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
                image.save(place / f"{i:04}.JPEG", quality=90)


def ours(root: Path, options: argparse.Namespace) -> Callable[[], Iterable[object]]:
    """The batches of a task of ours."""
    recipe = Recipe(steps=1, batch=options.batch, lr={"sgd": 0.1, "adam": 0.1})
    fields = {"size": options.size, "flip": True, "workers": options.workers, "data": {"folder": str(root)}}
    task = StreamedImages(name="loading", recipe=recipe, **fields)
    return lambda: task.batches("train", 0)


def torchvisions(root: Path, options: argparse.Namespace) -> Callable[[], Iterable[object]]:
    """The batches of the loop that torchvision's users write."""
    steps = [v2.RandomResizedCrop(options.size), v2.RandomHorizontalFlip(), v2.ToImage()]
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    data = ImageFolder(str(root / "train"), v2.Compose(steps))
    return lambda: torch.utils.data.DataLoader(
        data, options.batch, shuffle=True, num_workers=options.workers, drop_last=True
    )


def speed(batches: Callable[[], Iterable[object]], number: int, batch: int) -> float:
    """Images a second over so many batches, workers' start included."""
    start = time.perf_counter()
    found = sum(1 for _ in islice(batches(), number))
    return found * batch / (time.perf_counter() - start)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    made = timing.parser(__doc__, batch=64, rounds=5)
    made.set_defaults(threads=1)
    made.add_argument("--data", type=Path, help="folder with train/<class>/ and val/<class>/")
    made.add_argument("--images", type=timing.count, default=1200, help="training images of the folder that is made")
    made.add_argument("--size", type=timing.count, default=224)
    made.add_argument("--workers", type=timing.count, default=timing.cores())
    options = timing.begin(made, arguments)
    report = timing.Report(options)
    with tempfile.TemporaryDirectory() as place:
        root = options.data or Path(place, "images")
        if not options.data:
            make(
                root, classes=2, train=options.images // 2, val=2, sides=(375, 500) if options.size > 100 else (20, 30)
            )
        loops = {"torchvision": torchvisions(root, options), "dstbench": ours(root, options)}
        held = len(ImageFolder(str(root / "train")).samples) * 9 // 10
        number = held // options.batch
        if not number:
            made.error(f"--batch {options.batch}: more than the {held} training images; give fewer, or more --images")
        found: dict[str, list[float]] = {name: [] for name in loops}
        for _ in range(options.rounds):
            for name, loop in loops.items():
                found[name].append(speed(loop, number, options.batch))
        medians = {name: statistics.median(speeds) for name, speeds in found.items()}
        for name, value in medians.items():
            report.say(f"{name:12s} {value:8.1f} images/s  {options.workers} workers, {number} batches a sample")
        ratio = medians["dstbench"] / medians["torchvision"]
        report.say(f"ratio {ratio:.2f}")
        report.close(workers=options.workers, size=options.size, images_per_second=medians, ratio=ratio)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
