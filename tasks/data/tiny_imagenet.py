"""Tiny ImageNet in its original layout, whole or any number of its classes."""

from __future__ import annotations

from pathlib import Path

import torch

from dstbench.suite.task import DataError
from dstbench.tasks.data import folder
from dstbench.tasks.data.folder import Listed
from dstbench.tasks.data.images import Images, digest, halves

NAME = "tiny-imagenet-200"
ADVICE = f"unpack {NAME}.zip, and give the folder that holds {NAME} with --data-root DIR"


def tiny_imagenet(root: Path, download: bool = False) -> Images:
    """Tiny ImageNet under `root`, `tiny-imagenet-200/{wnids.txt,train/<wnid>/images,val}`: 3x64x64 pixels.

    Its classes are the lines of `wnids.txt`, in sorted order. A fixed tenth of `train` is the valid split; `val`,
    with the labels of `val_annotations.txt`, is the test split, as usual: the labels of `test` are not public. The
    fingerprint is that of an image folder and of the labels of `val`.

    Raises:
        DataError: For what is missing or cannot be decoded, and label files that do not match images and folders.

    Reference: Le & Yang 2015, Tiny ImageNet Visual Recognition Challenge, Stanford CS231N.
    """
    place = root / NAME
    wnids = [line[0] for line in _lines(place / "wnids.txt")]
    if len(wnids) < 2 or len({*wnids}) != len(wnids):
        raise DataError(f"{place / 'wnids.txt'}: {len({*wnids})} classes in {len(wnids)} lines; {ADVICE}")
    left_out: list[Path] = []
    folders = folder.class_folders(place / "train", left_out)
    if differ := sorted({*wnids} ^ {path.name for path in folders}):
        raise DataError(
            f"{place}: wnids.txt and the folders of train differ in {len(differ)} classes: {', '.join(differ[:10])}; "
            f"{ADVICE}"
        )
    labels = {path.name: label for label, path in enumerate(folders)}
    boxes = {f"{path.name}_boxes.txt" for path in folders}
    files = {"train": folder.labelled(folders, left_out), "val": _validation(place / "val", labels, left_out)}
    folder.said(place, [path for path in left_out if path.name not in boxes])
    decoded, fingerprint = folder.tensors(place, files, size=64)
    fingerprint = digest(fingerprint, *(f"{path.name} {label}\n" for path, label in files["val"]))
    images, targets = (torch.cat(both) for both in zip(*decoded.values(), strict=True))
    train = len(files["train"])
    words = place / "words.txt"  # for the eyes alone
    names = dict(line for line in _lines(words) if len(line) == 2) if words.exists() else {}
    classes = tuple(names.get(wnid, wnid) for wnid in labels)
    return halves(images, targets, len(files["val"]), train // 10, classes, fingerprint)


def _validation(place: Path, labels: dict[str, int], left_out: list[Path]) -> Listed:
    """The images of `val` with the labels that its annotations give, each image once."""
    notes = place / "val_annotations.txt"
    found: dict[str, int] = {}
    for number, line in enumerate(_lines(notes), 1):
        if len(line) < 2 or line[1] not in labels:
            raise DataError(f"{notes}: line {number}, {' '.join(line)!r}: no file and class of wnids.txt; {ADVICE}")
        if found.setdefault(line[0], labels[line[1]]) != labels[line[1]]:
            raise DataError(f"{notes}: line {number}: another class for {line[0]} than above; {ADVICE}")
    images = folder.images_in(place / "images", left_out)
    if differ := sorted({path.name for path in images} ^ {*found}):
        some = ", ".join(differ[:10])
        raise DataError(f"{notes}: {len(differ)} names are no image of val/images, or the reverse: {some}; {ADVICE}")
    if not images:
        raise DataError(f"{place / 'images'}: no image; {ADVICE}")
    return [(path, found[path.name]) for path in images]


def _lines(path: Path) -> list[list[str]]:
    """The columns of each line that is not empty, separated by tabs."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; {ADVICE}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {ADVICE}") from error
    return [[cell.strip() for cell in line.split("\t")] for line in text.splitlines() if line.strip()]
