"""A folder of JPEGs as a user has it, made in a moment, and a reader of folders for branches that have none."""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dstbench.suite.task import DataError

CLASSES = ("daisy", "rose", "tulip")
READER = "dstbench.tasks.data.folder"


def made(folder: Path, count: int = 20, size: tuple[int, int] = (24, 24), classes: tuple[str, ...] = CLASSES) -> Path:
    """`<folder>/<class>/<image>.jpg`, `count` a class: each class has a colour of its own, and noise."""
    rng = np.random.default_rng(0)
    for index, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 120, (*size, 3), dtype=np.uint8)
            pixels[..., index % 3] += 120
            Image.fromarray(pixels).save(folder / name / f"{number}.jpg")
    return folder


def reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make sure that there is a reader of folders: the real one, or the stand-in below."""
    try:
        importlib.import_module(READER)
    except ImportError:
        module: Any = ModuleType(READER)
        module.images = images
        monkeypatch.setitem(sys.modules, READER, module)


def images(path: Path, size: int | None = None) -> Any:
    """Of each ten images of a class one for valid and one for test."""
    from dstbench.tasks import data

    folders = sorted(p for p in path.iterdir() if p.is_dir())
    if not folders:
        raise DataError(f"{path}: no class folders")
    pixels, labels, parts, digest = [], [], [], hashlib.sha256()
    for label, folder in enumerate(folders):
        for number, file in enumerate(sorted(folder.iterdir())):
            image = Image.open(file).convert("RGB")
            pixels.append(np.asarray(image.resize((size, size)) if size else image))
            labels.append(label)
            parts.append(number % 10)
            digest.update(file.name.encode() + file.read_bytes())
    tensor, place = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), torch.tensor(parts)
    splits = {"train": (place > 1).nonzero().flatten(), "valid": (place == 0).nonzero().flatten()}
    splits["test"] = (place == 1).nonzero().flatten()
    found = data.Images(
        tensor, torch.tensor(labels), splits, *data.statistics(tensor, splits["train"]), digest.hexdigest()[:12]
    )
    object.__setattr__(found, "classes", tuple(folder.name for folder in folders))
    return found
