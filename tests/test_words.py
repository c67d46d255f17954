"""Plain words for whatever pydantic may find: none of its own reaches a user."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field
from pydantic_core._pydantic_core import list_all_errors

from dstbench.suite import values, words


@pytest.mark.parametrize("error", list_all_errors(), ids=lambda error: error["type"])
def test_every_kind_of_error_has_plain_words(error: dict[str, Any]) -> None:
    text = words.wanted([{"type": error["type"], "ctx": error.get("example_context"), "msg": "Value error, ours"}])
    assert text == "ours" or text.endswith("is expected")
    assert not re.search("[Ii]nput|should|valid|pydantic|pattern|parse|Value error", text), text


@dataclass
class Fields:
    count: int = 1
    rate: float | None = 0.5
    flag: bool = False
    kind: Literal["x", "y"] = "x"
    either: int | bool = 1
    pair: tuple[int, int] = (1, 2)
    names: list[str] = field(default_factory=list)
    table: dict[str, float] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("count", "many", "a whole number is expected"),
        ("count", 1.5, "a whole number is expected"),
        ("rate", "[1]", "a number is expected"),
        ("rate", ".nan", "a finite number is expected"),
        ("flag", "perhaps", "true or false is expected"),
        ("kind", "z", "'x' or 'y' is expected"),
        ("either", "z", "a whole number or true or false is expected"),
        ("pair", "[1]", "one value for each place is expected"),
        ("pair", "[a, 2]", "a whole number is expected"),
        ("names", 3, "a list is expected"),
        ("table", "x", "a mapping is expected"),
    ],
)
def test_a_wrong_hyper_parameter_is_told_in_plain_words(name: str, value: Any, wanted: str) -> None:
    good, errors = values.check("m", Fields, {name: value})
    assert not good and errors == {name: f"m.{name} is {value!r}: {wanted}"}


@pytest.mark.parametrize(
    ("hint", "value", "wanted"),
    [
        (Annotated[float, Field(gt=0)], 0, "a number above 0 is expected"),
        (Annotated[float, Field(le=0.5)], 2, "a number up to 0.5 is expected"),
        (Annotated[str, Field(pattern="^[a-z]+$")], "A3", "a text of another form is expected"),
        (Annotated[list[int], Field(min_length=2)], [1], "a list of at least 2 is expected"),
    ],
)
def test_bounds_are_told_without_their_notation(hint: Any, value: Any, wanted: str) -> None:
    with pytest.raises(ValueError) as error:
        values.coerce(hint, value)
    assert str(error.value) == wanted


def test_a_long_value_is_cut() -> None:
    (text,) = values.check("m", Fields, {"count": "x" * 10**6})[1].values()
    assert len(text) < 150
