"""What a few seeds can support: intervals, retention and paired differences; functions of plain arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
ALPHA = 1 - LEVEL
POWER = 0.8
ROUNDING = 1e-9  # a standard error below this share of the values is that of their rounding


@dataclass(frozen=True)
class Interval:
    """`mean` ± `half` from `n` values with `df` degrees of freedom; `half` is nan where the values give no interval."""

    mean: float
    half: float
    n: int
    df: float

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half


@dataclass(frozen=True)
class Difference:
    """A paired difference, mean over cells: `mean` ± `half`, and the difference that would be seen with `POWER`.

    `error` is the standard error, with `df` degrees of freedom; `half` and `detectable` are nan where the pairs give
    no interval.
    """

    mean: float
    half: float
    detectable: float
    pairs: int
    cells: int
    error: float = math.nan
    df: float = math.nan

    @property
    def distinguishable(self) -> bool:
        """Whether the interval leaves 0 out; never without an interval."""
        return abs(self.mean) > self.half


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Student's interval of the mean of independent values.

    Reference: Student 1908, "The probable error of a mean", Biometrika 6.
    """
    return satterthwaite([values], level)


def satterthwaite(cells: Sequence[Sequence[float]], level: float = LEVEL) -> Interval:
    """Interval of the mean of cell means, cells weighted alike whatever their number of values and variance.

    A cell of one value has no variance, so there is no interval then; a constant cell is passed with its value twice.
    Reference: Satterthwaite 1946, "An approximate distribution of estimates of variance components", Biometrics 2.
    """
    arrays = [np.asarray(cell, dtype=float) for cell in cells if len(cell)]
    n = sum(len(a) for a in arrays)
    if not arrays:
        return Interval(math.nan, math.nan, 0, math.nan)
    mean = float(np.mean([a.mean() for a in arrays]))
    if any(len(a) < 2 for a in arrays):
        return Interval(mean, math.nan, n, math.nan)
    error, df = _error(arrays)
    return Interval(mean, _quantile(0.5 + level / 2, df) * error if error else 0.0, n, df)


def retention(metric: float, chance: float, dense: float, higher: bool = True) -> float:
    """(metric − chance) / (dense − chance), for metrics of either direction: the share kept of what dense gains.

    Without a level of chance (nan) it is metric / dense, dense / metric where lower is better (`higher` False). nan
    where dense is no better than chance, and where a quotient without a level of chance has a term that is not
    positive.
    """
    if math.isnan(chance):
        over, under = (metric, dense) if higher else (dense, metric)
        return over / under if over >= 0 and under > 0 else math.nan
    gained = dense > chance if higher else dense < chance
    return (metric - chance) / (dense - chance) if gained else math.nan


def paired_difference(
    a: Sequence[Mapping[int, float]], b: Sequence[Mapping[int, float]], level: float = LEVEL, least: float = 0.0
) -> Difference:
    """Mean over cells of `a` − `b`, paired by seed, cells weighted alike whatever their spread.

    The squared error is the sum of the cells' own, as in `satterthwaite`. His degrees of freedom are too many in the
    far tail, the smallest n − 1 of the cells are enough in any case (Hájek); taken is the geometric mean of the two.
    With two seeds in every cell the error is Student's over the seeds' means, with 1 (Scheffé).

    Args:
        a, b: one mapping seed -> value for each cell, in the same order; seeds and cells of one alone are left out.
        level: of the interval.
        least: an error that this pair's is not taken below; several methods compared tell what is usual.

    Returns:
        The difference; it has no interval where a cell has one pair, or where no pair differs from the others of its
        cell: values in steps do that by chance. Detectable are (t at `level` + t at `POWER`) errors.

    Reference: Hájek 1962, "Inequalities for the generalized Student's distribution and their applications";
    Scheffé 1943, "On solutions of the Behrens-Fisher problem, based on the t-distribution".
    """
    cells = [np.array([x[s] - y[s] for s in sorted(x.keys() & y.keys())]) for x, y in zip(a, b, strict=True)]
    cells = [c for c in cells if len(c)]
    pairs, mean = sum(map(len, cells)), float(np.mean([c.mean() for c in cells])) if cells else math.nan
    fewest = min(map(len, cells), default=0)
    if fewest < 2:
        return Difference(mean, math.nan, math.nan, pairs, len(cells))
    if pairs == 2 * len(cells):
        error, df = abs(float(sum(c[0] - c[1] for c in cells))) / 2 / len(cells), 1.0
    else:
        error, df = _error(cells)
        df = math.sqrt(df * (fewest - 1)) if error else fewest - 1
    size = max(abs(value) for x in (*a, *b) for value in x.values())
    error = max(error, least)
    if error <= ROUNDING * size:
        return Difference(mean, math.nan, math.nan, pairs, len(cells), 0.0)
    critical = _quantile(0.5 + level / 2, df)
    detectable = (critical + _quantile(POWER, df)) * error
    return Difference(mean, critical * error, detectable, pairs, len(cells), error, df)


def bonferroni(comparisons: int) -> float:
    """The level of each of several intervals that hold together at `LEVEL`."""
    return 1 - ALPHA / max(1, comparisons)


def sign_test_floor(pairs: int) -> float:
    """The smallest p that a two-sided paired sign test can reach: 0.25 for 3 pairs."""
    return min(1.0, 2.0 ** (1 - pairs))


def stars_allowed(pairs: int) -> bool:
    """Whether that many pairs could show a difference at all: from 6 on."""
    return sign_test_floor(pairs) < ALPHA


def star(differences: Sequence[float]) -> str:
    """ "*" where the paired sign test rejects no difference, ties left out; "" otherwise, and always below 6 pairs."""
    from scipy.stats import binomtest

    signs = [d > 0 for d in differences if d and not math.isnan(d)]
    return "*" if stars_allowed(len(signs)) and binomtest(sum(signs), len(signs)).pvalue < ALPHA else ""


def _error(cells: Sequence[np.ndarray]) -> tuple[float, float]:
    """The standard error of the mean of cell means, and Satterthwaite's degrees of freedom; infinite where it is 0."""
    with np.errstate(over="ignore", invalid="ignore"):  # a metric of 1e200 has no interval, and is no error
        parts = np.array([c.var(ddof=1) / len(c) for c in cells]) / len(cells) ** 2
        freedom = np.array([len(c) - 1 for c in cells])
        variance = parts.sum()
        return math.sqrt(variance), float(variance**2 / (parts**2 / freedom).sum()) if variance else math.inf


def _quantile(probability: float, df: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(df, probability))
