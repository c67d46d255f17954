"""Data: splits, statistics, fingerprints, and every way in which CIFAR-10 can be missing or broken."""

import hashlib
import pickle
import socket
import types
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10

from dstbench.suite import estimate
from dstbench.suite.plan import Run
from dstbench.suite.task import DataError
from dstbench.tasks import data
from dstbench.tasks.data import digits, folder

ARCHIVE = Path(__file__).parents[2] / "shared" / "data" / "cifar10.tar.xz"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any try to reach the network fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("a network call")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True)
def fresh():
    """No test sees what another has read."""
    data._load.cache_clear()
    yield
    data._load.cache_clear()


@pytest.fixture
def images(tmp_path):
    """An image folder: ten classes, 4 training and 2 test images each, PNG and JPEG; returns the data root."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(CLASSES):
            place = tmp_path / "cifar10" / split / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 40, (32, 32, 3), dtype=np.uint8) + np.uint8(20 * label)
                Image.fromarray(pixels).save(place / f"{i:04}.{'png' if i else 'jpg'}")
    return tmp_path


@pytest.fixture
def batches(tmp_path, monkeypatch):
    """torchvision's layout with 20 images a file, its checksums set accordingly; returns the data root."""
    rng, place = np.random.default_rng(1), tmp_path / CIFAR10.base_folder
    place.mkdir()

    def write(name, content):
        (place / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((place / name).read_bytes()).hexdigest()]

    def batch(name):
        return write(name, {"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": [*range(10)] * 2})

    monkeypatch.setattr(CIFAR10, "train_list", [batch(name) for name, _ in CIFAR10.train_list])
    monkeypatch.setattr(CIFAR10, "test_list", [batch(name) for name, _ in CIFAR10.test_list])
    name, md5 = write("batches.meta", {"label_names": list(CLASSES)})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    return tmp_path


def assert_partition(found, sizes):
    assert {split: len(index) for split, index in found.splits.items()} == sizes
    everything = torch.cat(list(found.splits.values()))
    assert len(everything.unique()) == len(everything)


# ---- digits --------------------------------------------------------------------------------------------------------


def test_digits_splits_are_disjoint_and_fixed():
    first = digits.digits(Path())
    assert_partition(first, {"train": 1000, "valid": 200, "test": 500})
    torch.manual_seed(99)
    again = digits.digits(Path())
    assert all(torch.equal(first.splits[split], again.splits[split]) for split in first.splits)
    # Written down so that no change of code moves an image from one split to another.
    assert first.splits["train"][:5].tolist() == [362, 1568, 1440, 1761, 815]
    assert first.splits["test"][-3:].tolist() == [657, 460, 571]
    assert all(len(first.labels[index].unique()) == 10 for index in first.splits.values())


def test_digits_are_the_published_pixels_scaled_by_the_training_split():
    found, raw = digits.digits(Path()), load_digits()
    index = found.splits["train"].numpy()
    mean, std = raw.images[index].mean(), raw.images[index].std()
    np.testing.assert_allclose(found.images[:, 0], (raw.images - mean) / std, atol=1e-5)
    np.testing.assert_array_equal(found.labels, raw.target)
    assert abs(float(found.images[index].mean())) < 1e-5 and abs(float(found.images[index].std()) - 1) < 1e-4
    assert found.scaled(found.images) is found.images


def test_digits_fingerprint_follows_the_content(monkeypatch):
    was, table = digits.digits(Path()).fingerprint, digits._digits_table()
    assert len(was) == 12 and was == digits.digits(Path()).fingerprint and int(was, 16)
    table[5, 30] += 1
    monkeypatch.setattr(digits, "_digits_table", lambda: table)
    assert digits.digits(Path()).fingerprint != was


def test_digits_come_through_scikit_learn_where_the_file_lies_elsewhere(monkeypatch, tmp_path):
    was = digits.digits(Path())
    elsewhere = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: elsewhere)
    again = digits.digits(Path())
    assert again.fingerprint == was.fingerprint and torch.equal(again.images, was.images)


def test_load_reads_once_and_knows_its_names():
    assert data.load("digits") is data.load("digits", download=False)
    with pytest.raises(ValueError, match=r"unknown data set 'digit'; did you mean digits\?"):
        data.load("digit")


def test_statistics_equal_numpy():
    pixels = np.random.default_rng(2).integers(0, 256, (2100, 3, 5, 4), dtype=np.uint8)
    index = torch.arange(0, 2100, 2)
    mean, std = data.statistics(torch.from_numpy(pixels), index)
    assert mean.shape == std.shape == (3, 1, 1)
    np.testing.assert_allclose(mean.flatten(), pixels[::2].mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std.flatten(), pixels[::2].std((0, 2, 3)), rtol=1e-6)


# ---- CIFAR-10 as an image folder -----------------------------------------------------------------------------------


def test_folder_gives_every_image_with_its_class(images):
    found = data.load("cifar10", images)
    assert found.images.shape == (60, 3, 32, 32) and found.images.dtype == torch.uint8
    assert_partition(found, {"train": 36, "valid": 4, "test": 20})
    assert found.labels.tolist() == [c for c in range(10) for _ in range(4)] + [c for c in range(10) for _ in range(2)]
    assert sorted(found.splits["test"].tolist()) == list(range(40, 60))
    png = np.asarray(Image.open(images / "cifar10" / "train" / "bird" / "0002.png"))
    np.testing.assert_array_equal(found.images[10].permute(1, 2, 0), png)
    scaled = found.scaled(found.images[found.splits["train"]])
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)


