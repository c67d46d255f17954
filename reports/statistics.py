"""What a few seeds can support: intervals, retention and paired differences; functions of plain arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
ALPHA = 1 - LEVEL
POWER = 0.8


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
    """A paired difference pooled over cells: `mean` ± `half`, and the difference that would be seen with `POWER`."""

    mean: float
    half: float
    detectable: float
    pairs: int
    cells: int

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
    parts = np.array([a.var(ddof=1) / len(a) for a in arrays]) / len(arrays) ** 2
    variance = float(parts.sum())
    if variance == 0:
        return Interval(mean, 0.0, n, math.inf)
    df = variance**2 / float(sum(part**2 / (len(a) - 1) for part, a in zip(parts, arrays, strict=True)))
    return Interval(mean, _quantile(0.5 + level / 2, df) * math.sqrt(variance), n, df)


def retention(metric: float, chance: float, dense: float) -> float:
    """(metric − chance) / (dense − chance), for metrics of either direction; nan where dense is at chance."""
    return (metric - chance) / (dense - chance) if dense != chance else math.nan


def paired_difference(
    a: Sequence[Mapping[int, float]], b: Sequence[Mapping[int, float]], level: float = LEVEL
) -> Difference:
    """Mean over cells of `a` − `b`, paired by seed; the variance within cells is pooled over them.

    `a` and `b` hold one mapping seed -> value for each cell, in the same order; seeds and cells that only one has are
    left out. The detectable difference is (t at `level` + t at `POWER`) standard errors.
    """
    cells = [np.array([x[s] - y[s] for s in sorted(x.keys() & y.keys())]) for x, y in zip(a, b, strict=True)]
    cells = [c for c in cells if len(c)]
    pairs, df = sum(map(len, cells)), sum(len(c) - 1 for c in cells)
    if not cells or not df:
        mean = float(np.mean([c.mean() for c in cells])) if cells else math.nan
        return Difference(mean, math.nan, math.nan, pairs, len(cells))
    pooled = sum(float(((c - c.mean()) ** 2).sum()) for c in cells) / df
    error = math.sqrt(pooled * sum(1 / len(c) for c in cells)) / len(cells)
    critical = _quantile(0.5 + level / 2, df)
    mean = float(np.mean([c.mean() for c in cells]))
    return Difference(mean, critical * error, (critical + _quantile(POWER, df)) * error, pairs, len(cells))


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

    signs = [d > 0 for d in differences if d]
    return "*" if stars_allowed(len(signs)) and binomtest(sum(signs), len(signs)).pvalue < ALPHA else ""


def _quantile(probability: float, df: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(df, probability))
