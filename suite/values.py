"""Values of hyper-parameters and recipe fields: checked against the dataclass that has them, defaults told apart."""

from __future__ import annotations

import dataclasses
import difflib
import io
import numbers
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from dstbench.suite.words import shown, wanted

SCALARS: dict[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "True or False"),
    int: ((numbers.Integral,), "a whole number"),
    float: ((numbers.Real,), "a number"),
    str: ((str,), "a text"),
}


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
    close = difflib.get_close_matches(name, choices, 3, 0.6) or [c for c in choices if name and name in c][:3]
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
            return 0.0 if isinstance(found, float) and found == 0 else found  # -0.0 is no other value
    raise ValueError(message)


def read(text: str) -> Any:
    """A string as YAML reads it, or itself where YAML cannot."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(io.StringIO(text))
    except YAMLError:
        return text


def typed(name: str, owner: Any) -> None:
    """ValueError for the first field of an instance that is declared a `bool`, `int`, `float` or `str` and holds none.

    A whole number is a number too; a truth value is neither.
    """
    hints = _hints(owner)
    for field in (f.name for f in dataclasses.fields(owner)):
        kinds, wanted = SCALARS.get(hints.get(field), ((object,), ""))
        value = getattr(owner, field)
        if not isinstance(value, kinds) or (bool not in kinds and wanted and isinstance(value, bool)):
            raise ValueError(f"{name}: {field} is {value!r}; give {wanted}")


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


def plain(value: Any) -> Any:
    """A value as JSON has it; numbers that are not finite become strings, what JSON lacks else its repr."""
    from pydantic_core import from_json, to_json

    return from_json(to_json(value, fallback=repr, inf_nan_mode="strings"))


def _hints(owner: Any) -> dict[str, Any]:
    kind = owner if isinstance(owner, type) else type(owner)
    try:
        return typing.get_type_hints(kind)
    except (NameError, TypeError):  # a name imported for type checkers only: then the class itself must check
        return {}
