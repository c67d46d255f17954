"""A folder of your own images: `train`, `valid` and `test` as they are, or one folder of classes split by a hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from dstbench.suite.task import DataError
from dstbench.tasks.data import folder
from dstbench.tasks.data.folder import Listed
from dstbench.tasks.data.images import Images, digest, shuffled, statistics

SPLITS = {  # what a split may be called, in upper or lower case
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "val", "validation"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
HELD_OUT = 10  # one in so many images of a class is valid, and one test, where the folder does not say
LAYOUT = "give train/<class>/, val/<class>/ and test/<class>/, or one folder <class>/ for each class"


def load(path: Path, size: int = 0) -> Images:
    """The images of a folder, RGB, `size` pixels wide and high.

    The folder holds `train` and, as far as there are any, `valid` (or `val`) and `test`; or one folder for each class.
    Where there is no valid split, one in ten training images of each class, chosen by a hash of their names, is it;
    so is a test split. `train` and `val` without `test` are read as the field reads ImageNet: `val` is the test
    split. Images of another size or shape are cut to their central square and scaled, once: they are kept as one
    tensor file beside the folder, or in the cache folder.

    Args:
        path: The folder; it may be read-only.
        size: Pixels along each side; 0: the shorter side of the first training image.

    Returns:
        uint8 images (N, 3, size, size), their splits and the names of the classes.

    Raises:
        DataError: For a folder that is laid out otherwise or has one class alone, classes without images, classes that
            differ between splits, and what `folder.image` refuses.
    """
    found, names = listing(path)
    listed = [image for files in found.values() for image in files]
    size = size or min(folder.shape(listed[0][0]))
    decoded, fingerprint = folder.tensors(path, {"images": listed}, size, fit=True)
    images, labels = decoded["images"]
    parts = dict(zip(found, torch.arange(len(listed)).split([*map(len, found.values())]), strict=True))
    if set(parts) == {"train", "valid"}:
        parts["test"] = parts.pop("valid")
    parts = _carved(path, listed, parts)
    # In an order that does not follow the classes: a task may use the first images alone.
    splits = {split: parts[split][shuffled(len(parts[split]))] for split in ("train", "valid", "test")}
    fingerprint = digest(f"{fingerprint} {size}")
    return Images(images, labels, splits, *statistics(images, splits["train"]), fingerprint, names)


def listing(path: Path) -> tuple[dict[str, Listed], tuple[str, ...]]:
    """The image files of each split that the folder has, with labels, and the names of the classes.

    One folder of classes is all `train`. Raises as `load` does; no image is opened.
    """
    left_out: list[Path] = []
    places = splits(path)
    if places["train"] != path:
        left_out += [place for place in folder.listing(path) if place not in places.values()]
    folders = {split: folder.class_folders(place, left_out) for split, place in places.items()}
    names = {split: [place.name for place in found] for split, found in folders.items()}
    if len(names["train"]) < 2:
        several = ", ".join(names["train"]) or "none"
        raise DataError(f"{places['train']}: class folders: {several}; at least 2 are needed: {LAYOUT}")
    for split in names:
        if differ := sorted({*names["train"]} ^ {*names[split]}):
            raise DataError(f"{path}: {places['train'].name} and {places[split].name} differ in classes: {differ[:20]}")
    files = {split: folder.labelled(found, left_out) for split, found in folders.items()}
    folder.said(path, left_out)
    return files, tuple(names["train"])


def splits(path: Path) -> dict[str, Path]:
    """The folders of the splits `train`, `valid` and `test`, as far as there are any; the folder itself is `train`.

    Raises:
        DataError: For a folder that is missing, one split in two folders, and others without `train`.
    """
    found: dict[str, Path] = {}
    for place in folder.listing(path):
        split = SPLITS.get(place.name.lower(), "") if place.is_dir() else ""
        if split in found:
            raise DataError(f"{path}: holds both {found[split].name} and {place.name}; keep one of them")
        if split:
            found[split] = place
    if found and "train" not in found:
        raise DataError(f"{path}: {', '.join(place.name for place in found.values())} but no train; {LAYOUT}")
    return {split: found[split] for split in ("train", "valid", "test") if split in found} or {"train": path}


def _carved(path: Path, listed: Listed, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The index of each split, with those that are missing taken out of `train`, class by class."""
    missing = [split for split in ("valid", "test") if split not in parts]
    if not missing:
        return parts
    classes: dict[int, list[int]] = {}
    for index in parts["train"].tolist():
        classes.setdefault(listed[index][1], []).append(index)
    taken: dict[str, list[int]] = {"train": [], **{split: [] for split in missing}}
    for members in classes.values():
        if len(members) <= len(missing):
            first = listed[members[0]][0]
            raise DataError(
                f"{first.parent}: {len(members)} images, where at least {len(missing) + 1} are needed to take "
                f"{' and '.join(missing)} from them; add images, or give {' and '.join(missing)} folders of their own"
            )
        order = sorted(members, key=lambda index: _rank(path, listed[index][0]))
        each = max(1, len(members) // HELD_OUT)
        for split in missing:
            taken[split] += order[:each]
            order = order[each:]
        taken["train"] += order
    return {**parts, **{split: torch.tensor(sorted(index)) for split, index in taken.items()}}


def _rank(path: Path, image: Path) -> bytes:
    return hashlib.sha256(image.relative_to(path).as_posix().encode()).digest()
