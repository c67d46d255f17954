"""Checks of hyper-parameters: errors that name the field, its value and what was expected."""

from __future__ import annotations

import difflib
from collections.abc import Collection


def choose(field: str, value: str, choices: Collection[str]) -> str:
    """`value`, if it is one of `choices`; ValueError names the field, the choices and what is near."""
    if value in choices:
        return value
    near = difflib.get_close_matches(value, list(choices), 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{field} is {value!r}; choose one of {', '.join(choices)}{hint}")


def within(field: str, value: float, low: float, high: float) -> float:
    """`value`, if low <= value <= high; ValueError names the field and the range."""
    if low <= value <= high:
        return value
    raise ValueError(f"{field} is {value}; give a value from {low:g} to {high:g}")
