"""Plan text: YAML -> mappings that know their lines; what is no plan, or would grow beyond bounds, is one message."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

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

from dstbench.suite.words import printable

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
