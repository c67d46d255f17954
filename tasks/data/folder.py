"""Image files in folders of classes: decoded once, then kept as one tensor file beside the folder or in the cache."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from dstbench.suite.kernels import build
from dstbench.suite.task import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
CLUTTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found", "$recycle.bin"}
HOLDS = "an image folder holds {train,test}/<class>/<image>"
DECODER = 2  # raised when the same files give other pixels
TRANSPARENT = "has transparent pixels; lay it on a background, and save it without alpha"
Split = tuple[Tensor, Tensor]
Listed = list[tuple[Path, int]]  # images with their labels


def read(root: Path, size: int, classes: int) -> tuple[Split, Split, str]:
    """The (images, labels) of train and test, uint8 (N, 3, size, size) and int64 (N,), and the fingerprint.

    Classes are numbered by their sorted names. DataError names what is missing, cannot be read or decoded, or is of
    another size. What is no class folder and no image is left out, with a warning that names it. The tensor file
    `<root>-<fingerprint>.v2.pt` is written where the folder allows it, and used when it is whole.
    """
    left_out: list[Path] = []
    folders = {split: class_folders(root / split, left_out) for split in ("train", "test")}
    names = {split: {path.name for path in found} for split, found in folders.items()}
    for split, found in folders.items():
        if len(found) != classes:
            raise DataError(
                f"{root / split}: {len(found)} class folders where {classes} are expected "
                f"({', '.join(sorted(names[split])[:20]) or 'none'}); unpack the data set again, or move others away"
            )
    if names["train"] != names["test"]:
        raise DataError(f"{root}: train and test differ in classes: {sorted(names['train'] ^ names['test'])}")
    files = {split: labelled(found, left_out) for split, found in folders.items()}
    said(root, left_out)
    decoded, fingerprint = tensors(root, files, size)
    return decoded["train"], decoded["test"], fingerprint


def said(root: Path, left_out: list[Path]) -> None:
    """Warn of what was left out, if anything."""
    if left_out:
        some = ", ".join(str(path.relative_to(root)) for path in left_out[:5])
        warnings.warn(f"{root}: left out {len(left_out)}, as no image or class folder: {some}", stacklevel=3)


def tensors(root: Path, files: dict[str, Listed], size: int, fit: bool = False) -> tuple[dict[str, Split], str]:
    """The images and labels of each list of files under `root`, as in `read`, and their fingerprint.

    They are kept for later calls: beside the folder where that may be written, else in the cache folder.

    Args:
        root: The folder of the data set.
        files: Name of a list -> its images, with labels.
        size: Pixels along each side.
        fit: Whether images of other sizes are fitted to `size`; else they are errors. The fingerprint of a folder that
            is fitted is over the bytes of every file, as it is nobody's published data set.

    Raises:
        DataError: For what cannot be read or decoded, and for more than the memory holds.
    """
    fingerprint = _fingerprint(root, [path for listed in files.values() for path, _ in listed], whole=fit)
    need, free = sum(map(len, files.values())) * 3 * size**2, psutil.virtual_memory().available
    if need > free:
        raise DataError(
            f"{root}: {need / 2**30:.1f} GiB of pixels at {size}x{size}, where {free / 2**30:.1f} GiB of memory are "
            "free; choose a smaller size, or let a task of the kind StreamedImages read the folder from disk"
        )
    places = _places(root.with_name(f"{root.name}-{fingerprint}{f'-{size}' if fit else ''}.v{DECODER}.pt"))
    for kept in places:
        if saved := _saved(kept, files, size):
            return saved, fingerprint
    decoded = {split: _decode(listed, size, fit) for split, listed in files.items()}
    any(_save(decoded, kept) for kept in places)
    return decoded, fingerprint


def _places(beside: Path) -> list[Path]:
    """Where the tensor file may lie, best first."""
    with suppress(build.NotBuilt):  # no cache folder
        return [beside, build.cache() / "data" / beside.name]
    return [beside]


def _saved(kept: Path, files: dict[str, Listed], size: int) -> dict[str, Split] | None:
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


def _save(decoded: dict[str, Split], kept: Path) -> bool:
    """Keep the tensors for later calls, where folder and disk allow it; whether they do."""
    part = kept.with_suffix(f".{os.getpid()}.part")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save({**decoded, "sha256": {split: _sha256(images) for split, (images, _) in decoded.items()}}, part)
        part.replace(kept)
    except (OSError, RuntimeError):  # a read-only or full data root: the next process decodes again
        with suppress(OSError):
            part.unlink(missing_ok=True)
        return False
    return True


def listing(place: Path) -> list[Path]:
    """What lies in a folder, by name; DataError if it cannot be listed, or has a name that cannot be written down."""
    try:
        found = sorted(place.iterdir())
    except NotADirectoryError as error:
        raise DataError(f"{place}: no folder; {HOLDS}") from error
    except FileNotFoundError as error:
        raise DataError(f"{place}: no such folder; {HOLDS}") from error
    except OSError as error:
        raise DataError(f"{place}: cannot be listed ({error.strerror}); mend its rights, or unpack it again") from error
    for path in found:
        try:
            path.name.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{os.fsencode(path)!r}: this name is no UTF-8; rename the file, or remove it") from error
    return found


def clutter(path: Path) -> bool:
    """Whether it is of what systems and tools leave in folders, such as .DS_Store, ._x.png, .ipynb_checkpoints."""
    return path.name.startswith(".") or path.name.lower() in CLUTTER


def class_folders(split: Path, left_out: list[Path]) -> list[Path]:
    """The class folders of a split."""
    found = [(path, os.path.isdir(path) and not clutter(path)) for path in listing(split)]
    left_out += [path for path, wanted in found if not wanted]
    return [path for path, wanted in found if wanted]


def classes(split: Path) -> tuple[str, ...]:
    """The names of the classes of a split, in the order of their labels."""
    return tuple(path.name for path in class_folders(split, []))


def labelled(folders: list[Path], left_out: list[Path]) -> Listed:
    """All images of a split with their labels, in the order of class and file name."""
    images = []
    for label, folder in enumerate(folders):
        found = images_in(folder, left_out)
        if not found:
            raise DataError(f"{folder}: no image ({', '.join(SUFFIXES)}); unpack the data set again")
        images += [(path, label) for path in found]
    return images


def images_in(folder: Path, left_out: list[Path], above: tuple[str, ...] = ()) -> list[Path]:
    """The images in a folder and in those within."""
    images = []
    above = (*above, os.path.realpath(folder))
    for path in listing(folder):
        if path.suffix.lower() in SUFFIXES and not clutter(path):
            images.append(path)
        elif os.path.isdir(path) and not clutter(path) and os.path.realpath(path) not in above:
            images += images_in(path, left_out, above)
        else:
            left_out.append(path)
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


def _fingerprint(root: Path, paths: list[Path], whole: bool) -> str:
    """12 hex digits over all names and sizes, and over the bytes of all files or of at most 512 spread evenly."""
    sha = hashlib.sha256()
    every = 1 if whole else -(-len(paths) // 512)
    for index, path in enumerate(paths):
        sha.update(f"{path.relative_to(root)} {_size(path)}\n".encode())
        if index % every == 0:
            try:
                sha.update(path.read_bytes())
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror}); mend or remove it") from error
    return sha.hexdigest()[:12]


def _decode(listed: Listed, size: int, fit: bool = False) -> Split:
    images = torch.empty(len(listed), 3, size, size, dtype=torch.uint8)
    for place, (path, _) in zip(images, listed, strict=True):
        place.copy_(image(path, size, fit))
    return images, torch.tensor([label for _, label in listed])


def image(path: Path, size: int, fit: bool = False) -> Tensor:
    """An image file, uint8 (3, size, size): deeper channels are scaled, grey and CMYK are converted.

    With `fit`, its central square is scaled to `size`, as the camera held it. DataError names what cannot be decoded,
    is of another size, or is of a kind that has no plain meaning as RGB.
    """
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    if fit:
        return pil_to_tensor(_fitted(picture(path), size))
    with _decoding(path), Image.open(path, formats=FORMATS) as opened:
        if opened.size != (size, size):  # before it is decoded: it may be huge
            shape = "x".join(map(str, opened.size))
            raise DataError(f"{path}: {shape} pixels where {size}x{size} are expected; scale it, or remove it")
        return pil_to_tensor(_rgb(opened, path))


def shape(path: Path, content: bytes | None = None) -> tuple[int, int]:
    """Width and height of an image file, of which the header alone is read; DataError as in `image`."""
    from PIL import Image

    with _decoding(path), Image.open(path if content is None else BytesIO(content), formats=FORMATS) as opened:
        return opened.size


def picture(path: Path) -> Any:
    """An image file of any size as an RGB image of Pillow; DataError as in `image`."""
    from PIL import Image

    with _decoding(path), Image.open(path, formats=FORMATS) as opened:
        return _rgb(opened, path)


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """What decoders raise, as DataError."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: far more pixels than an image has; scale or remove it") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise DataError(f"{path}: cannot be decoded ({error}); unpack the data set again") from error


def _fitted(image: Any, size: int) -> Any:
    """The central square of a PIL image, turned as its camera says, `size` pixels wide and high."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square.resize((size, size), Image.Resampling.BILINEAR)


def _rgb(opened: Any, path: Path) -> Any:
    """The image as 8-bit RGB; DataError where that has no plain meaning."""
    from PIL import Image

    if "transparency" in opened.info and opened.mode == "RGB" and ";16" in str(opened.tile):  # empty once it is decoded
        raise DataError(f"{path}: 16-bit pixels of which one colour is transparent; save it without")
    opened.load()
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
