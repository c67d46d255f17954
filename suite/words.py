"""Words: what pydantic found wrong, said plainly: what was expected, never how it was tested."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

KINDS = (
    (("int_",), "a whole number"),
    (("float_", "decimal_parsing", "decimal_type"), "a number"),
    (("bool_",), "true or false"),
    (("string_type", "string_unicode", "string_sub_type", "bytes_type"), "a text"),
    (("string_pattern",), "a text of another form"),
    (("list_", "tuple_", "set_", "frozen_set_", "deque_", "iterable_", "named_tuple_"), "a list"),
    (("dict_", "frozen_dict_", "ordered_dict_", "mapping_", "model_", "dataclass_"), "a mapping"),
    (("date_", "time_", "datetime_", "timezone_"), "a date or a time"),
    (("path_type",), "a path"),
    (("callable_",), "a function"),
    (("none_required",), "null"),
    (("url_",), "a web address"),
    (("missing", "unexpected_"), "one value for each place"),
)
BOUNDS = {
    "greater_than": ("a number above {}", "gt"),
    "greater_than_equal": ("a number from {} up", "ge"),
    "less_than": ("a number below {}", "lt"),
    "less_than_equal": ("a number up to {}", "le"),
    "multiple_of": ("a multiple of {}", "multiple_of"),
    "finite_number": ("a finite number", ""),
    "literal_error": ("{}", "expected"),
    "enum": ("{}", "expected"),
    "is_instance_of": ("an instance of {}", "class"),
    "is_subclass_of": ("a subclass of {}", "class"),
    "too_short": ("a list of at least {}", "min_length"),
    "too_long": ("a list of at most {}", "max_length"),
    "string_too_short": ("a text of at least {} characters", "min_length"),
    "string_too_long": ("a text of at most {} characters", "max_length"),
    "bytes_too_short": ("a text of at least {} characters", "min_length"),
    "bytes_too_long": ("a text of at most {} characters", "max_length"),
}
LONGEST = 2000  # characters of a text that is shown or kept
SAID = ("value_error", "assertion_error")  # the texts are our own, or a plugin's


def wanted(errors: Iterable[Any]) -> str:
    """What would have been right, of the errors that pydantic found in one value: "a number or null is expected"."""
    errors = list(errors)
    said = [text for error in errors if error["type"] in SAID for text in [_said(error)]]
    names = [_named(error["type"], error.get("ctx") or {}) for error in errors if error["type"] not in SAID]
    expected = f"{' or '.join(dict.fromkeys(names))} is expected" if names else ""
    return "; ".join(filter(None, [*dict.fromkeys(said), expected]))


def shown(value: Any) -> str:
    """A value in an error's text: its repr, cut where it is long; its type where it has none."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a number of too many digits, a mapping nested too deeply, an object of a plugin
        text = f"a value of type {type(value).__name__}"
    return printable(text if len(text) <= 60 else f"{text[:57]}...")


def printable(text: str, most: int = LONGEST, keep: str = "") -> str:
    """Text that every terminal, page and file can hold: what does not print becomes its escape, as Python writes it.

    Those are control characters, halves of surrogate pairs, marks that turn the direction of writing, and spaces other
    than the common one; the characters in `keep` stay. What is longer than `most` is cut.
    """
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def told(error: BaseException) -> str:
    """Type and text of an error, also of one that cannot say its text."""
    try:
        text = str(error)
    except BaseException as why:
        text = f"(its text cannot be had: {type(why).__name__})"
    return printable(f"{type(error).__name__}: {text}", keep="\n\t")


def listed(names: Sequence[str]) -> str:
    """A, B or C."""
    return " or ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _said(error: Any) -> str:
    return str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")


def _named(kind: str, context: Mapping[str, Any]) -> str:
    if kind in BOUNDS:
        text, key = BOUNDS[kind]
        value = context.get(key, "")
        return text.format(f"{value:g}" if isinstance(value, float) else value)
    return next((name for starts, name in KINDS if kind.startswith(starts)), "another value")
