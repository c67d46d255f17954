"""Values of hyper-parameters and recipe fields: checked against the dataclass that has them, defaults told apart."""

from __future__ import annotations

import dataclasses
import difflib
import io
import math
import numbers
import typing
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from dstbench.suite.words import printable, shown, wanted

SCALARS: dict[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "True or False"),
    int: ((numbers.Integral,), "a whole number"),
    float: ((numbers.Real,), "a number"),
    str: ((str,), "a text"),
}

LARGEST = 2**63 - 1  # of a whole number
DEEPEST = 20  # levels of a value in a text, as of a plan


def check(name: str, owner: Any, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Values brought to the types of `owner`, a dataclass or an instance, and an error text for each that is wrong.

    A key may be dotted into a mapping: "lr.sgd". A string is first read as YAML reads it ("1e-3", "[1, 2]", "null").
    """
    hints, present = _hints(owner), defaults(owner)
    good: dict[str, Any] = {}
    errors: dict[str, str] = {}
    names = [f.name for f in dataclasses.fields(owner) if f.init]
    for key, value in given.items():
        field, _, part = key.partition(".")
        mapping = present.get(field)
        if field not in names:
            errors[key] = f"{name} has no field {field!r} (given {field}={value}); {near(field, names)}"
        elif part and (not isinstance(mapping, Mapping) or part not in mapping):
            choices = list(mapping) if isinstance(mapping, Mapping) else []
            errors[key] = f"{name}.{field} has no entry {part!r} (given {value}); {near(part, choices)}"
        else:
            hint = hints.get(field, Any)
            try:
                good[key] = coerce(typing.get_args(hint)[-1] if part else hint, value)
            except ValueError as error:
                errors[key] = f"{name}.{key} is {shown(value)}: {error}"
    return good, errors


def near(name: str, choices: Sequence[str]) -> str:
    """ "did you mean …" where something is near, else all choices."""
    lower = name.lower()
    close = [c for c in choices if c.lower().replace("_", "") == lower.replace("_", "")]
    close = close or difflib.get_close_matches(lower, choices, 3, 0.6) or [c for c in choices if name and name in c][:3]
    return f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(choices) or 'none'}"


def coerce(hint: Any, value: Any) -> Any:
    """`value` as the type `hint`; ValueError says what was expected."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.errors import PydanticUserError

    config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
    try:
        adapter = TypeAdapter(hint, config=config)
    except PydanticUserError:  # a type with a configuration of its own
        adapter = TypeAdapter(hint)
    readings = [read(value), value] if isinstance(value, str) else [value]
    message = ""
    for reading in readings:
        try:
            found = adapter.validate_python(reading)
        except ValidationError as error:
            message = message or wanted(error.errors())
        else:
            if isinstance(found, int) and abs(found) > LARGEST:
                raise ValueError(f"a whole number up to {LARGEST} is expected")
            return _unsigned(found)
    raise ValueError(message)


def _unsigned(value: Any) -> Any:
    """-0.0 is no other value than 0.0, alone or in a list, tuple or dict."""
    if isinstance(value, float) and value == 0:
        return 0.0
    if type(value) in (list, tuple):
        return type(value)(map(_unsigned, value))
    return {k: _unsigned(v) for k, v in value.items()} if type(value) is dict else value


def read(text: str) -> Any:
    """A string as YAML reads it, or itself where YAML cannot, or where it nests deeper than any value does."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if max(accumulate((c in "[{") - (c in "]}") for c in text), default=0) > DEEPEST:  # which takes YAML many seconds
        return text
    try:
        return YAML(typ="safe", pure=True).load(io.StringIO(text))
    except (YAMLError, ValueError, RecursionError):  # a date or a number that cannot be; a thousand brackets
        return text


def typed(name: str, owner: Any) -> None:
    """ValueError for the first field of an instance that is declared a `bool`, `int`, `float` or `str` and holds none.

    A whole number is a number too; a truth value is neither. Scalars of numpy and torch become Python's.
    """
    hints = _hints(owner)
    for field in (f.name for f in dataclasses.fields(owner)):
        kinds, wanted = SCALARS.get(hints.get(field), ((object,), ""))
        value = getattr(owner, field)
        found = _item(value) if wanted else value
        if not isinstance(found, kinds) or (bool not in kinds and wanted and isinstance(found, bool)):
            raise ValueError(f"{name}: {field} is {shown(value)}; give {wanted}")
        if found is not value:
            object.__setattr__(owner, field, found)  # a recipe is frozen


def defaults(owner: Any) -> dict[str, Any]:
    """Field -> default of a dataclass; of an instance, field -> present value, mappings also by dotted key."""
    out: dict[str, Any] = {}
    for f in dataclasses.fields(owner):
        if not isinstance(owner, type):
            out[f.name] = getattr(owner, f.name)
        elif f.default_factory is not dataclasses.MISSING:
            out[f.name] = f.default_factory()
        elif f.default is not dataclasses.MISSING:
            out[f.name] = f.default
    for name, value in list(out.items()):
        if isinstance(value, Mapping):
            out.update({f"{name}.{key}": entry for key, entry in value.items()})
    return out


def number(value: Any, what: str) -> float:
    """A number that a plugin handed over: a scalar of numpy or torch, or an array of one value, counts as one.

    Args:
        value: What was handed over.
        what: Who did, for the message: "digits/mlp: evaluate('valid') returned".

    Returns:
        A float of Python, which may be NaN or infinite.

    Raises:
        TypeError: For text, truth values, None, complex numbers, arrays of several values and all else.
    """
    found = _item(value)
    if isinstance(found, numbers.Real) and not isinstance(found, bool):
        try:
            return float(found)
        except OverflowError:
            pass
    raise TypeError(f"{what} {shown(value)}; a number is expected")


def plain(value: Any) -> Any:
    """A value as JSON has it; numbers that are not finite become strings, what JSON lacks else its repr."""
    from pydantic_core import from_json, to_json

    try:
        return from_json(to_json(value, fallback=_simpler, inf_nan_mode="strings"))
    except Exception:  # text that is no Unicode, a plugin's object that cannot be looked at
        if isinstance(value, Mapping):
            return {printable(str(k)): plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if type(value) in (list, tuple) else shown(value)


def stored(value: Any, faults: list[str], place: str = "") -> Any:
    """A record's content as JSON takes it: scalars of numpy and torch as numbers, text in Unicode.

    A number that is not finite becomes None, and what is no plain value its repr; both are named in `faults`.
    """
    if isinstance(value, Mapping):
        return {printable(str(k)): stored(v, faults, f"{place}.{k}".lstrip(".")) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [stored(v, faults, f"{place}[{i}]") for i, v in enumerate(value)]
    found = _item(value)
    if found is None or isinstance(found, bool) or (isinstance(found, int) and abs(found) < 10**300):
        return found
    if isinstance(found, str):
        return printable(found, len(found), "\n\t")
    if isinstance(found, float) and math.isfinite(found):
        return float(found)
    faults.append(f"{place} is {shown(value)}")
    return None if isinstance(found, float) else shown(value)


def _item(value: Any) -> Any:
    """The one value of a scalar or an array of numpy or torch as Python has it; all else as it is."""
    if type(value).__module__.partition(".")[0] in ("numpy", "torch") and hasattr(value, "item"):
        try:
            return value.item()
        except (ValueError, RuntimeError, TypeError):  # several values, or none to be had
            return value
    return value


def _simpler(value: Any) -> Any:
    """For what JSON lacks: numbers of numpy's or torch's, else the repr."""
    found = _item(value)
    if found is not value:
        return found if isinstance(found, bool | int | float | str) else repr(found)
    return value.tolist() if hasattr(value, "tolist") and getattr(value, "size", None) is not None else repr(value)


def _hints(owner: Any) -> dict[str, Any]:
    kind = owner if isinstance(owner, type) else type(owner)
    try:
        return typing.get_type_hints(kind)
    except (NameError, TypeError):  # a name imported for type checkers only: then the class itself must check
        return {}
