"""A folder of JPEGs as a user has it, made in a moment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("daisy", "rose", "tulip")


def made(folder: Path, train: int = 16, side: int = 24, classes: tuple[str, ...] = CLASSES) -> Path:
    """`<folder>/{train,valid,test}/<class>/<image>.jpg`: a class has a colour, and `train`, 2 and 2 images of it."""
    rng = np.random.default_rng(0)
    for split, count in {"train": train, "valid": 2, "test": 2}.items():
        for index, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 120, (side, side, 3), dtype=np.uint8)
                pixels[..., index % 3] += 120
                Image.fromarray(pixels).save(folder / split / name / f"{number}.jpg")
    return folder
