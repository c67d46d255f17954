"""Tiny ImageNet in its original layout: any number of classes, labels of val, and files that do not match."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dstbench.suite.task import DataError
from dstbench.tasks.data.tiny_imagenet import tiny_imagenet

ARCHIVE = Path(__file__).parents[2] / "shared" / "data" / "tiny-imagenet-20.tar.xz"
WNIDS = ("n03", "n01", "n02")  # the file's order is not the sorted one


@pytest.fixture
def place(tmp_path) -> Path:
    """Three classes, 10 training images each, 6 of val whose red tells their class."""
    root = tmp_path / "tiny-imagenet-200"
    notes = []
    for wnid in WNIDS:
        images = root / "train" / wnid / "images"
        images.mkdir(parents=True)
        (images.parent / f"{wnid}_boxes.txt").write_text("")
        for i in range(10):
            Image.new("RGB" if i else "L", (64, 64)).save(images / f"{wnid}_{i}.JPEG")
    (root / "val" / "images").mkdir(parents=True)
    for i in range(6):
        Image.new("RGB", (64, 64), (80 * (i % 3), 0, 0)).save(root / "val" / "images" / f"val_{i}.JPEG", quality=100)
        notes.append(f"val_{i}.JPEG\tn0{i % 3 + 1}\t0\t0\t63\t63\n")
    (root / "val" / "val_annotations.txt").write_text("".join(notes))
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (root / "words.txt").write_text("n01\tgoldfish\nn02\tbullfrog, frog\nn09\telk\n")
    (root / "test" / "images").mkdir(parents=True)  # without labels, and left alone
    return root


def test_labels_are_those_of_folders_and_annotations(place, recwarn) -> None:
    found = tiny_imagenet(place.parent)
    assert found.images.shape == (36, 3, 64, 64) and found.classes == ("goldfish", "bullfrog, frog", "n03")
    assert {s: len(i) for s, i in found.splits.items()} == {"train": 27, "valid": 3, "test": 6}
    assert found.labels[:30].tolist() == [c for c in range(3) for _ in range(10)]
    test = found.splits["test"]
    assert (found.images[test, 0, 0, 0].int() - 80 * found.labels[test]).abs().max() < 5
    assert not recwarn


def test_labels_of_val_are_part_of_the_fingerprint_and_words_are_not_needed(place) -> None:
    was = tiny_imagenet(place.parent)
    notes = place / "val" / "val_annotations.txt"
    text = notes.read_text().replace("\tn01", "\tx").replace("\tn02", "\tn01").replace("\tx", "\tn02")
    notes.write_text(text)
    (place / "words.txt").unlink()
    now = tiny_imagenet(place.parent)
    assert was.labels.tolist() != now.labels.tolist() and was.fingerprint != now.fingerprint
    assert now.classes == ("n01", "n02", "n03")


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda p: shutil.rmtree(p), r"wnids.txt: no such file; unpack tiny-imagenet-200.zip.*--data-root DIR"),
        (lambda p: (p / "wnids.txt").write_text("n01\nn01\n"), "wnids.txt: 1 classes in 2 lines"),
        (lambda p: shutil.rmtree(p / "train" / "n02"), "wnids.txt and the folders of train differ in 1 classes: n02"),
        (lambda p: (p / "wnids.txt").write_bytes(b"n\xff1\n"), r"wnids.txt: cannot be read"),
        (lambda p: (p / "val" / "val_annotations.txt").unlink(), "val_annotations.txt: no such file"),
        (lambda p: note(p, "val_0.JPEG\tn07\n"), "line 7, 'val_0.JPEG n07': no file and class of wnids.txt"),
        (lambda p: note(p, "val_0.JPEG\n"), "line 7, 'val_0.JPEG': no file and class"),
        (lambda p: note(p, "val_0.JPEG\tn02\n"), "line 7: another class for val_0.JPEG than above"),
        (lambda p: note(p, "val_9.JPEG\tn02\n"), "1 names are no image of val/images, or the reverse: val_9.JPEG"),
        (lambda p: (p / "val" / "images" / "val_3.JPEG").rename(p / "x"), "1 names are no image.*val_3.JPEG"),
        (lambda p: Image.new("L", (9, 9)).save(p / "val" / "images" / "val_3.JPEG"), "val_3.JPEG: 9x9 pixels where 64"),
    ],
)
def test_what_does_not_match_is_an_error_that_names_it(place, spoil, text: str) -> None:
    spoil(place)
    with pytest.raises(DataError, match=text):
        tiny_imagenet(place.parent)


def note(place: Path, line: str) -> None:
    with (place / "val" / "val_annotations.txt").open("a") as file:
        file.write(line)


@pytest.mark.slow
@pytest.mark.skipif(not ARCHIVE.exists(), reason=f"{ARCHIVE} is missing")
def test_twenty_real_classes(tmp_path) -> None:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    found = tiny_imagenet(tmp_path)
    assert {s: len(i) for s, i in found.splits.items()} == {"train": 9000, "valid": 1000, "test": 1000}
    assert found.labels.bincount().tolist() == [550] * 20
    path = tmp_path / "tiny-imagenet-200" / "val" / "images" / "val_22.JPEG"  # of n01983481, the 19th class
    pixels = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)
    (place,) = (found.images == pixels).flatten(1).all(1).nonzero()[0].tolist()
    assert int(found.labels[place]) == 18
