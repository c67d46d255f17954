"""Expected orderings: verdicts against differences computed by hand."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from dstbench.reports.boards import cells
from dstbench.reports.load import frame
from dstbench.reports.orderings import difference, orderings, verdict
from dstbench.reports.statistics import Difference
from records import make


def table(scores: dict[str, list[float]], task: str = "digits/mlp"):
    found = [
        make(method, None if method == "dense" else 0.9, seed, value, task=task)
        for method, values in scores.items()
        for seed, value in enumerate(values)
    ]
    return cells(frame(found, set()))


def test_verdicts() -> None:
    for mean, half, said in ((0.1, 0.01, "holds"), (0.0, 0.0, "holds"), (-0.01, 0.02, "within the interval")):
        assert verdict(Difference(mean, half, 0.1, 3, 1)) == said
    assert verdict(Difference(-0.03, 0.02, 0.1, 3, 1)) == "does not hold"
    assert verdict(Difference(-0.03, math.nan, math.nan, 1, 1)) == "within the interval"  # one seed says nothing


def test_the_difference_is_that_of_a_paired_t_test_on_retention() -> None:
    dense, weak, strong = [0.9, 0.9, 0.9], [0.70, 0.74, 0.71], [0.80, 0.79, 0.83]
    found = difference(table({"dense": dense, "static": weak, "set": strong}), "static", "set")
    assert found is not None
    gaps = [(b - a) / 0.8 for a, b in zip(weak, strong, strict=True)]
    test = stats.ttest_1samp(gaps, 0).confidence_interval()
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((test.low, test.high))


def test_rows_are_the_pairs_that_ran_and_every_method_and_dense() -> None:
    scores = {
        "dense": [0.9, 0.91, 0.9],
        "static": [0.8, 0.8, 0.81],
        "set": [0.7, 0.7, 0.709],
        "snip": [0.95, 0.959, 0.95],
    }
    rows = {row[0].text: row[4].text for row in orderings(table(scores)).rows}
    assert rows == {
        "static ≤ set": "does not hold",
        "static ≤ snip": "holds",
        "static ≤ dense": "holds",
        "set ≤ dense": "holds",
        "snip ≤ dense": "does not hold",
    }
    (held,) = (row for row in orderings(table(scores)).rows if row[0].text == "set ≤ dense")
    assert held[2].text.startswith("24.9 ±") and held[3].text == "3"  # 0.2 of 0.9033 less the chance of 0.1


def test_nothing_to_compare_gives_no_rows() -> None:
    assert orderings(table({"dense": [0.9]})).rows == []
    assert orderings(table({"rigl": [0.9]})).rows == []
