"""Tables: inputs and targets as tensors in memory; scikit-learn's embedded sets of measurements."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dstbench.suite.task import DataError

SHARES = (0.6, 0.2)  # of train and valid; the rest is test


@dataclass(frozen=True, eq=False)
class Table:
    """Inputs (N, ...) and targets of N samples, the indices of each split, and a fingerprint of the content.

    Targets are classes (N,), classes at each place of a sequence (N, T) with -100 where nothing is asked, or numbers
    (N, K), for which `classes` is 0. `synthetic` data is made by code. Splits are the same for every seed.
    """

    inputs: Tensor
    targets: Tensor
    splits: Mapping[str, Tensor]
    fingerprint: str
    classes: int = 0
    synthetic: bool = False


def breast_cancer(root: Path | None = None, download: bool = False) -> Table:
    """569 tumours, 30 measurements, 2 classes. Reference: Wolberg et al. 1995, UCI, Breast Cancer Wisconsin."""
    return _embedded("breast_cancer", (569, 30), 2)


def wine(root: Path | None = None, download: bool = False) -> Table:
    """178 wines, 13 measurements, 3 cultivars. Reference: Forina et al. 1991, UCI, Wine."""
    return _embedded("wine", (178, 13), 3)


def iris(root: Path | None = None, download: bool = False) -> Table:
    """150 flowers, 4 measurements, 3 species. Reference: Fisher 1936, Annals of Eugenics 7."""
    return _embedded("iris", (150, 4), 3)


def diabetes(root: Path | None = None, download: bool = False) -> Table:
    """442 patients, 10 measurements; the target is a measure of progression, scaled to unit variance.

    Reference: Efron et al. 2004, Least Angle Regression, Annals of Statistics 32.
    """
    return _embedded("diabetes", (442, 10), 0, scaled=False)


def _embedded(name: str, shape: tuple[int, int], classes: int, **options: bool) -> Table:
    mend = "install it anew: pip install --force-reinstall scikit-learn"
    try:
        from sklearn import datasets

        raw = getattr(datasets, f"load_{name}")(**options)
        inputs, targets = np.asarray(raw.data, np.float64), np.asarray(raw.target, np.float64)
    except (OSError, EOFError, ValueError, ImportError) as error:
        raise DataError(f"{name}: scikit-learn's embedded file cannot be read ({error}); {mend}") from error
    if inputs.shape != shape or targets.shape != shape[:1] or not np.isfinite(inputs).all():
        raise DataError(f"{name}: {inputs.shape} numbers where {shape} are expected; {mend}")
    fingerprint = hashlib.sha256(inputs.tobytes() + targets.tobytes()).hexdigest()[:12]
    return table(inputs, targets, split(len(inputs)), fingerprint, classes)


def table(
    inputs: np.ndarray, targets: np.ndarray, splits: Mapping[str, Tensor], fingerprint: str, classes: int
) -> Table:
    """A table of measurements: inputs, and targets that are numbers, to zero mean and unit variance over train.

    Args:
        inputs: Measurements, (N, K).
        targets: (N,), whole numbers from 0 where there are classes.
        splits: Indices.
        fingerprint: 12 hex digits.
        classes: How many; 0 where targets are numbers.
    """
    train = splits["train"].numpy()
    scaled = torch.from_numpy(_standard(inputs, train)).float()
    if classes:
        return Table(scaled, torch.from_numpy(targets.astype(np.int64)), splits, fingerprint, classes)
    return Table(scaled, torch.from_numpy(_standard(targets[:, None], train)).float(), splits, fingerprint)


def split(count: int) -> dict[str, Tensor]:
    """Indices of 60 % train, 20 % valid and 20 % test, by a permutation that is the same in every run."""
    order = torch.from_numpy(np.random.RandomState(0).permutation(count))
    first, second = round(SHARES[0] * count), round(sum(SHARES) * count)
    return {"train": order[:first], "valid": order[first:second], "test": order[second:]}


def _standard(values: np.ndarray, train: np.ndarray) -> np.ndarray:
    """A column that is constant over train becomes zero there."""
    deviation = values[train].std(0)
    return (values - values[train].mean(0)) / np.where(deviation > 1e-12, deviation, 1.0)