def test_folder_is_decoded_once(images, monkeypatch):
    first = data.load("cifar10", images)
    kept = images / f"cifar10-{first.fingerprint}.v2.pt"
    assert kept.exists() and not list(images.glob("*.part"))
    data._load.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(folder, "_decode", lambda *a: pytest.fail("decoded again"))
        again = data.load("cifar10", images)
    assert torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels)
    kept.write_bytes(kept.read_bytes()[:1000])  # torn by a full disk: decoded and written anew
    data._load.cache_clear()
    assert torch.equal(data.load("cifar10", images).images, first.images) and kept.stat().st_size > 1000


def test_folder_on_a_read_only_root_is_read_all_the_same(images, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError("read-only")

    monkeypatch.setattr(torch, "save", refuse)
    assert len(data.load("cifar10", images).images) == 60
    assert not list(images.glob("*.pt"))


def test_folder_fingerprint_follows_names_and_content(images):
    seen = {data.load("cifar10", images).fingerprint}
    place = images / "cifar10" / "train" / "cat"

    def changed():
        data._load.cache_clear()
        found = data.load("cifar10", images).fingerprint
        new = found not in seen
        seen.add(found)
        return new

    assert not changed()
    pixels = np.asarray(Image.open(place / "0001.png")).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(place / "0001.png")
    assert changed()
    (place / "0001.png").rename(place / "0009.png")
    assert changed()
    (place / "0009.png").unlink()
    assert changed()


@pytest.mark.parametrize(
    "break_it, text",
    [
        (lambda r: (r / "train" / "dog" / "0001.png").write_bytes(b"no image"), r"dog/0001\.png: cannot be decoded"),
        (
            lambda r: Image.new("RGB", (8, 8)).save(r / "train" / "dog" / "0001.png"),
            r"dog/0001\.png: 8x8 pixels where 32x32",
        ),
        (lambda r: (r / "train" / "dog").rename(r / "train" / "wolf"), r"differ in classes: \['dog', 'wolf'\]"),
        (lambda r: (r / "test").rename(r / "val"), r"cifar10/test: no such folder"),
        (lambda r: (r / "test" / "elk").mkdir(), "test: 11 class folders where 10 are expected"),
        (lambda r: [p.unlink() for p in (r / "test" / "dog").iterdir()], r"test/dog: no image \(\.jpg"),
    ],
)
def test_broken_folder_says_what_is_wrong(images, break_it, text):
    break_it(images / "cifar10")
    with pytest.raises(DataError, match=text):
        data.load("cifar10", images)


# ---- CIFAR-10 as torchvision stores it -----------------------------------------------------------------------------


def test_torchvision_files_are_read(batches):
    found = data.load("cifar10", batches)
    assert_partition(found, {"train": 90, "valid": 10, "test": 20})
    first = pickle.loads((batches / CIFAR10.base_folder / "data_batch_1").read_bytes())
    np.testing.assert_array_equal(found.images[3], first["data"][3].reshape(3, 32, 32))
    assert found.labels[:20].tolist() == first["labels"] and len(found.fingerprint) == 12


def test_torchvision_fingerprint_follows_the_checksums(batches, monkeypatch):
    was = data.load("cifar10", batches).fingerprint
    path = batches / CIFAR10.base_folder / "test_batch"
    content = pickle.loads(path.read_bytes())
    content["data"][0, 0] ^= 1
    path.write_bytes(pickle.dumps(content))
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", hashlib.md5(path.read_bytes()).hexdigest()]])
    data._load.cache_clear()
    assert data.load("cifar10", batches).fingerprint != was


def test_corrupt_torchvision_file_is_named(batches):
    (batches / CIFAR10.base_folder / "data_batch_3").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"data_batch_3: its md5 is not [0-9a-f]{32}: the file is corrupt.*--download"):
        data.load("cifar10", batches)


def test_missing_data_names_folder_file_and_command(tmp_path):
    with pytest.raises(DataError) as caught:
        data.load("cifar10", tmp_path)
    for part in (
        tmp_path / CIFAR10.base_folder / "data_batch_1",
        tmp_path / "cifar10",
        "--data-root DIR",
        "--download",
    ):
        assert str(part) in str(caught.value)


def test_default_root_is_the_folder_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=str(tmp_path / "data" / CIFAR10.base_folder)):
        data.load("cifar10")


def test_download_asks_the_network_only_when_told(tmp_path, monkeypatch):
    asked = []

    def offline(url, root, **kwargs):
        asked.append(url)
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    with pytest.raises(DataError):
        data.load("cifar10", tmp_path)
    assert not asked
    with pytest.raises(DataError, match="no route to host"):
        data.load("cifar10", tmp_path, download=True)
    assert asked == [CIFAR10.url]


def test_the_cost_of_a_run_is_estimated_on_the_users_data(images):
    run = Run("dense", "cifar10/vit_tiny", data_root=str(images), recipe={"steps": 2, "batch": 1})
    assert estimate.training_flops(run)[0] > 0


@pytest.mark.skipif(not ARCHIVE.exists(), reason=f"{ARCHIVE} is missing")
@pytest.mark.slow
def test_the_real_cifar10(tmp_path):
    import tarfile

    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    found = data.load("cifar10", tmp_path)
    assert_partition(found, {"train": 45000, "valid": 5000, "test": 10000})
    assert found.labels.bincount().tolist() == [6000] * 10
    # The published mean of CIFAR-10's training images: 0.4914, 0.4822, 0.4465.
    torch.testing.assert_close(found.mean.flatten() / 255, torch.tensor([0.4914, 0.4822, 0.4465]), atol=2e-3, rtol=0)
