"""Errors name the field, its value and what was expected."""

from __future__ import annotations

import math

import pytest

from methods.checks import choose, within


def test_choose() -> None:
    assert choose("colour", "red", ("red", "green")) == "red"
    with pytest.raises(ValueError, match=r"^colour is 'gren'; choose one of red, green; did you mean 'green'[?]$"):
        choose("colour", "gren", ("red", "green"))
    with pytest.raises(ValueError, match=r"^colour is 'zzz'; choose one of red, green$"):
        choose("colour", "zzz", ("red", "green"))


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_within(value: float) -> None:
    assert within("share", 1, 0, 1) == 1
    with pytest.raises(ValueError, match=r"share is .*; give a value from 0 to 1"):
        within("share", value, 0, 1)
