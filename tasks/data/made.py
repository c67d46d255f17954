"""Data made by code: synthetic, functions of fixed seeds, the same on every machine.

Each is small and hard in its own way: sparse networks lose on arithmetic and reasoning what they keep on images (Liu et
al. 2023, "Sparsity May Cry", arXiv 2303.02141). Streams are numpy's RandomState and Python's
random(), which neither ever changes.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dstbench.tasks.data.tabular import Table

NOTHING = -100  # a target that is not asked for: what torch's cross entropy ignores

# ---- arithmetic ------------------------------------------------------------------------------------------------------


def modular_addition(root: Path | None = None, download: bool = False, modulus: int = 97) -> Table:
    """a + b modulo 97: every pair as two tokens, (9409, 2), and the sum as the class; 60 % train, 20 % valid and test.

    Reference: Power et al. 2022, "Grokking", arXiv 2201.02177, which learns it from half of the pairs.
    """
    pairs = np.stack(np.divmod(np.arange(modulus**2), modulus), 1)
    count = len(pairs)
    return _table(pairs, pairs.sum(1) % modulus, (round(0.6 * count), round(0.2 * count)), modulus)


def digit_addition(root: Path | None = None, download: bool = False, digits: int = 3) -> Table:
    """Sums of two numbers of three digits as text: 50,000 pairs train, 2,000 valid, 2,000 test, none in two splits.

    A sample is the digits of a, of b and of a + b, the last reversed: tokens 0 to 9 without the last one, (N, 9), and
    at each place the next token, asked for from the first digit of the sum on. As in minGPT's adder.

    Reference: Karpathy, github.com/karpathy/minGPT, projects/adder.
    """
    codes = np.random.RandomState(0).permutation(10 ** (2 * digits))[:54_000]
    a, b = np.divmod(codes, 10**digits)
    down, up = 10 ** np.arange(digits)[::-1], 10 ** np.arange(digits + 1)
    text = np.concatenate([x[:, None] // places % 10 for x, places in ((a, down), (b, down), (a + b, up))], 1)
    targets = text[:, 1:].copy()
    targets[:, : 2 * digits - 1] = NOTHING
    return _table(text[:, :-1], targets, (50_000, 2_000), 10)


# ---- nested lists ----------------------------------------------------------------------------------------------------

OPERATIONS: dict[str, Callable[[list[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: sorted(values)[(len(values) - 1) // 2],
    "[SM": lambda values: sum(values) % 10,
}
TOKENS = (*map(str, range(10)), *OPERATIONS, "]", "_")


def listops(root: Path | None = None, download: bool = False, length: int = 32, depth: int = 3) -> Table:
    """Nested lists of digits and what they come to, such as [MAX 2 [MIN 4 7 ] 0 ]: 20,000 train, 2,000 valid and test.

    At most 32 tokens of 16 kinds, filled up in front with "_", (N, 32); what is asked for stands at the last place of
    the targets (N, 32), a digit. No expression occurs twice. A small version of ListOps, made anew.

    Reference: Nangia & Bowman 2018, arXiv 1804.06028; Tay et al. 2021, Long Range Arena, arXiv 2011.04006.
    """
    draw = random.Random(0).random
    found: dict[tuple[str, ...], int] = {}
    while len(found) < 24_000:
        words, value = _expression(draw, depth)
        if 5 <= len(words) <= length:
            found[tuple(words)] = value
    number = {word: i for i, word in enumerate(TOKENS)}
    inputs = np.array([[number[w] for w in ("_",) * (length - len(words)) + words] for words in found])
    targets = np.full_like(inputs, NOTHING)
    targets[:, -1] = list(found.values())
    return _table(inputs, targets, (20_000, 2_000), len(TOKENS))


def _expression(draw: Callable[[], float], depth: int) -> tuple[list[str], int]:
    """A list of two to four terms, each a digit or, with a chance of 0.35, a list one level less deep."""
    name = [*OPERATIONS][int(draw() * len(OPERATIONS))]
    words: list[str] = [name]
    values: list[int] = []
    for _ in range(2 + int(draw() * 3)):
        if depth > 1 and draw() < 0.35:
            inner, value = _expression(draw, depth - 1)
        else:
            value = int(draw() * 10)
            inner = [str(value)]
        words, values = words + inner, [*values, value]
    return [*words, "]"], OPERATIONS[name](values)


# ---- parity ----------------------------------------------------------------------------------------------------------


def sparse_parity(root: Path | None = None, download: bool = False, bits: int = 30, of: int = 3) -> Table:
    """The parity of 3 of 30 random bits, the others idle: -1 and 1, (12000, 30); 8,000 train, 2,000 valid and test.

    Reference: Barak et al. 2022, "Hidden Progress in Deep Learning", arXiv 2207.08799.
    """
    rng = np.random.RandomState(0)
    inputs = np.unique(rng.randint(0, 2, (12_100, bits)), axis=0)
    inputs = inputs[rng.permutation(len(inputs))[:12_000]]
    relevant = rng.permutation(bits)[:of]
    return _table(2.0 * inputs - 1, inputs[:, relevant].sum(1) % 2, (8_000, 2_000), 2)


# ---- MNIST-1D --------------------------------------------------------------------------------------------------------

TEMPLATES = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)


def mnist1d(root: Path | None = None, download: bool = False) -> Table:
    """Ten shapes of 12 points, stretched, moved, sheared and noisy: (5000, 40); 3,500 train, 500 valid, 1,000 test.

    The same samples as the authors' `make_dataset()` with its defaults (seed 42), re-implemented; the test split is
    theirs, the valid split the last 500 of their 4,000 training samples. Published: logistic regression 32 %, MLP 68,
    CNN 94, GRU 91.

    Reference: Greydanus & Kobak 2024, arXiv 2011.14439; github.com/greydanus/mnist1d, Apache-2.0.
    """
    rng = np.random.RandomState(42)
    shapes = np.array(TEMPLATES, dtype=float)
    shapes -= shapes.mean(1, keepdims=True)
    shapes /= shapes.std(1, keepdims=True)
    shapes = (shapes - shapes[:, :1]) / 6
    signals = np.stack(list(_signals(shapes, rng)))
    labels = np.repeat(np.arange(10), 500)
    order = rng.permutation(5000)
    signals, labels = signals[order], labels[order]
    signals = (signals - signals.mean()) / signals.std()
    places = torch.arange(5000)
    splits = {"train": places[:3500], "valid": places[3500:4000], "test": places[4000:]}
    return _table(signals, labels, splits, 10)


def _signals(shapes: np.ndarray, rng: np.random.RandomState) -> Iterator[np.ndarray]:
    """500 signals of each shape; the order of draws is the authors'."""
    from scipy.ndimage import gaussian_filter

    for shape in shapes:
        for _ in range(500):
            x = np.concatenate([shape + 1e-8, np.zeros(36 + int(rng.rand() * 25))])
            x = _resampled(x, 72) * (1 + 0.4 * (rng.rand() - 0.5))
            x = np.roll(x, rng.choice(48))
            x = np.where(x != 0, x, gaussian_filter(0.25 * rng.randn(72), 2))
            x = x + 2e-2 * rng.randn(72)
            x = x - 0.75 * (rng.rand() - 0.5) * np.linspace(-0.5, 0.5, 72)
            yield _resampled(x, 40)


