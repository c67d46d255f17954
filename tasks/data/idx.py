"""MNIST and its kin, 70,000 grey images of 28x28 in idx files as torchvision lays them, packed or not."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from dstbench.suite.task import DataError
from dstbench.tasks.data.images import Images, digest, halves

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
TRAIN, TEST, VALID, SIZE = 60_000, 10_000, 5_000, 28  # valid as in the LinBreg paper: 55,000 / 5,000
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
PACKAGE = ", or `apt-get install dataset-fashion-mnist`"
MNIST_MD5 = {  # of the unpacked files: packed ones differ from packer to packer
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
FASHION_MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
CLOTHES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
KANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


def mnist(root: Path, download: bool = False) -> Images:
    """MNIST under `root`, `MNIST/raw/*-ubyte[.gz]`: 55,000 train, 5,000 valid, 10,000 test, of 1x28x28 pixels.

    The checksums of the unpacked files are verified, and the fingerprint is over them.

    Reference: LeCun, Cortes & Burges 1998, The MNIST database of handwritten digits.
    """
    return _read("MNIST", root, download, MNIST_MD5, tuple(map(str, range(10))))


def fashion_mnist(root: Path, download: bool = False) -> Images:
    """Fashion-MNIST, as in `mnist`: `FashionMNIST/raw` under `root`, or what Debian's package installs.

    Reference: Xiao, Rasul & Vollgraf 2017, arXiv 1708.07747.
    """
    own = root / "FashionMNIST" / "raw"
    place = DEBIAN if DEBIAN.is_dir() and not download and not any(_found(own, name) for name in FILES) else own
    return _read("FashionMNIST", root, download, FASHION_MD5, CLOTHES, place, PACKAGE)


def kmnist(root: Path, download: bool = False) -> Images:
    """Kuzushiji-MNIST, as in `mnist`: `KMNIST/raw` under `root`; sizes and labels are verified.

    Reference: Clanuwat et al. 2018, arXiv 1812.01718.
    """
    return _read("KMNIST", root, download, {}, KANA)


def _read(
    kind: str,
    root: Path,
    download: bool,
    md5: Mapping[str, str],
    classes: tuple[str, ...],
    place: Path | None = None,
    other: str = "",
) -> Images:
    place = place or root / kind / "raw"
    advice = (
        f"give the folder that holds {kind}/raw/ with --data-root DIR, "
        f"or add --download, and torchvision gets the data set{other}"
    )
    if download:
        import torchvision

        try:
            getattr(torchvision.datasets, kind)(str(root), download=True)
        except (OSError, RuntimeError, EOFError, zlib.error) as error:
            raise DataError(f"{kind}: cannot be downloaded into {root}: {error}; {advice}") from error
    arrays, seen = {}, []
    for name in FILES:
        path = _found(place, name)
        if path is None:
            raise DataError(f"{kind}: {place / name}: no such file, packed (.gz) or not; {advice}")
        try:
            raw = path.read_bytes()
            raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
            seen.append(hashlib.md5(raw).hexdigest())
            arrays[name] = parse(raw)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise DataError(f"{kind}: {path}: cannot be read ({error}); {advice}") from error
        if seen[-1] != md5.get(name, seen[-1]):
            raise DataError(f"{kind}: {path}: its md5, unpacked, is not {md5[name]}: the file is corrupt; {advice}")
        count = TRAIN if name.startswith("train") else TEST
        shape = (count, SIZE, SIZE) if "images" in name else (count,)
        if arrays[name].shape != shape:
            raise DataError(f"{kind}: {path}: an array {arrays[name].shape} where {shape} is expected; {advice}")
        if "labels" in name and arrays[name].max() > 9:
            raise DataError(f"{kind}: {path}: a label {arrays[name].max()} where 0 to 9 are expected; {advice}")
    images = torch.from_numpy(np.concatenate([arrays[FILES[0]], arrays[FILES[2]]]))[:, None]
    labels = torch.from_numpy(np.concatenate([arrays[FILES[1]], arrays[FILES[3]]]).astype(np.int64))
    return halves(images, labels, TEST, VALID, classes, digest(*seen))


def _found(place: Path, name: str) -> Path | None:
    """The file, unpacked before packed, or None."""
    return next((path for path in (place / name, place / f"{name}.gz") if path.exists()), None)


def parse(raw: bytes) -> np.ndarray:
    """The array of an idx file of unsigned bytes; ValueError where it is none, or too short or long.

    Reference: the format is described at the end of LeCun's page of MNIST.
    """
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise ValueError(f"no idx file of bytes: it begins with {raw[:4].hex() or 'nothing'}")
    dims = raw[3]
    if len(raw) < 4 + 4 * dims:
        raise ValueError("it ends within its header")
    shape = struct.unpack(f">{dims}I", raw[4 : 4 + 4 * dims])
    if len(raw) != (wanted := 4 + 4 * dims + math.prod(shape)):
        raise ValueError(f"{len(raw)} bytes where an array {shape} has {wanted}")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)
