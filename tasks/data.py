"""Image data in memory: digits, which ship with scikit-learn, and CIFAR-10 from the user's data root."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dstbench.suite.task import DataError
from dstbench.tasks import folder


@dataclass(frozen=True, eq=False)
class Images:
    """Images (N, C, H, W) with labels (N,), the indices of each split, and a fingerprint of the content.

    `scaled` brings uint8 images to zero mean and unit variance by `mean` and `std` (C, 1, 1), the statistics of the
    training split; floating images are so already. Splits are disjoint and the same for every seed.
    """

    images: Tensor
    labels: Tensor
    splits: Mapping[str, Tensor]
    mean: Tensor
    std: Tensor
    fingerprint: str

    def scaled(self, images: Tensor) -> Tensor:
        """Float32, zero mean and unit variance per channel over the training split."""
        return images if images.is_floating_point() else images.float().sub_(self.mean).div_(self.std)


def load(name: str, root: Path | None = None, download: bool = False) -> Images:
    """The data set `name` under `root` (default: the folder `data`), read once a process.

    DataError if it is missing or corrupt, ValueError for an unknown name; the network is asked only if `download`.
    """
    if name not in LOADERS:
        raise ValueError(f"unknown data set {name!r}; choose one of {', '.join(LOADERS)}")
    return _load(name, Path(root or "data").absolute(), download)


@cache
def _load(name: str, root: Path, download: bool) -> Images:
    return LOADERS[name](root, download)


def digits(root: Path, download: bool = False) -> Images:
    """1,797 handwritten digits of 1x8x8 pixels from scikit-learn: 1,000 train, 200 valid, 500 test.

    The fingerprint is over all bytes.

    Reference: Alpaydin & Kaynak 1998, UCI, Optical Recognition of Handwritten Digits.
    """
    table = _digits_table()
    pixels, labels = table[:, :-1].astype("uint8").reshape(-1, 8, 8), table[:, -1].astype("int64")
    order = shuffled(len(pixels))
    splits = {"train": order[:1000], "valid": order[1000:1200], "test": order[1200:1700]}
    images = torch.from_numpy(pixels)[:, None]
    data = Images(
        images,
        torch.from_numpy(labels),
        splits,
        *statistics(images, splits["train"]),
        hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()[:12],
    )
    # Few enough to be scaled once instead of in every step.
    return Images(data.scaled(images), data.labels, splits, data.mean, data.std, data.fingerprint)


def _digits_table() -> np.ndarray:
    """64 pixels and the label of each digit, (1797, 65), as scikit-learn ships them; DataError if they are broken."""
    found = importlib.util.find_spec("sklearn")
    path = Path(((found and found.submodule_search_locations) or [""])[0], "datasets", "data", "digits.csv.gz")
    try:
        if path.exists():  # importing scikit-learn takes longer than all else that a run does before its first step
            table = np.loadtxt(path, delimiter=",", ndmin=2)
        else:
            from sklearn.datasets import load_digits

            raw = load_digits()
            table = np.column_stack([raw.data, raw.target])
    except (OSError, EOFError, ValueError, zlib.error, ImportError) as error:
        raise DataError(f"digits: {path}: cannot be read ({error}); {MEND}") from error
    if table.shape != (1797, 65):
        raise DataError(f"digits: {path}: {table.shape} numbers where (1797, 65) are expected; {MEND}")
    pixels, labels = table[:, :-1], table[:, -1]
    if not (pixels.min() >= 0 and pixels.max() <= 16 and {*labels.tolist()} == {*range(10)}):
        raise DataError(f"digits: {path}: pixels beyond 0 to 16, or labels that are not 0 to 9; {MEND}")
    return table


def cifar10(root: Path, download: bool = False) -> Images:
    """CIFAR-10 under `root`: torchvision's `cifar-10-batches-py` or the image folder `cifar10/{train,test}/<class>/`.

    45,000 train, 5,000 valid (a fixed tenth of the published training images), 10,000 test. The fingerprint of
    torchvision's files is over their checksums, which are verified; that of a folder is said in `tasks/folder.py`.

    Reference: Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.
    """
    if os.path.isdir(root / "cifar10") and not os.path.lexists(root / "cifar-10-batches-py"):
        train, test, fingerprint = folder.read(root / "cifar10", size=32, classes=10)
    else:
        train, test, fingerprint = _torchvision(root, download)
    count, order = len(train[1]), shuffled(len(train[1]))
    splits = {"train": order[count // 10 :], "valid": order[: count // 10]}
    splits["test"] = torch.arange(count, count + len(test[1]))
    images = torch.cat([train[0], test[0]])
    mean_std = statistics(images, splits["train"])
    return Images(images, torch.cat([train[1], test[1]]), splits, *mean_std, fingerprint)


def _torchvision(root: Path, download: bool) -> tuple[folder.Split, folder.Split, str]:
    from torchvision.datasets import CIFAR10

    files = [*CIFAR10.train_list, *CIFAR10.test_list, [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]]
    if download:
        try:
            CIFAR10(str(root), download=True)
        except (OSError, RuntimeError, EOFError, zlib.error, tarfile.TarError) as error:  # URLError is an OSError
            raise DataError(f"CIFAR-10: {CIFAR10.url} cannot be had into {root}: {error}; {ADVICE}") from error
    for name, md5 in files:
        path = root / CIFAR10.base_folder / name
        if problem := _problem(path, md5):
            raise DataError(f"CIFAR-10: {path}: {problem}, and {root / 'cifar10'} is no image folder; {ADVICE}")
    parts = [CIFAR10(str(root), train=train) for train in (True, False)]
    train, test = ((torch.from_numpy(p.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(p.targets)) for p in parts)
    return train, test, hashlib.sha256("".join(md5 for _, md5 in files).encode()).hexdigest()[:12]


def _problem(path: Path, md5: str) -> str:
    """What is wrong with a file that should have this checksum, or nothing."""
    if not os.path.isfile(path):
        return "no file but something else" if os.path.exists(path) else "no such file"
    try:
        found = hashlib.md5(path.read_bytes()).hexdigest()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if found == md5 else f"its md5 is not {md5}: the file is corrupt"


def shuffled(count: int) -> Tensor:
    """A permutation of range(count) that is the same in every run: splits must not follow the seed."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def statistics(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel of the uint8 images (N, C, H, W) at `index`, each (C, 1, 1).

    The deviation of a constant channel is given as 1: scaled, the channel is 0.
    """
    count = len(index) * images.shape[2] * images.shape[3]
    total = square = torch.zeros(images.shape[1], dtype=torch.float64)
    for part in index.split(1000):
        chunk = images[part].int()
        total, square = total + chunk.sum((0, 2, 3)), square + chunk.square().sum((0, 2, 3))
    mean = total / count
    variance = square / count - mean**2
    deviation = variance.sqrt().where(variance > CONSTANT, torch.ones_like(variance))
    return mean.float()[:, None, None], deviation.float()[:, None, None]


CONSTANT = 1e-9  # variance of pixels: one other pixel among 10^9 gives as much, rounding a thousandth of it
MEND = "install it anew: pip install --force-reinstall scikit-learn"
ADVICE = (
    "give the folder that holds cifar-10-batches-py or cifar10/{train,test}/<class>/ with --data-root DIR, "
    "or let `python run_all.py --tasks cifar10/resnet18 --data-root DIR --download` get the data set"
)
LOADERS: Mapping[str, Callable[[Path, bool], Images]] = {"digits": digits, "cifar10": cifar10}
