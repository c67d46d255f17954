"""Errors name the field, its value and what was expected."""

from __future__ import annotations

import math
import re

import pytest

from dstbench.methods.checks import choose, within
from dstbench.suite import registry


def test_choose() -> None:
    assert choose("colour", "red", ("red", "green")) == "red"
    with pytest.raises(ValueError, match=r"^colour is 'gren'; choose one of red, green; did you mean 'green'[?]$"):
        choose("colour", "gren", ("red", "green"))
    with pytest.raises(ValueError, match=r"^colour is 'zzz'; choose one of red, green$"):
        choose("colour", "zzz", ("red", "green"))
    with pytest.raises(ValueError, match=r"^colour is 3; choose one of red, green$"):
        choose("colour", 3, ("red", "green"))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, "0.5", True, None])
def test_within(value: float) -> None:
    assert within("share", 1, 0, 1) == 1
    with pytest.raises(ValueError, match=r"share is .*; give a value from 0 to 1"):
        within("share", value, 0, 1)


@pytest.mark.parametrize(
    ("name", "field", "value", "wanted"),
    [
        ("rigl", "alpha", "0.3", "a number"),
        ("rigl", "period", 2.5, "a whole number"),
        ("rigl", "stop", True, "a number"),
        ("rigl", "period", False, "a whole number"),
        ("rigl", "after_step", 1, "True or False"),
        ("rigl", "allocation", 3, "a text"),
        ("rigl", "sparsity", "0.9", "a number"),
        ("static", "budget", "1", "a number"),
        ("ml_linbreg", "lam", "big", "a number"),
        ("ml_linbreg", "m", 3.0, "a whole number"),
        ("nm", "n", 1.0, "a whole number"),
        ("imp", "rounds", "4", "a whole number"),
    ],
)
def test_a_value_of_a_wrong_type_is_named_with_method_and_field(
    name: str, field: str, value: object, wanted: str
) -> None:
    kind = registry.find("method", name).load()
    with pytest.raises(ValueError, match=f"^{re.escape(f'{name}: {field} is {value!r}; give {wanted}')}$"):
        kind(**{field: value})


@pytest.mark.parametrize("name", registry.methods())
def test_every_method_s_own_values_are_of_their_types(name: str) -> None:
    made = registry.method(name)
    assert type(made)(**made.hyperparameters()).hyperparameters() == made.hyperparameters()
