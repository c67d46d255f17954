"""Image folders that are read from disk while training, such as ImageNet: where each image is, and its label."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dstbench.suite.task import DataError
from dstbench.tasks.data import folder, own
from dstbench.tasks.data.images import shuffled

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, of pixels from 0 to 1, as everyone has them
LARGE = 100_000  # training images from which one in a hundred is valid, else one in ten
ADVICE = "give the folder that holds imagenet/{train,val}/<class>/ with --data-root DIR"


@dataclass(frozen=True, eq=False)
class Streamed:
    """Image files under `root`: their `names` (N,), bytes relative to it; labels (N,); the indices of each split."""

    root: Path
    names: np.ndarray
    labels: Tensor
    splits: Mapping[str, Tensor]
    classes: tuple[str, ...]
    fingerprint: str

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.root / os.fsdecode(self.names[index])


def imagenet(root: Path, download: bool = False) -> Streamed:
    """ImageNet under `root`, `imagenet/{train,val}/<class>/<image>`: one in a hundred of train is valid; val is test.

    The header of at most 512 images is checked: another that cannot be decoded ends the run that meets it, with its
    name.

    Raises:
        DataError: For a missing folder, fewer than two classes, and classes that are empty or differ.

    Reference: Russakovsky et al. 2015, arXiv 1409.0575, ILSVRC2012.
    """
    if not (root / "imagenet").is_dir():
        raise DataError(f"ImageNet: {root / 'imagenet'}: no such folder; {ADVICE}")
    return index(root / "imagenet")


@cache
def index(path: Path) -> Streamed:
    """The images of a folder laid out as in `own.load`, listed and not read; nested folders are left out.

    Where there is no valid split, a fixed share of the training images is it: one in a hundred of 100,000 and more,
    else one in ten. `train` and `val` without `test`: `val` is the test split. The fingerprint is over all names, and
    over the bytes of at most 512 files spread evenly.
    """
    places = own.splits(path)
    if set(places) == {"train", "valid"}:
        places["test"] = places.pop("valid")
    if "test" not in places:
        raise DataError(
            f"{path}: no val and no test among its folders; give val/<class>/ or test/<class>/ beside train/<class>/"
        )
    classes = folder.classes(places["train"])
    if len(classes) < 2:
        raise DataError(f"{places['train']}: class folders: {', '.join(classes) or 'none'}; at least 2 are needed")
    names: list[bytes] = []
    labels: list[int] = []
    parts, left_out = {}, 0
    for split, place in places.items():
        if differ := sorted({*classes} ^ {*folder.classes(place)}):
            raise DataError(f"{path}: {places['train'].name} and {place.name} differ in classes: {differ[:20]}")
        begin = len(names)
        for label, name in enumerate(classes):
            found, other = _images(place / name)
            left_out += other
            prefix = os.fsencode(f"{place.name}/{name}/")
            names += [prefix + file for file in found]
            labels += [label] * len(found)
        parts[split] = torch.arange(begin, len(names))
    if left_out:
        warnings.warn(f"{path}: left out {left_out} entries of class folders that are no images", stacklevel=2)
    if "valid" not in parts:
        train = parts["train"][shuffled(len(parts["train"]))]
        held = max(1, len(train) // (100 if len(train) >= LARGE else 10))
        parts |= {"valid": train[:held], "train": train[held:]}
    return Streamed(path, np.array(names), torch.tensor(labels), parts, classes, _fingerprint(path, names))


def _images(place: Path) -> tuple[list[bytes], int]:
    """The names of the images in a folder, sorted, and how many other entries it has."""
    try:
        entries = os.listdir(os.fsencode(place))
    except OSError as error:
        raise DataError(f"{place}: cannot be listed ({error.strerror}); mend its rights, or unpack it again") from error
    endings = tuple(os.fsencode(suffix) for suffix in folder.SUFFIXES)
    found = sorted(entry for entry in entries if entry.lower().endswith(endings) and not entry.startswith(b"."))
    if not found:
        raise DataError(f"{place}: no image ({', '.join(folder.SUFFIXES)}); unpack the data set again")
    return found, len(entries) - len(found)


def _fingerprint(root: Path, names: list[bytes]) -> str:
    sha = hashlib.sha256(b"\n".join(names))
    for name in names[:: -(-len(names) // 512)]:
        path = root / os.fsdecode(name)
        try:
            sha.update(content := path.read_bytes())
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); mend or remove it") from error
        folder.shape(path, content)
    return sha.hexdigest()[:12]
