"""Images streamed from disk: batches as a function of (seed, step) whatever the workers, layout, errors, resuming."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks import loading
from dstbench.suite import registry
from dstbench.suite.method import Method
from dstbench.suite.recipe import Recipe
from dstbench.suite.task import DataError
from dstbench.suite.train import Training
from dstbench.tasks import data as sets
from dstbench.tasks.data import stream
from dstbench.tasks.streaming import StreamedImages


def linear() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))


@pytest.fixture
def root(tmp_path) -> Path:
    """Three classes of JPEGs of several sizes: 12 training and 4 test images each."""
    loading.make(tmp_path / "imagenet", classes=3, train=12, val=4, sides=(40, 64))
    return tmp_path


@pytest.fixture
def task(root) -> StreamedImages:
    recipe = Recipe(steps=20, batch=4, lr={"sgd": 0.1, "adam": 1e-3})
    fields = {"size": 16, "resize": 20, "flip": True, "workers": 0, "evaluation_batch": 5, "root": root}
    return StreamedImages(name="test/streamed", recipe=recipe, model=linear, **fields)


def take(task, split, seed, number, start=0):
    return list(itertools.islice(task.batches(split, seed, start), number))


def same(left, right):
    return len(left) == len(right) and all(
        torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(left, right, strict=True)
    )


FULL = {"randaugment": (2, 9), "mixup": 0.4, "cutmix": 1.0, "erase": 0.5}


@pytest.mark.parametrize("fields", [{}, FULL])
def test_starting_at_k_equals_skipping_k_and_the_global_generator_is_left_alone(task, fields) -> None:
    task = replace(task, **fields)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    found = take(task, "train", 7, 10)  # 8 steps an epoch
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert same(found[6:], take(task, "train", 7, 4, 6)) and not same(found, take(task, "train", 8, 10))
    assert found[0][0].shape == (4, 3, 16, 16) and found[0][1].shape == ((4, 3) if fields else (4,))


def test_workers_change_no_batch(task) -> None:
    task = replace(task, **FULL)
    assert same(take(task, "train", 0, 3, 7), take(replace(task, workers=2), "train", 0, 3, 7))


def test_evaluation_is_what_torchvision_makes_of_the_folder(task, root) -> None:
    steps = [v2.Resize(20), v2.CenterCrop(16), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    norm = v2.Normalize(stream.MEAN, stream.STD)
    plain = ImageFolder(root / "imagenet" / "val", v2.Compose([*steps, norm]))
    images, labels = (torch.cat(part) for part in zip(*task.batches("test", 0), strict=True))
    torch.testing.assert_close(images, torch.stack([x for x, _ in plain]), atol=1e-5, rtol=1e-4)
    assert labels.tolist() == plain.targets and len(next(task.batches("test", 0))[1]) == 5
    assert same(list(task.batches("test", 0))[1:], list(task.batches("test", 3, start=1)))


def test_training_images_are_crops_of_their_own(task, monkeypatch) -> None:
    (images, labels), *_ = take(task, "train", 0, 1)
    data = stream.index(task.root / "imagenet")
    samples = next(task._samples(data, "train", 0, 0))
    for image, label, (index, seed) in zip(images, labels, samples, strict=True):
        torch.manual_seed(seed)  # torchvision's own transforms, one image at a time
        crop = v2.Compose([v2.RandomResizedCrop(16), v2.RandomHorizontalFlip(), v2.PILToTensor()])
        pixels = crop(Image.open(data.path(index)).convert("RGB")).float() / 255
        expected = v2.functional.normalize(pixels, stream.MEAN, stream.STD)
        torch.testing.assert_close(image, expected, atol=1e-5, rtol=1e-4)
        assert data.path(index).parent.name == data.classes[label]


def test_epochs_show_every_image_once_and_splits_are_disjoint(task) -> None:
    data = stream.index(task.root / "imagenet")
    assert {s: len(i) for s, i in data.splits.items()} == {"train": 33, "valid": 3, "test": 12}
    assert len(torch.cat([*data.splits.values()]).unique()) == 48
    for epoch in (0, 1):
        seen = [i for b in itertools.islice(task._samples(data, "train", 0, 8 * epoch), 8) for i, _ in b]
        assert len(seen) == len({*seen}) == 32 and {*seen} <= {*data.splits["train"].tolist()}


def test_calibration_is_plain(task) -> None:
    data = stream.index(task.root / "imagenet")
    images, labels = next(task.batches("calibration", 0))
    index = [i for i, _ in next(task._samples(data, "calibration", 0, 0))]
    whole = v2.Compose([v2.Resize(20), v2.CenterCrop(16), v2.PILToTensor()])
    for image, label, i in zip(images, labels, index, strict=True):
        pixels = whole(Image.open(data.path(i)).convert("RGB")).float() / 255
        expected = v2.functional.normalize(pixels, stream.MEAN, stream.STD)
        torch.testing.assert_close(image, expected, atol=1e-5, rtol=1e-4)
        assert data.labels[i] == label


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_is_the_same_bit_for_bit(task, workers: int) -> None:
    task = replace(task, mixup=0.2, randaugment=(2, 9), erase=0.5, workers=workers)
    whole, half = Training(task, Method(sparsity=0.0)), Training(task, Method(sparsity=0.0))
    whole.run(until=6)
    half.run(until=3)
    other = Training(task, Method(sparsity=0.0))
    other.load(half.state())
    other.run(until=6)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.model.net.parameters(), other.model.net.parameters(), strict=True)
    )
    assert other.evaluate("valid") == whole.evaluate("valid")


def test_folders_of_ones_own_are_streamed_too(task, root) -> None:
    (root / "imagenet" / "val").rename(root / "imagenet" / "test")
    own = replace(task, data={"folder": str(root / "imagenet")}, root=None)
    assert same(take(own, "train", 0, 1), take(task, "train", 0, 1))
    assert own.describe()["data"] == {"folder": str(root / "imagenet")} and own.example().shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda p: p.rename(p.with_name("x")), r"ImageNet: .*imagenet: no such folder; give.*--data-root DIR"),
        (lambda p: (p / "val").rename(p / "x"), r"imagenet: no val and no test"),
        (lambda p: (p / "train").rename(p / "x"), r"imagenet: val but no train"),
        (lambda p: (p / "train/class1/0001.JPEG").write_bytes(b"x"), r"class1/0001\.JPEG: cannot be decoded"),
        (
            lambda p: (p / "val" / "class1").rename(p / "val" / "y"),
            r"train and val differ in classes: \['class1', 'y'\]",
        ),
        (lambda p: [f.unlink() for f in (p / "val" / "class1").iterdir()], r"val/class1: no image \(\.jpg"),
        (
            lambda p: [q.rename(p / q.name) for q in (p / "train").glob("class[12]")],
            "class folders: class0; at least 2",
        ),
    ],
)
def test_layouts_that_do_not_fit_end_before_training(task, root, spoil, text: str) -> None:
    spoil(root / "imagenet")
    sets._load.cache_clear()
    with pytest.raises(DataError, match=text):
        task.prepare()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_decoded_is_named(task, root, workers: int) -> None:
    for path in (root / "imagenet" / "val").rglob("*.JPEG"):
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"^/.*class0/0000\.JPEG: cannot be decoded"):
        next(replace(task, workers=workers).batches("test", 0))


def test_odd_modes_are_decoded(task, root) -> None:
    place = root / "imagenet" / "val" / "class0"
    for path, mode in zip(sorted(place.iterdir()), ("L", "CMYK", "P", "RGB"), strict=True):
        kind = "PNG" if mode == "P" else "JPEG"  # ImageNet has a PNG named JPEG, and some in CMYK
        Image.new(mode, (30, 30)).save(path, kind)
    images, _ = next(task.batches("test", 0))
    black, white = (((value - torch.tensor(stream.MEAN)) / torch.tensor(stream.STD))[:, None, None] for value in (0, 1))
    for image, colour in zip(images, (black, white, black, black), strict=False):  # no ink is white
        torch.testing.assert_close(image, colour.expand_as(image), atol=0.03, rtol=0)


def test_bad_split_batch_and_interpolation_are_errors(task) -> None:
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        task.batches("dev", 0)
    with pytest.raises(ValueError, match=r"recipe\.batch 64 is larger than the 33 training samples"):
        replace(task, recipe=replace(task.recipe, batch=64)).batches("train", 0)
    with pytest.raises(ValueError, match="interpolation is 'cubic'; give bilinear or bicubic"):
        replace(task, interpolation="cubic")


def test_fingerprint_follows_names_and_content(task, root) -> None:
    was = stream.index(root / "imagenet").fingerprint
    path = root / "imagenet" / "train" / "class0" / "0000.JPEG"
    for change in (lambda: path.write_bytes(path.read_bytes() + b"\0"), lambda: path.rename(path.with_name("z.JPEG"))):
        change()
        stream.index.cache_clear()
        now = stream.index(root / "imagenet").fingerprint
        assert now != was
        was = now


SIZES = {"resnet50": {}, "deit_tiny": {"img_size": 32}, "deit_small": {"img_size": 32}, "vit_base": {"img_size": 32}}
LARGE = pytest.param("vit_base", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["resnet50", "deit_tiny", "deit_small", LARGE])
def test_every_task_of_imagenet_does_a_step_and_an_evaluation(root, name: str) -> None:
    """On three classes of the thousand: mixed targets are padded, chance is one in three."""
    task = registry.task(f"imagenet/{name}")
    recipe = replace(task.recipe, steps=1, batch=4, accumulate=1)
    fields = {"arguments": {**task.arguments, **SIZES[name]}, "size": 32, "resize": 36, "workers": 0}
    task = replace(task, root=root, recipe=recipe, **fields)
    task.prepare()
    training = Training(task, Method(sparsity=0.0))
    training.run()
    assert 0 <= training.evaluate("valid") <= 1 and task.judged()["chance"] == 1 / 3 and task.judged()["target"] is None


def test_more_classes_than_outputs_end_before_training(task) -> None:
    with pytest.raises(DataError, match=r"has 3 classes, and the network tells 2 apart; give it the argument num_clas"):
        replace(task, arguments={**task.arguments, "num_classes": 2}).prepare()


def test_the_benchmark_prints_both_loops(tmp_path, capsys) -> None:
    arguments = ["--images", "24", "--batch", "4", "--size", "16", "--rounds", "1", "--workers", "1"]
    assert loading.main([*arguments, "--allocator", "system"]) == 0
    said = capsys.readouterr().out
    assert "dstbench" in said and "torchvision" in said and "images/s" in said
    assert np.isfinite(float(said.split("ratio")[1].split()[0]))
