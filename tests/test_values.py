from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstbench.suite import values

if TYPE_CHECKING:
    from decimal import Decimal


@dataclass
class Fields:
    rate: float = 0.5
    count: int | None = 3
    flag: bool = False
    text: str = "a"
    kind: Literal["x", "y"] = "x"
    widths: tuple[int, ...] = ()
    lr: Mapping[str, float] = field(default_factory=lambda: {"sgd": 0.1, "adam": 0.01})


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("rate", "1e-3", 0.001),
        ("rate", "2", 2.0),
        ("count", "7", 7),
        ("count", "null", None),
        ("flag", "true", True),
        ("text", "3", "3"),
        ("text", "on", "on"),
        ("widths", "[4, 5]", (4, 5)),
        ("lr.sgd", "0.3", 0.3),
        ("text", "[unclosed", "[unclosed"),
    ],
)
def test_strings_become_values(key: str, text: str, value: Any) -> None:
    good, errors = (
        values.check("m", Fields, {key: text}) if "." not in key else values.check("m", Fields(), {key: text})
    )
    assert errors == {} and good == {key: value} and type(good[key]) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**60), 2**60))
def test_text_of_a_number_reads_as_the_number(rate: float, count: int) -> None:
    good, errors = values.check("m", Fields, {"rate": repr(rate), "count": str(count)})
    assert not errors and good == {"rate": rate, "count": count}


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("rat", 1, "m has no field 'rat' (given rat=1); did you mean rate?"),
        ("rate", "high", "m.rate is 'high': a number is expected"),
        ("rate", ".inf", "finite"),
        ("count", 1.5, "m.count is 1.5"),
        ("kind", "z", "m.kind is 'z': 'x' or 'y' is expected"),
        ("lr.sdg", 1, "m.lr has no entry 'sdg' (given 1); did you mean sgd?"),
        ("rate.x", 1, "m.rate has no entry 'x'"),
    ],
)
def test_mistakes_are_named(key: str, value: Any, part: str) -> None:
    good, errors = values.check("m", Fields(), {key: value, "flag": True})
    assert good == {"flag": True} and part in errors[key]


def test_defaults_of_class_and_instance() -> None:
    assert values.defaults(Fields)["rate"] == 0.5
    found = values.defaults(Fields(rate=0.7))
    assert found["rate"] == 0.7 and found["lr.adam"] == 0.01 and found["lr"]["sgd"] == 0.1


def test_types_that_cannot_be_resolved_are_left_to_the_class() -> None:
    @dataclass
    class Odd:
        amount: "Decimal" = None  # type: ignore[assignment]

    assert values.check("m", Odd, {"amount": "x"}) == ({"amount": "x"}, {})


def test_types_without_a_schema_are_checked_by_instance() -> None:
    class Thing:
        pass

    thing = Thing()
    assert values.coerce(Thing, thing) is thing
    with pytest.raises(ValueError, match="instance of"):
        values.coerce(Thing, "no thing")


def test_plain_is_what_json_has() -> None:
    assert values.plain({"a": (1, 2)}) == {"a": [1, 2]}
    assert "object" in values.plain(object())


def test_minus_zero_is_zero() -> None:
    assert str(values.coerce(float, "-0.0")) == "0.0"
    assert str(values.coerce(tuple[float, ...], "[-0.0, 1]")) == "(0.0, 1.0)"
    assert str(values.coerce(Any, "{a: [-0.0]}")) == "{'a': [0.0]}"


@pytest.mark.parametrize("text", ["2026-99-99", "[" * 2000, "1" * 5000, "!!python/object:os.system {}", "\x00"])
def test_what_yaml_cannot_read_is_a_text(text: str) -> None:
    assert values.read(text) == text
    good, errors = values.check("m", Fields, {"rate": text, "text": text})
    assert good == {"text": text} and errors["rate"].endswith("number is expected") and len(errors["rate"]) < 200


@pytest.mark.parametrize("count", [2**63, -(10**30)])
def test_a_whole_number_has_a_bound(count: int) -> None:
    assert values.check("m", Fields, {"count": count, "rate": 1})[1].keys() == {"count"}
    assert "a whole number up to 9223372036854775807" in values.check("m", Fields, {"count": str(count)})[1]["count"]


@pytest.mark.parametrize(
    ("name", "near"),
    [("RigL", "rigl"), ("MLLinBreg", "ml_linbreg"), ("Top_KAST", "topkast"), ("RIGL:ITOP", "rigl:itop")],
)
def test_a_name_as_the_paper_writes_it_is_near(name: str, near: str) -> None:
    choices = ["set", "rigl", "rigl:itop", "linbreg", "ml_linbreg", "topkast"]
    assert values.near(name, choices) == f"did you mean {near}?"


def test_scalars_of_other_libraries_become_those_of_python() -> None:
    found = Fields(rate=np.float32(0.5), flag=np.bool_(True), text=np.str_("b"))  # type: ignore[arg-type]
    values.typed("m", found)
    assert found == Fields(rate=0.5, flag=True, text="b")
    assert [type(v) for v in (found.rate, found.flag, found.text)] == [float, bool, str]
    for wrong in (np.array([1.0, 2.0]), None, "1"):
        with pytest.raises(ValueError, match=r"m: rate is .*; give a number"):
            values.typed("m", Fields(rate=wrong))  # type: ignore[arg-type]
