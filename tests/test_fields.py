"""Single values of a plan: every notation has one meaning, and what has none says what would."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstbench.suite import fields


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("2h", 7200), ("1h30m", 5400), ("90s", 90), ("90", 90), (15, 15), ("1.5m", 90), ("1 d", 86400), (None, None)],
)
def test_times(text: object, wanted: float | None) -> None:
    assert fields.seconds(text) == wanted


@pytest.mark.parametrize("text", ["soon", "", "2x", "-3", "0", "h", "1h of rest", "1.2.3s", "9999d", "inf", "nan"])
def test_no_times(text: str) -> None:
    with pytest.raises(ValueError, match="a time"):
        fields.seconds(text)


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        (3, [0, 1, 2]),
        ("3", [0, 1, 2]),
        (0, [0]),
        ("0", [0]),
        ("3,", [3]),
        ("3-3", [3]),
        ([3], [3]),
        ("0-3", [0, 1, 2, 3]),
        ("0-2,7", [0, 1, 2, 7]),
        ([1, "4-5"], [1, 4, 5]),
        ("0, 4", [0, 4]),
        ([20261129], [20261129]),
        ("20261129,", [20261129]),
        (1000, [*range(1000)]),
    ],
)
def test_seeds(given_: Any, wanted: list[int]) -> None:
    assert fields.seeds(given_) == wanted


@pytest.mark.parametrize(
    ("given_", "part"),
    [
        (20261129, "is it one seed? then write [20261129] in a plan, 20261129, (with the comma) as an option"),
        ("20261129", "is it one seed?"),
        ("a", "'a' is no whole number; seeds are a count (3: the seeds 0, 1 and 2), a list (0,4), a range (0-3)"),
        ("1,,2", "one is empty"),
        ("-1", "seeds are a count"),
        ([-1], "-1 is no seed and no range"),
        ("3-0", "'3-0' is no seed and no range"),
        ("1-2-3", "no seed and no range"),
        ("0-1000", "a range has at most 1000"),
        ([2**32], "a seed is at most 4294967295"),
        (1.5, "1.5 is no whole number"),
        (math.nan, "nan is no whole number"),
        (True, "True is no whole number"),
        ({}, "seeds are a count"),
        (None, "seeds are a count"),
        ("9" * 5000, "is no whole number"),
    ],
)
def test_no_seeds(given_: Any, part: str) -> None:
    with pytest.raises(ValueError) as error:
        fields.seeds(given_)
    assert part in str(error.value) and len(str(error.value)) < 300


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=9))
def test_seeds_as_text_are_those_of_the_list(wanted: list[int]) -> None:
    assert fields.seeds(",".join(map(str, wanted)) + ",") == fields.seeds(wanted) == wanted


@given(st.floats(0, 1, exclude_max=True))
def test_a_share_is_itself(share: float) -> None:
    assert fields.sparsity(repr(share)) == fields.sparsity(share) == share


def test_minus_nothing_is_nothing() -> None:
    assert math.copysign(1, fields.sparsity("-0.0")) == 1


@pytest.mark.parametrize(
    ("text", "mend"),
    [("90", "0.9"), (95.5, "0.955"), ("90%", "0.9"), ("1", ""), ("-0.5", ""), ("nan", ""), ("inf", ""), (True, "")],
)
def test_what_is_no_share_is_mended_where_it_can_be(text: Any, mend: str) -> None:
    with pytest.raises(ValueError) as error:
        fields.sparsity(text)
    wanted = "a share of zero weights from 0 up to 1 is expected, without 1 itself"
    assert str(error.value) == (f"{wanted}; did you mean {mend}?" if mend else wanted)


def test_devices_have_names() -> None:
    assert [fields.device(name) for name in ("auto", "cuda:3")] == ["auto", "cuda:3"]
    for wrong in ("gpu", "cuda:", "cuda:x", "", "CPU", "cpu\n", 3):
        with pytest.raises(ValueError, match="choose auto, cpu, mps, cuda or cuda:N"):
            fields.device(wrong)
