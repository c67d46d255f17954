"""Plan text: YAML -> mappings that know their lines; what is no plan, or would grow beyond bounds, is one message."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from dstbench.suite.values import near
from dstbench.suite.words import printable, shown, wanted

Where = Callable[[Sequence[Any]], str]  # the path of a value within a file -> where it stands

DEEPEST = 20  # mappings and lists within each other
LARGEST = 2**18  # bytes of a file
MOST = 10_000  # values, those that an alias stands for included


class PlanError(ValueError):
    """A plan is wrong; the text has one line for each mistake."""


def load(path: Path) -> Any:
    """What a file holds; PlanError names the line where it is no YAML, too deep or too large."""
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise PlanError(f"{path}: {size} bytes; a plan has at most {LARGEST}")
        text = path.read_text(encoding="utf-8")
        _bounded(path, text)
        return YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        problem = ((error.problem or "").splitlines() or ["is no YAML"])[0]
        raise PlanError(f"{path}{line}: {printable(problem)}") from None
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise PlanError(f"{path}: {printable(' '.join(str(error).split()))}") from None
    except PlanError:
        raise
    except Exception as error:  # the reader of YAML meets a number or a date that Python cannot hold
        raise PlanError(f"{path}{_line(error)}: a value cannot be read: {printable(str(error), 200)}") from None


def _bounded(path: Path, text: str) -> None:
    """PlanError at the first line that nests too deeply, or holds too many values, each alias counted as it unfolds."""
    open_ones: list[tuple[str | None, int]] = []  # anchor and number of values before it
    sizes: dict[str, int] = {}
    total = 0
    for event in YAML(typ="rt").parse(text):
        total += _size(event, sizes)
        if isinstance(event, MappingStartEvent | SequenceStartEvent):
            open_ones.append((event.anchor, total))
        elif isinstance(event, MappingEndEvent | SequenceEndEvent):
            anchor, before = open_ones.pop()
            if anchor:
                sizes[anchor] = total - before + 1
        line = f"{path}:{event.start_mark.line + 1}" if event.start_mark else str(path)
        if isinstance(event, AliasEvent) and event.anchor in [anchor for anchor, _ in open_ones]:
            raise PlanError(f"{line}: the alias {printable(str(event.anchor), 40)!r} stands within what it names")
        if len(open_ones) > DEEPEST:
            raise PlanError(f"{line}: nested deeper than {DEEPEST} levels")
        if total > MOST:
            raise PlanError(f"{line}: more than {MOST} values")


def _size(event: Event, sizes: dict[str, int]) -> int:
    if isinstance(event, AliasEvent):
        return sizes.get(event.anchor, 1)
    return int(isinstance(event, ScalarEvent | MappingStartEvent | SequenceStartEvent))


def _line(error: Exception) -> str:
    """The line of the innermost node that was being read."""
    nodes = [frame.f_locals.get("node") for frame, _ in traceback.walk_tb(error.__traceback__)]
    marks = [node.start_mark for node in nodes if node is not None and hasattr(node, "start_mark")]
    return f":{marks[-1].line + 1}" if marks else ""


def places(path: Path, data: Any) -> Where:
    """File and line of a value by its path within what `load` gave: the nearest that is there."""

    def where(location: Sequence[Any]) -> str:
        line = 1
        node: Any = data
        for step in location:
            try:
                positions: Any = node.lc
                line = 1 + (positions.key if hasattr(node, "keys") else positions.item)(step)[0]
                node = node[step]
            except (AttributeError, KeyError, IndexError, TypeError):
                break
        return f"{path}:{line}"

    return where


def lines(error: ValidationError, where: Where, choices: Callable[[Sequence[Any]], Sequence[str]]) -> list[str]:
    """The mistakes that pydantic found, a line for each place; `choices`: the keys that may stand at a place."""
    found: dict[tuple[Any, ...], list[Any]] = {}
    for mistake in error.errors():
        found.setdefault(mistake["loc"], []).append(mistake)
    return [_mistake(location, mistakes, where, choices) for location, mistakes in found.items()]


def _mistake(
    location: Sequence[Any], mistakes: Sequence[Any], where: Where, choices: Callable[[Sequence[Any]], Sequence[str]]
) -> str:
    key = ".".join(part for part in location if isinstance(part, str))
    kind, given = mistakes[0]["type"], shown(mistakes[0]["input"])
    if kind == "extra_forbidden":
        return f"{where(location)}: unknown key {key!r}; {near(str(location[-1]), list(choices(location)))}"
    if kind == "missing":
        return f"{where(location[:-1])}: the key {key!r} is missing"
    place, text = where(location), wanted(mistakes)
    if given in text and given[0] in "'\"":
        return f"{place}: {text}"
    return f"{place} is {given}: {text}" if place.startswith("--") else f"{place}: {key} is {given}: {text}"
