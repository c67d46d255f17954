"""Checks of hyper-parameters: errors that name the field, its value and what was expected."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from numbers import Real
from typing import Any


def choose(field: str, value: str, choices: Collection[str]) -> str:
    """`value`, if it is one of `choices`; ValueError names the field, the choices and what is near."""
    if isinstance(value, str) and value in choices:
        return value
    near = difflib.get_close_matches(value, list(choices), 1) if isinstance(value, str) else []
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{field} is {value!r}; choose one of {', '.join(choices)}{hint}")


def within(field: str, value: float, low: float, high: float) -> float:
    """`value`, if low <= value <= high; ValueError names the field and the range."""
    if isinstance(value, Real) and not isinstance(value, bool) and low <= value <= high:
        return value
    raise ValueError(f"{field} is {value!r}; give a value from {low:g} to {high:g}")


def valid(method: Any, **rules: Collection[str] | tuple[float, float]) -> None:
    """Hold fields of a method against their rules: a pair of numbers is a range, all else the names to choose from.

    ValueError as in `choose` and `within`, with the method's name.
    """
    for field, rule in rules.items():
        value, title = getattr(method, field), f"{method.name}: {field}"
        if isinstance(rule, tuple) and not isinstance(rule[0], str):
            within(title, value, *rule)  # type: ignore[misc, arg-type]
        else:
            choose(title, value, rule)  # type: ignore[arg-type]
