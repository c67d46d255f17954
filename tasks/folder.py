"""Image folders `<root>/{train,test}/<class>/<image>`: decoded once, then kept as one tensor file beside the folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from dstbench.suite.task import DataError

SUFFIXES = (".jpg", ".jpeg", ".png")
Split = tuple[Tensor, Tensor]


def read(root: Path, size: int, classes: int) -> tuple[Split, Split, str]:
    """The (images, labels) of train and test, uint8 (N, 3, size, size) and int64 (N,), and the fingerprint.

    Classes are numbered by their sorted names. DataError names what is missing, cannot be decoded, or is of another
    size. The tensor file `<root>-<fingerprint>.pt` is written where the folder allows it, and used when it is whole.
    """
    files = {split: _files(root / split, classes) for split in ("train", "test")}
    names = {split: [name for name, _ in _folders(root / split)] for split in files}
    if names["train"] != names["test"]:
        raise DataError(f"{root}: train and test differ in classes: {sorted({*names['train']} ^ {*names['test']})}")
    fingerprint = _fingerprint(root, [path for split in files.values() for path, _ in split])
    kept = root.with_name(f"{root.name}-{fingerprint}.pt")
    with suppress(Exception):  # a missing, torn or foreign file: decode again
        saved = torch.load(kept, weights_only=True, mmap=True)
        return tuple(saved["train"]), tuple(saved["test"]), fingerprint
    decoded = {split: _decode(listed, size) for split, listed in files.items()}
    with suppress(OSError):  # a read-only data root: the next process decodes again
        part = kept.with_suffix(f".{os.getpid()}.part")
        torch.save(decoded, part)
        part.replace(kept)
    return decoded["train"], decoded["test"], fingerprint


def _folders(split: Path) -> list[tuple[str, str]]:
    if not split.is_dir():
        raise DataError(f"{split}: no such folder; an image folder holds {split.parent.name}/{{train,test}}/<class>/")
    return sorted((entry.name, entry.path) for entry in os.scandir(split) if entry.is_dir())


def _files(split: Path, classes: int) -> list[tuple[os.DirEntry[str], int]]:
    """All images of a split with their labels, in the order of class and file name."""
    folders = _folders(split)
    if len(folders) != classes:
        raise DataError(
            f"{split}: {len(folders)} class folders where {classes} are expected; unpack the data set again"
        )
    found = []
    for label, (_, path) in enumerate(folders):
        images = sorted((e for e in os.scandir(path) if e.name.lower().endswith(SUFFIXES)), key=lambda e: e.name)
        if not images:
            raise DataError(f"{path}: no image ({', '.join(SUFFIXES)}); unpack the data set again")
        found += [(entry, label) for entry in images]
    return found


def _fingerprint(root: Path, entries: list[os.DirEntry[str]]) -> str:
    """12 hex digits over all names and sizes, and over the bytes of at most 512 files spread evenly."""
    sha = hashlib.sha256()
    every = -(-len(entries) // 512)
    for index, entry in enumerate(entries):
        sha.update(f"{os.path.relpath(entry.path, root)} {entry.stat().st_size}\n".encode())
        if index % every == 0:
            sha.update(Path(entry.path).read_bytes())
    return sha.hexdigest()[:12]


def _decode(entries: Iterable[tuple[os.DirEntry[str], int]], size: int) -> Split:
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    images, labels = [], []
    for entry, label in entries:
        try:
            with Image.open(entry.path) as image:
                images.append(pil_to_tensor(image.convert("RGB")))
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{entry.path}: cannot be decoded ({error}); unpack the data set again") from error
        if images[-1].shape != (3, size, size):
            raise DataError(f"{entry.path}: {tuple(images[-1].shape[1:])} pixels where {size}x{size} are expected")
        labels.append(label)
    return torch.stack(images), torch.tensor(labels)
