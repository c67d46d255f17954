"""Intervals and differences against scipy, closed forms and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dstbench.reports.statistics import (
    Difference,
    bonferroni,
    paired_difference,
    retention,
    satterthwaite,
    sign_test_floor,
    star,
    stars_allowed,
    t_interval,
)  # fmt: skip

values = st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=2, max_size=8)


@given(values, st.sampled_from([0.8, 0.95, 0.99]))
def test_t_interval_is_scipys(sample, level):
    found = t_interval(sample, level)
    error = stats.sem(sample)
    assert found.n == len(sample) and math.isclose(found.mean, np.mean(sample), abs_tol=1e-9)
    if error > 1e-6:
        low, high = stats.t.interval(level, len(sample) - 1, np.mean(sample), error)
        assert math.isclose(found.low, low, rel_tol=1e-9, abs_tol=1e-9)
        assert math.isclose(found.high, high, rel_tol=1e-9, abs_tol=1e-9)
        assert math.isclose(found.df, len(sample) - 1)


def test_one_value_or_none_gives_no_interval():
    assert t_interval([0.5]).mean == 0.5 and math.isnan(t_interval([0.5]).half)
    assert math.isnan(t_interval([]).mean) and t_interval([]).n == 0
    assert t_interval([0.5, 0.5, 0.5]).half == 0


def test_t_interval_of_three_seeds_by_hand():
    found = t_interval([0.90, 0.92, 0.94])
    assert found.mean == pytest.approx(0.92)
    assert found.half == pytest.approx(4.302653 * 0.02 / math.sqrt(3), rel=1e-6)


def coverage(draw, interval, truth, n=4000):
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(n):
        found = interval(draw(rng))
        hits += found.low <= truth <= found.high
    return hits / n


def test_t_interval_of_three_seeds_covers_95_percent():
    assert coverage(lambda rng: rng.normal(0.9, 0.01, 3), t_interval, 0.9) == pytest.approx(0.95, abs=0.012)


def test_satterthwaite_of_unequal_cells_covers_95_percent():
    spreads = (0.03, 0.01, 0.002)
    draw = lambda rng: [rng.normal(0.9, s, 3) for s in spreads]  # noqa: E731
    assert coverage(draw, satterthwaite, 0.9, 3000) == pytest.approx(0.95, abs=0.025)


def test_satterthwaite_of_two_cells_has_welchs_degrees_of_freedom():
    a, b = [0.1, 0.4, 0.2, 0.5], [1.0, 3.0, 2.5]
    welch = stats.ttest_ind(a, b, equal_var=False)
    found = satterthwaite([a, b])
    assert found.df == pytest.approx(welch.df)
    interval = welch.confidence_interval(0.95)
    assert found.half == pytest.approx((interval.high - interval.low) / 2 / 2)
    assert found.mean == pytest.approx((np.mean(a) + np.mean(b)) / 2)


def test_satterthwaite_weighs_cells_alike_and_wants_variance_in_each():
    assert satterthwaite([[0.0, 0.0], [1.0] * 6]).mean == 0.5
    assert math.isnan(satterthwaite([[0.5, 0.6], [0.7]]).half)
    assert satterthwaite([[0.0, 0.0], [0.5, 0.7]]).half == pytest.approx(t_interval([0.5, 0.7]).half / 2)


@given(values, st.integers(1, 5))
def test_equal_cells_pool_their_degrees_of_freedom(sample, cells):
    if np.var(sample) > 1e-6:
        assert satterthwaite([sample] * cells).df == pytest.approx(cells * (len(sample) - 1))


def test_retention_of_either_direction():
    assert retention(0.5, 0.1, 0.9) == pytest.approx(0.5)
    assert retention(0.1, 0.1, 0.9) == 0 and retention(0.9, 0.1, 0.9) == 1
    assert retention(60.0, 100.0, 20.0, higher=False) == pytest.approx(0.5)
    assert math.isnan(retention(0.5, 0.1, 0.1)) and math.isnan(retention(0.5, 0.1, math.nan))


def test_nothing_is_retained_of_a_dense_run_that_gained_nothing():
    assert math.isnan(retention(4.0, 4.17, 5.0, higher=False)) and math.isnan(retention(0.2, 0.1, 0.05))
    assert math.isnan(retention(0.2, 0.1, 0.1)) and retention(4.0, 4.17, 3.83, higher=False) == pytest.approx(0.5)


def test_paired_difference_of_one_cell_is_the_paired_t_test():
    a, b = [0.91, 0.95, 0.90, 0.93], [0.90, 0.91, 0.89, 0.93]
    found = paired_difference([dict(enumerate(a))], [dict(enumerate(b))])
    oracle = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert found.mean - found.half == pytest.approx(oracle.low)
    assert found.mean + found.half == pytest.approx(oracle.high)
    assert found.pairs == 4 and found.distinguishable == (oracle.low > 0)


def geometric(cells: list[np.ndarray]) -> tuple[float, float]:
    """Standard error of the mean of cell means, and the geometric mean of Satterthwaite's df and the smallest."""
    v = [np.var(c, ddof=1) / len(c) for c in cells]
    df = sum(v) ** 2 / sum(x**2 / (len(c) - 1) for x, c in zip(v, cells, strict=True))
    return math.sqrt(sum(v)) / len(cells), math.sqrt(df * (min(map(len, cells)) - 1))