def _resampled(x: np.ndarray, count: int) -> np.ndarray:
    return np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(x)), x)


# ---- tables ----------------------------------------------------------------------------------------------------------


def _table(
    inputs: np.ndarray, targets: np.ndarray, splits: tuple[int, int] | Mapping[str, Tensor], classes: int
) -> Table:
    """Numbers become float32, tokens int64; sizes of train and valid are those of a fixed permutation, the rest test.

    The fingerprint is over thousandths, which the rounding of another machine does not reach.
    """
    if isinstance(splits, tuple):
        order = torch.from_numpy(np.random.RandomState(1).permutation(len(inputs)))
        ends = splits[0], sum(splits)
        splits = {"train": order[: ends[0]], "valid": order[ends[0] : ends[1]], "test": order[ends[1] :]}
    whole = [np.rint(1000 * inputs).astype("<i4"), targets.astype("<i4"), *(s.numpy() for s in splits.values())]
    fingerprint = hashlib.sha256(b"".join(a.astype("<i4").tobytes() for a in whole)).hexdigest()[:12]
    numbers = torch.from_numpy(inputs.astype(np.float32 if inputs.dtype.kind == "f" else np.int64))
    return Table(numbers, torch.from_numpy(targets.astype(np.int64)), splits, fingerprint, classes, synthetic=True)
