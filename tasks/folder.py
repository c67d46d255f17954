"""Image folders `<root>/{train,test}/<class>/<image>`: decoded once, then kept as one tensor file beside the folder."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dstbench.suite.task import DataError

SUFFIXES = (".jpg", ".jpeg", ".png")
CLUTTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found", "$recycle.bin"}
DECODER = 2  # raised when the same files give other pixels
TRANSPARENT = "has transparent pixels; lay it on a background, and save it without alpha"
Split = tuple[Tensor, Tensor]


def read(root: Path, size: int, classes: int) -> tuple[Split, Split, str]:
    """The (images, labels) of train and test, uint8 (N, 3, size, size) and int64 (N,), and the fingerprint.

    Classes are numbered by their sorted names. DataError names what is missing, cannot be read or decoded, or is of
    another size. What is no class folder and no image is left out, with a warning that names it. The tensor file
    `<root>-<fingerprint>.v2.pt` is written where the folder allows it, and used when it is whole.
    """
    left_out: list[Path] = []
    folders = {split: _folders(root / split, left_out) for split in ("train", "test")}
    names = {split: {path.name for path in found} for split, found in folders.items()}
    for split, found in folders.items():
        if len(found) != classes:
            raise DataError(
                f"{root / split}: {len(found)} class folders where {classes} are expected "
                f"({', '.join(sorted(names[split])[:20]) or 'none'}); unpack the data set again, or move others away"
            )
    if names["train"] != names["test"]:
        raise DataError(f"{root}: train and test differ in classes: {sorted(names['train'] ^ names['test'])}")
    files = {split: _files(found, left_out) for split, found in folders.items()}
    if left_out:
        some = ", ".join(str(path.relative_to(root)) for path in left_out[:5])
        warnings.warn(f"{root}: left out {len(left_out)}, as no image or class folder: {some}", stacklevel=2)
    fingerprint = _fingerprint(root, [path for split in files.values() for path, _ in split])
    kept = root.with_name(f"{root.name}-{fingerprint}.v{DECODER}.pt")
    if saved := _saved(kept, files, size):
        return saved["train"], saved["test"], fingerprint
    decoded = {split: _decode(listed, size) for split, listed in files.items()}
    _save(decoded, kept)
    return decoded["train"], decoded["test"], fingerprint


def _saved(kept: Path, files: dict[str, list[tuple[Path, int]]], size: int) -> dict[str, Split] | None:
    """The tensors of an earlier call, or None where the file is missing, torn or of something else."""
    if not os.path.isfile(kept):
        return None
    try:
        saved = torch.load(kept, weights_only=True, mmap=True)
        found = {split: (saved[split][0], saved[split][1]) for split in files}
        for split, listed in files.items():
            images, labels = found[split]
            whole = images.dtype == torch.uint8 and images.shape == (len(listed), 3, size, size)
            if not whole or labels.tolist() != [label for _, label in listed]:
                return None
            if saved["sha256"][split] != _sha256(images):
                return None
    except Exception:  # whatever lies there: decode again
        return None
    return found


def _sha256(images: Tensor) -> str:
    return hashlib.sha256(images.numpy().data).hexdigest()


def _save(decoded: dict[str, Split], kept: Path) -> None:
    """Keep the tensors for later calls, where folder and disk allow it."""
    part = kept.with_suffix(f".{os.getpid()}.part")
    try:
        torch.save({**decoded, "sha256": {split: _sha256(images) for split, (images, _) in decoded.items()}}, part)
        part.replace(kept)
    except (OSError, RuntimeError):  # a read-only or full data root: the next process decodes again
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _listing(place: Path) -> list[Path]:
    """What lies in a folder, by name; DataError if it cannot be listed, or has a name that cannot be written down."""
    try:
        found = sorted(place.iterdir())
    except NotADirectoryError as error:
        raise DataError(f"{place}: no folder; an image folder holds {{train,test}}/<class>/<image>") from error
    except FileNotFoundError as error:
        raise DataError(f"{place}: no such folder; an image folder holds {{train,test}}/<class>/<image>") from error
    except OSError as error:
        raise DataError(f"{place}: cannot be listed ({error.strerror}); mend its rights, or unpack it again") from error
    for path in found:
        try:
            path.name.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{os.fsencode(path)!r}: this name is no UTF-8; rename the file, or remove it") from error
    return found


def _clutter(path: Path) -> bool:
    """Whether it is of what systems and tools leave in folders, such as .DS_Store, ._x.png, .ipynb_checkpoints."""
    return path.name.startswith(".") or path.name.lower() in CLUTTER


def _folders(split: Path, left_out: list[Path]) -> list[Path]:
    """The class folders of a split."""
    found = [(path, os.path.isdir(path) and not _clutter(path)) for path in _listing(split)]
    left_out += [path for path, wanted in found if not wanted]
    return [path for path, wanted in found if wanted]


def _files(folders: list[Path], left_out: list[Path]) -> list[tuple[Path, int]]:
    """All images of a split with their labels, in the order of class and file name."""
    images = []
    for label, folder in enumerate(folders):
        found = [(path, path.suffix.lower() in SUFFIXES and not _clutter(path)) for path in _listing(folder)]
        left_out += [path for path, wanted in found if not wanted]
        if not any(wanted for _, wanted in found):
            raise DataError(f"{folder}: no image ({', '.join(SUFFIXES)}); unpack the data set again")
        images += [(path, label) for path, wanted in found if wanted]
    return images


def _size(path: Path) -> int:
    """Bytes of an image; DataError if it is no file, or cannot be looked at."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        if not path.is_symlink():
            raise DataError(f"{path}: went while the folder was read; run again when nothing changes it") from error
        target = os.readlink(path)
        raise DataError(f"{path}: a link to {target!r}, which does not exist; mend or remove the link") from error
    except OSError as error:  # rights, a circle of links
        raise DataError(f"{path}: cannot be read ({error.strerror}); mend or remove it") from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: a {_kind(status.st_mode)} with the name of an image; remove it")
    return status.st_size


