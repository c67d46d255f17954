"""Schedules: closed forms, end points, and published averages."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dstbench.methods.schedules import cosine, cubic, due

steps = st.integers(0, 2000)


def test_due_starts_at_one_period_and_ends_before_stop() -> None:
    assert [t for t in range(50) if due(t, 8, 32)] == [8, 16, 24]
    assert [t for t in range(50) if due(t, 8, 32.5)] == [8, 16, 24, 32]
    assert not any(due(t, 1, 1) for t in range(-5, 5))


def test_rigl_updates_of_the_published_recipe() -> None:
    assert sum(due(t, 100, 0.75 * 32_000) for t in range(32_000)) == 239


def test_cosine_in_closed_form() -> None:
    assert cosine(0, 0.3, 100) == pytest.approx(0.3)
    assert cosine(50, 0.3, 100) == pytest.approx(0.15)
    assert cosine(25, 0.3, 100) == pytest.approx(0.15 * (1 + math.sqrt(0.5)))
    assert cosine(100, 0.3, 100) == cosine(5000, 0.3, 100) == cosine(0, 0.3, 0) == 0.0


@settings(deadline=None)
@given(steps, steps, st.floats(0, 1), st.floats(1, 1500))
def test_cosine_falls(a: int, b: int, start: float, stop: float) -> None:
    assert start >= cosine(min(a, b), start, stop) >= cosine(max(a, b), start, stop) >= 0


def test_cubic_in_closed_form() -> None:
    assert cubic(0, 10, 20) == cubic(10, 10, 20) == 0.0
    assert cubic(15, 10, 20) == pytest.approx(1 - 0.5**3)
    assert cubic(20, 10, 20) == cubic(21, 10, 20) == cubic(7, 7, 7) == 1.0


@settings(deadline=None)
@given(steps, steps, steps, steps)
def test_cubic_rises(a: int, b: int, begin: int, length: int) -> None:
    assert 0 <= cubic(min(a, b), begin, begin + length) <= cubic(max(a, b), begin, begin + length) <= 1


@pytest.mark.parametrize(("first", "last", "published"), [(0, 75, 0.269), (20, 79, 0.413)])
def test_average_density_of_a_window(first: int, last: int, published: float) -> None:
    """To 90 % sparsity between two percentages of the run: 1 before, 1 - 0.9 * 3/4 on average inside, 0.1 after."""
    n = 200
    found = sum(1 - 0.9 * cubic(t, first * n, last * n) for t in range(100 * n)) / (100 * n)
    assert found == pytest.approx(published, abs=5e-4)