def test_paired_difference_leaves_each_cell_its_own_variance():
    a = [{0: 0.2, 1: 0.4, 2: 0.9}, {0: 0.5, 1: 0.5, 2: 0.8, 3: 0.7}]
    b = [{0: 0.1, 1: 0.1, 2: 0.2, 7: 0.0}, {0: 0.4, 1: 0.2, 2: 0.5, 3: 0.0}]
    d1, d2 = np.array([0.1, 0.3, 0.7]), np.array([0.1, 0.3, 0.3, 0.7])
    error, df = geometric([d1, d2])
    found = paired_difference(a, b)
    assert found.mean == pytest.approx((d1.mean() + d2.mean()) / 2)
    assert found.half == pytest.approx(stats.t.ppf(0.975, df) * error)
    assert found.detectable == pytest.approx((stats.t.ppf(0.975, df) + stats.t.ppf(0.8, df)) * error)
    assert (found.pairs, found.cells, found.error, found.df) == (7, 2, pytest.approx(error), pytest.approx(df))
    assert 2 < df < 5


def test_of_two_seeds_the_difference_is_the_t_test_of_their_means():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 4, 2))
    found = paired_difference([dict(enumerate(c)) for c in x], [dict(enumerate(c)) for c in y], 0.9)
    oracle = stats.ttest_rel(x.mean(0), y.mean(0)).confidence_interval(0.9)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((oracle.low, oracle.high))


pairs = st.lists(
    st.lists(st.tuples(st.integers(-99, 99), st.integers(-99, 99)), min_size=2, max_size=5), min_size=1, max_size=5
)


def sides(cells, scale=1.0, shift=0.0):
    """Two lists of mappings seed -> value; `shift` is added to the first."""
    return tuple(
        [{s: scale * (pair[k] + (0.0 if k else shift)) for s, pair in enumerate(cell)} for cell in cells]
        for k in (0, 1)
    )


@given(pairs)
def test_paired_difference_changes_sign_with_the_order(cells):
    a, b = sides(cells)
    one, two = paired_difference(a, b), paired_difference(b, a)
    assert one.mean == pytest.approx(-two.mean) and one.half == pytest.approx(two.half, nan_ok=True)
    assert one.df == pytest.approx(two.df, nan_ok=True)


@given(pairs, st.sampled_from([0.001, 0.5, 30.0]), st.integers(-50, 50))
def test_paired_difference_follows_scale_and_shift(cells, scale, shift):
    found, moved = paired_difference(*sides(cells)), paired_difference(*sides(cells, scale, shift))
    assert moved.mean == pytest.approx(scale * (found.mean + shift), abs=1e-9)
    assert moved.half == pytest.approx(scale * found.half, nan_ok=True)
    assert moved.detectable == pytest.approx(scale * found.detectable, nan_ok=True)


@given(pairs, st.floats(0.01, 500))
def test_an_error_is_not_taken_below_the_least(cells, least):
    found, floored = paired_difference(*sides(cells)), paired_difference(*sides(cells), least=least)
    assert floored.error == pytest.approx(max(least, 0 if math.isnan(found.error) else found.error))
    assert floored.mean == found.mean


@pytest.mark.parametrize("seeds", [2, 3])
def test_a_constant_difference_has_no_interval(seeds):
    a, b = [dict.fromkeys(range(seeds), 0.7)] * 3, [dict.fromkeys(range(seeds), 0.1)] * 3
    assert not paired_difference(a, b).distinguishable and math.isnan(paired_difference(a, b).half)
    seen = paired_difference(a, b, least=0.001)
    assert seen.df == seeds - 1 and seen.half == pytest.approx(stats.t.ppf(0.975, seeds - 1) * 0.001)


def test_nothing_is_distinguishable_without_an_interval():
    single = paired_difference([{0: 0.9}], [{0: 0.1}])
    assert single.mean == pytest.approx(0.8) and not single.distinguishable
    none = paired_difference([{0: 0.9}], [{1: 0.1}])
    assert math.isnan(none.mean) and none.pairs == 0 and not none.distinguishable
    assert not Difference(0.0, 0.0, 0.0, 4, 1).distinguishable and Difference(0.1, 0.0, 0.0, 4, 1).distinguishable


def test_the_detectable_difference_is_detected_with_80_percent():
    rng, hits, n = np.random.default_rng(1), 0, 2000
    size = (stats.t.ppf(0.975, 7) + stats.t.ppf(0.8, 7)) * 0.01 / math.sqrt(8)
    for _ in range(n):
        cells = [dict(enumerate(rng.normal(size, 0.01, 8)))]
        hits += paired_difference(cells, [dict.fromkeys(range(8), 0.0)]).distinguishable
    assert hits / n == pytest.approx(0.8, abs=0.04)


def test_stars_are_forbidden_below_six_seeds():
    assert sign_test_floor(3) == 0.25 and sign_test_floor(0) == 1
    for pairs in range(1, 12):
        assert sign_test_floor(pairs) == pytest.approx(stats.binomtest(0, pairs).pvalue)
        assert stars_allowed(pairs) == (pairs >= 6)
    assert star([0.1] * 5) == "" and star([0.1] * 6) == "*" and star([-0.1] * 6) == "*"
    assert star([0.1] * 5 + [-0.1]) == "" and star([0.1] * 5 + [0.0]) == "" and star([]) == ""


def test_what_is_not_known_earns_no_star():
    assert star([math.nan] * 6) == "" and star([0.1] * 6) == star([0.1] * 6 + [math.nan]) == "*"


def test_bonferroni():
    assert (
        bonferroni(1) == pytest.approx(0.95)
        and bonferroni(10) == pytest.approx(0.995)
        and bonferroni(0) == bonferroni(1)
    )
