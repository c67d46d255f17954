"""Catalogue: every method, from what registry, class and docstring say, and every task: docs/methods.md, tasks.md."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from dstbench.suite import registry, values
from dstbench.suite.registry import Entry

SECTIONS = ("Passes", "FLOPs", "Defaults", "Ambiguous", "Reference")
HEAD = """# Methods

What is registered, from the code itself: `dstbench list methods --markdown`. f_D is a dense forward pass of one sample,
f_S one that reads the mask alone; a step is a forward pass, the gradient to the inputs (as dear as the forward pass: it
reads the same weights) and the gradient of the weights. The FLOPs lines say what the paper charges a step; the suite's
own count is measured from the masks of every pass; both stand on the boards. Common to all methods: `sparsity`, and
`budget`, a factor on the task's steps.
"""

TASK_HEAD = """| task | data | network | recipe | parameters | multiply-adds | recipe's source |
| --- | --- | --- | --- | --- | --- | --- |"""


def markdown(plugins: registry.Files = ()) -> str:
    """The catalogue as Markdown: a section for each family, a part for each class; broken methods with their reason."""
    found = list(registry.methods(plugins).values())
    lines = [HEAD]
    for family in dict.fromkeys(entry.family for entry in found):
        lines.append(f"## {(family or 'other').capitalize()}\n")
        members = [entry for entry in found if entry.family == family]
        for _, entries in groupby(sorted(members, key=lambda e: _place(e, found)), key=lambda e: e.target):
            lines.append(_part(list(entries), found))
    return "\n".join([*lines, getattr(importlib.import_module("dstbench.methods"), "LEFT_OUT", "")])


def tasks(plugins: registry.Files = ()) -> str:
    """The tasks as Markdown: a table for each family, with counts beside those that others have published."""
    from dstbench.suite import sizes

    entries = list(registry.tasks(plugins).values())
    lines: list[str] = []
    for family in dict.fromkeys(entry.family for entry in entries):
        lines += [f"### {family or 'other'}\n", TASK_HEAD]
        lines += [task_line(entry.name, sizes.row(entry)) for entry in entries if entry.family == family]
        lines.append("")
    return "\n".join(lines).strip()


def task_line(name: str, row: Mapping[str, Any]) -> str:
    """A task as a line of its table, from its row of `sizes`."""
    place, _, model = str(row["model"] or "").rpartition(":")
    model = model if place or not model else f"timm: {model}"
    counts = []
    for count in ("parameters", "multiply_adds"):
        published = row[f"published_{count}"]
        counts.append(_count(row[count]) + (f"; published: {published}" if published else ""))
    cells = (f"`{name}`", row["data"] or "made by code", model, row["recipe"] or "–", *counts, row["source"] or "–")
    return f"| {' | '.join(cells)} |"


def _count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def sections(kind: type) -> tuple[str, dict[str, str]]:
    """A docstring's prose, and its parts that begin with a word of `SECTIONS` and a colon, each as one paragraph."""
    prose: list[str] = []
    parts: dict[str, list[str]] = {}
    here = prose
    for line in inspect.cleandoc(kind.__doc__ or "").splitlines():
        word = re.match(rf"({'|'.join(SECTIONS)}): *", line)
        if word:
            here = parts.setdefault(word[1], [])
            line = line[word.end() :]
        here.append(line)
    return "\n".join(prose).strip(), {k: " ".join(" ".join(v).split()) for k, v in parts.items()}


def _place(entry: Entry, found: Sequence[Entry]) -> int:
    """Where the first entry of this class stands in the registry."""
    return next(i for i, other in enumerate(found) if other.target == entry.target)


def _part(entries: Sequence[Entry], found: Iterable[Entry]) -> str:
    first = entries[0]
    title = f"### `{first.name}`\n\n"
    if any(entry.broken for entry in entries):
        return f"{title}Broken ({first.origin}): {first.broken}\n"
    if first.presets and (whole := next(e for e in found if e.target == first.target)) not in entries:
        return (
            f"{title}{_presets(first)} of `{whole.name}`.\n" + "".join(_variant(e, first) for e in entries[1:]) + "\n"
        )
    kind = first.load()
    prose, said = sections(kind)
    reference = f"{first.citation}; {said['Reference']}" if "Reference" in said else first.citation
    facts = {name: said[name] for name in SECTIONS[:2] if name in said}
    facts |= {"Hyper-parameters": _fields(kind)} | {name: said[name] for name in SECTIONS[2:4] if name in said}
    if kind.keeps:
        facts["Kept off the masks"] = "; ".join(f"{name}: {why}" for name, why in kind.keeps.items())
    if kind.grown:
        facts["Newly read weights start"] = kind.grown
    facts["Reference"] = f"{reference} (version {first.version}, {first.origin})".strip()
    bullets = "".join(f"- **{name}**: {text}\n" for name, text in facts.items() if text)
    return f"{title}{prose}\n\n{bullets}" + "".join(_variant(entry, first) for entry in entries[1:])


def _variant(entry: Entry, first: Entry) -> str:
    version = f" (version {entry.version})" if entry.version != first.version else ""
    return f"- Preset `{entry.name}`: {_presets(entry)}{version}\n"


def _presets(entry: Entry) -> str:
    return ", ".join(f"`{name}` = {_shown(value)}" for name, value in entry.presets.items())


def _fields(kind: type) -> str:
    own = {name: value for name, value in values.defaults(kind).items() if name not in ("sparsity", "budget")}
    return ", ".join(f"`{name}` = {_shown(value)}" for name, value in own.items())


def _shown(value: Any) -> str:
    return '""' if value == "" else f"{value:g}" if isinstance(value, float) else str(value)
