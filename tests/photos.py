"""A folder of JPEGs as a user has it, made in a moment, and a reader of folders for branches that have none."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dstbench.suite.task import DataError
from dstbench.tasks import data

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


def reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make sure that folders can be read: by `dstbench.tasks.data.load`, or by the stand-in below."""
    if hasattr(data, "names"):
        return
    named, own = data.load, cache(images)

    def load(name: Any, root: Any = None, download: bool = False) -> Any:
        if isinstance(name, Mapping):
            return own(Path(name["folder"]), name.get("size", 0))
        return named(name, root, download)

    monkeypatch.setattr(data, "load", load)


def images(path: Path, size: int = 0) -> Any:
    """What `made` has made."""
    if not (path / "train").is_dir():
        raise DataError(f"{path}: no class folders")
    names = sorted(folder.name for folder in (path / "train").iterdir())
    pixels, labels, splits, digest = [], list[int](), {}, hashlib.sha256()
    for split in ("train", "valid", "test"):
        before = len(labels)
        for file in sorted((path / split).glob("*/*")):
            image = Image.open(file)
            pixels.append(np.asarray(image.resize((size, size)) if size else image))
            labels.append(names.index(file.parent.name))
            digest.update(file.read_bytes())
        splits[split] = torch.arange(before, len(labels))
    tensor = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    mean, deviation = data.statistics(tensor, splits["train"])
    found = data.Images(tensor, torch.tensor(labels), splits, mean, deviation, digest.hexdigest()[:12])
    object.__setattr__(found, "classes", tuple(names))
    return found
