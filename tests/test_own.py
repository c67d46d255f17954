"""A folder of one's own images: layouts, splits by a hash, sizes, names, modes, and what is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dstbench.suite.kernels import build
from dstbench.suite.task import DataError
from dstbench.tasks import data
from dstbench.tasks.data import folder, own


def fill(place: Path, classes: dict[str, int], size: tuple[int, int] = (10, 8)) -> None:
    """Folders of classes with so many images, each of one colour that tells class and number."""
    for label, (name, count) in enumerate(classes.items()):
        (place / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", size, (50 * label, i, 0)).save(place / name / f"{i:03}.png")


def told(found, split: str) -> set[tuple[int, int]]:
    """(class, number) of the images of a split, by their colour."""
    return {(int(x[0, 0, 0]) // 50, int(x[1, 0, 0])) for x in found.images[found.splits[split]]}


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "pets"


def test_one_folder_of_classes_is_split_by_a_hash_within_each_class(root) -> None:
    fill(root, {"cat": 20, "dog": 31, "elk": 3})
    found = own.load(root, 8)
    assert found.images.shape == (54, 3, 8, 8) and found.classes == ("cat", "dog", "elk")
    per = {s: found.labels[i].bincount().tolist() for s, i in found.splits.items()}
    assert per == {"train": [16, 25, 1], "valid": [2, 3, 1], "test": [2, 3, 1]}
    assert len(torch.cat([*found.splits.values()]).unique()) == 54
    assert all((found.images[i, 0, 0, 0] == 50 * found.labels[i]).all() for i in range(54))
    assert sorted(found.labels[found.splits["train"]].tolist()) != found.labels[found.splits["train"]].tolist()
    # The hash is of names within the folder: elsewhere the same images are chosen.
    shutil.copytree(root, root.parent / "copy")
    again = own.load(root.parent / "copy", 8)
    assert again.fingerprint == found.fingerprint
    assert all(told(again, split) == told(found, split) for split in found.splits)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"train": 12, "valid": 2, "test": 3}, {"train": 24, "valid": 4, "test": 6}),
        ({"Training": 12, "Validation": 2, "Testing": 3}, {"train": 24, "valid": 4, "test": 6}),
        ({"train": 12, "val": 2, "test": 3}, {"train": 24, "valid": 4, "test": 6}),
        ({"train": 12, "test": 3}, {"train": 22, "valid": 2, "test": 6}),
        ({"train": 12, "val": 3}, {"train": 22, "valid": 2, "test": 6}),  # as ImageNet is read
        ({"train": 12}, {"train": 20, "valid": 2, "test": 2}),
    ],
)
def test_splits_are_taken_as_they_are_and_others_carved_from_train(root, given, expected) -> None:
    for name, count in given.items():
        fill(root / name, {"cat": count, "dog": count})
    found = own.load(root, 8)
    assert {split: len(index) for split, index in found.splits.items()} == expected
    assert len(torch.cat([*found.splits.values()]).unique()) == len(found.labels) == 2 * sum(given.values())


def test_images_of_any_size_are_cut_to_their_square_and_scaled_once(root) -> None:
    fill(root, {"a": 3, "b": 3})
    rng = np.random.default_rng(0)
    wide = Image.fromarray(rng.integers(0, 256, (20, 50, 3), dtype=np.uint8))
    wide.save(root / "a" / "000.png")
    expected = wide.crop((15, 0, 35, 20)).resize((6, 6), Image.Resampling.BILINEAR)
    found = own.load(root, 6)
    np.testing.assert_array_equal(found.images[0].permute(1, 2, 0), np.asarray(expected))
    turned = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    note = Image.Exif()
    note[274] = 6  # the camera was held upright
    turned.save(root / "a" / "001.png", exif=note)
    upright = folder.image(root / "a" / "001.png", 6, fit=True)
    expected = turned.rotate(-90, expand=True).crop((0, 1, 6, 7))
    np.testing.assert_array_equal(upright.permute(1, 2, 0), np.asarray(expected))
    assert own.load(root, 0).images.shape[2:] == (20, 20)  # the first image's shorter side
    assert own.load(root, 4).fingerprint != own.load(root, 6).fingerprint


def test_names_links_modes_and_nested_folders_are_no_hurdle(root, tmp_path) -> None:
    fill(root, {"ein Hund": 3, "猫 ü": 3})
    place = root / "ein Hund"
    Image.new("L", (9, 9), 7).save(place / "SHOUTED.JPG")
    Image.new("P", (9, 9), 7).save(place / "palette.PNG")
    Image.new("CMYK", (9, 9)).save(place / "print.Jpeg")
    Image.new("1", (3, 30)).save(place / "bits.gif")
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(place / "deep.png")
    Image.new("RGB", (9, 9)).save(place / "plain.bmp")
    (place / "2024" / "may").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(place / "2024" / "may" / "weiß nicht.webp")
    (place / "2024" / "back").symlink_to(place)  # a circle
    fill(tmp_path / "real", {"x": 1})
    (place / "link.png").symlink_to(tmp_path / "real" / "x" / "000.png")
    (root / "linked").symlink_to(root / "猫 ü")
    with pytest.warns(UserWarning, match="left out 1, as no image or class folder: ein Hund/2024/back"):
        found = own.load(root, 8)
    assert found.labels.bincount().tolist() == [11, 3, 3] and found.classes == ("ein Hund", "linked", "猫 ü")


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda r: shutil.rmtree(r), r"pets: no such folder; an image folder holds"),
        (lambda r: (shutil.rmtree(r), r.touch()), r"pets: no folder"),
        (lambda r: shutil.rmtree(r / "dog"), r"pets: class folders: cat; at least 2 are needed: give train/<class>/"),
        (lambda r: [shutil.rmtree(r / name) for name in ("cat", "dog")], r"class folders: none; at least 2"),
        (lambda r: [p.unlink() for p in (r / "dog").iterdir()], r"pets/dog: no image \(\.jpg, "),
        (lambda r: [p.unlink() for p in [*(r / "dog").iterdir()][:3]], r"dog: 2 images, where at least 3 are needed"),
        (lambda r: (r / "cat").rename(r / "val"), r"pets: val but no train; give train/<class>/"),
        (lambda r: [fill(r / n, {"a": 3, "b": 3}) for n in ("train", "val", "valid")], r"holds both val and valid"),
        (
            lambda r: [fill(r / n, {"a": 3, f"b{n}": 3}) for n in ("train", "val")],
            r"train and val differ in classes: \['btrain', 'bval'\]",
        ),
        (lambda r: (r / "cat" / "000.png").write_bytes(b""), r"cat/000\.png: cannot be decoded"),
        (lambda r: os.truncate(r / "cat" / "001.png", 45), r"cat/001\.png: cannot be decoded"),
        (lambda r: (r / "cat" / "1.png").symlink_to("/nowhere"), r"cat/1\.png: a link to '/nowhere'"),
    ],
)
def test_what_cannot_be_used_is_an_error_that_names_it(root, spoil, text: str) -> None:
    fill(root, {"cat": 5, "dog": 5})
    spoil(root)
    with pytest.raises(DataError, match=text):
        own.load(root, 8)


def test_the_first_image_may_be_broken_where_it_gives_the_size(root) -> None:
    fill(root, {"cat": 5, "dog": 5})
    (root / "cat" / "000.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"cat/000\.png: cannot be decoded"):
        own.load(root)


def test_a_bomb_is_an_error_where_it_gives_the_size(root) -> None:
    fill(root, {"cat": 5, "dog": 5})
    Image.new("1", (20_000, 10_000)).save(root / "cat" / "000.png")
    with pytest.raises(DataError, match=r"cat/000\.png: far more pixels than an image has"):
        own.load(root)


def test_every_byte_counts_however_many_files_there_are(root) -> None:
    """Files of one size, as BMPs are, of which one in the middle is changed."""
    fill(root, {"cat": 3, "dog": 3})
    for i in range(600):
        Image.new("RGB", (4, 4), (0, 0, 0)).save(root / "cat" / f"x{i:03}.bmp")
    was = own.load(root, 8)
    Image.new("RGB", (4, 4), (255, 255, 255)).save(root / "cat" / "x301.bmp")
    now = own.load(root, 8)
    assert was.fingerprint != now.fingerprint and not was.images.eq(255).any() and now.images.eq(255).any()


def test_tensors_are_kept_beside_the_folder_else_in_the_cache(root, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(build, "cache", lambda: tmp_path / "cache")
    fill(root, {"cat": 5, "dog": 5})
    first = own.load(root, 8)
    (beside,) = root.parent.glob("pets-*.pt")
    assert "-8.v2" in beside.name and not (tmp_path / "cache").exists()
    beside.unlink()
    replace = Path.replace

    def refuse(path, target):
        if Path(target).parent == root.parent:
            raise PermissionError("read-only")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refuse)
    own.load(root, 8)
    assert [p.name for p in (tmp_path / "cache" / "data").iterdir()] == [beside.name]
    assert not list(root.parent.glob("*.pt")) and not list(root.parent.glob("*.part"))
    monkeypatch.setattr(folder, "_decode", lambda *a: pytest.fail("decoded again"))
    again = own.load(root, 8)
    assert torch.equal(again.images, first.images) and again.fingerprint == first.fingerprint
    monkeypatch.undo()
    monkeypatch.setattr(build, "cache", nowhere)  # neither there nor here: in memory
    monkeypatch.setattr(Path, "replace", refuse)
    assert torch.equal(own.load(root, 8).images, first.images)


def nowhere() -> Path:
    raise build.NotBuilt("no home")


def test_more_than_the_memory_holds_is_said_before_anything_is_decoded(root, monkeypatch) -> None:
    fill(root, {"cat": 5, "dog": 5})
    monkeypatch.setattr(folder, "_decode", lambda *a: pytest.fail("decoded"))
    with pytest.raises(DataError, match=r"GiB of pixels at 1000000x1000000.*choose a smaller size"):
        own.load(root, 10**6)


def test_load_takes_a_folder_in_place_of_a_name(root) -> None:
    fill(root, {"cat": 5, "dog": 5})
    found = data.load({"folder": str(root), "size": 8})
    assert found is data.load({"folder": root, "size": 8}) and found.images.shape == (10, 3, 8, 8)
    with pytest.raises(TypeError):
        data.load({"folder": root, "width": 8})