def _kind(mode: int) -> str:
    kinds = {stat.S_ISDIR: "folder", stat.S_ISFIFO: "pipe", stat.S_ISSOCK: "socket"}
    return next((name for is_it, name in kinds.items() if is_it(mode)), "device")


def _fingerprint(root: Path, paths: list[Path]) -> str:
    """12 hex digits over all names and sizes, and over the bytes of at most 512 files spread evenly."""
    sha = hashlib.sha256()
    every = -(-len(paths) // 512)
    for index, path in enumerate(paths):
        sha.update(f"{path.relative_to(root)} {_size(path)}\n".encode())
        if index % every == 0:
            try:
                sha.update(path.read_bytes())
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror}); mend or remove it") from error
    return sha.hexdigest()[:12]


def _decode(paths: Iterable[tuple[Path, int]], size: int) -> Split:
    images, labels = [], []
    for path, label in paths:
        images.append(image(path, size))
        labels.append(label)
    return torch.stack(images), torch.tensor(labels)


def image(path: Path, size: int) -> Tensor:
    """An image file, uint8 (3, size, size): deeper channels are scaled, grey and CMYK are converted.

    DataError names what cannot be decoded, is of another size, or is of a kind that has no plain meaning as RGB.
    """
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG")) as opened:
                if opened.size != (size, size):  # before it is decoded: it may be huge
                    shape = "x".join(map(str, opened.size))
                    raise DataError(f"{path}: {shape} pixels where {size}x{size} are expected; scale it, or remove it")
                if "transparency" in opened.info and opened.mode == "RGB" and ";16" in str(opened.tile):
                    raise DataError(f"{path}: 16-bit pixels of which one colour is transparent; save it without")
                opened.load()
                return pil_to_tensor(_rgb(opened, path))
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: far more pixels than the {size}x{size} expected; remove it") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise DataError(f"{path}: cannot be decoded ({error}); unpack the data set again") from error


def _rgb(opened: Any, path: Path) -> Any:
    """The image as 8-bit RGB; DataError where that has no plain meaning."""
    from PIL import Image

    if opened.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip at 255
        values = np.asarray(opened).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"{path}: values from {values.min()} to {values.max()}, where 0 to 65535 are expected")
        if "transparency" in opened.info and (values == opened.info["transparency"]).any():
            raise DataError(f"{path}: {TRANSPARENT}")
        opened = Image.fromarray(np.round(values / 257).astype(np.uint8))
    elif opened.mode not in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LA", "PA", "RGBA"):
        raise DataError(f"{path}: pixels of mode {opened.mode!r}, which have no plain meaning as RGB; convert it")
    if "A" in opened.mode or "transparency" in opened.info:
        opened = opened.convert("RGBA")
        if opened.getextrema()[3][0] < 255:
            raise DataError(f"{path}: {TRANSPARENT}")
    return opened.convert("RGB")
