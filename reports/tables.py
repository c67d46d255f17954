"""Table: one table of the report, written as HTML by the page, as Markdown, and as text for the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from textwrap import wrap


@dataclass(frozen=True)
class Cell:
    """Text, the value it sorts by (the text if None) and a style: "", "muted", "bad" or "strong"."""

    text: str
    order: float | None = None
    style: str = ""


@dataclass
class Table:
    """Rows under headers, the notes beneath; a column is one of figures if some cell in it has an order."""

    name: str
    title: str
    headers: Sequence[str]
    rows: list[list[Cell]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def figures(self) -> list[bool]:
        """Whether each column holds figures, which stand flush right."""
        return [any(row[i].order is not None for row in self.rows) for i in range(len(self.headers))]

    def markdown(self) -> str:
        """A heading, a pipe table (or "None.") and the notes."""
        lines = [f"## {_pipe(self.title)}", ""]
        if self.rows:
            bars = ["---:" if figure else "---" for figure in self.figures]
            texts = [[_pipe(cell.text) for cell in row] for row in self.rows]
            lines += [f"| {' | '.join(line)} |" for line in [[_pipe(h) for h in self.headers], bars, *texts]]
        else:
            lines.append("None.")
        return "\n".join([*lines, "", *[line for note in self.notes for line in (_pipe(note), "")]])

    def text(self) -> str:
        """Columns aligned for a terminal, long cells on several lines, the notes beneath."""
        folded = [[wrap(cell.text, 44, break_on_hyphens=False) or [""] for cell in row] for row in self.rows]
        grid = [list(self.headers), *[list(line) for row in folded for line in zip_longest(*row, fillvalue="")]]
        widths = [max(len(row[i]) for row in grid) for i in range(len(self.headers))]
        pad = [str.rjust if figure else str.ljust for figure in self.figures]
        lines = ["  ".join(p(t, w) for p, t, w in zip(pad, row, widths, strict=True)).rstrip() for row in grid]
        lines.insert(1, "  ".join("-" * w for w in widths))
        notes = ["", *self.notes] if self.notes else []
        return "\n".join([self.title, "", *(lines if self.rows else ["No runs."]), *notes])


MARKS = re.compile(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)|^[#>+-](?!\d)")


def _pipe(text: str) -> str:
    """Text of one line that means nothing to Markdown or HTML; an underscore within a word is none of theirs."""
    text = MARKS.sub(r"\\\g<0>", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("://", ":&#47;/").replace("@", "&#64;")


def inert(text: object) -> object:
    """A cell of a CSV file: one line, which no spreadsheet takes for a formula; such a text gets a ' before it."""
    if not isinstance(text, str):
        return text
    line = " ".join(text.split())
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line


def number(value: float, spec: str) -> str:
    """The value in a format of Python's; the one way that a figure becomes text on any board.

    A dash for nan, ∞ for what is infinite, no sign on what rounds to nothing, four digits and an exponent where writing
    it out would take ten or more.
    """
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    text = format(value, spec if abs(value) < 1e9 else ".4g")
    return text.removeprefix("-") if not text.strip("-0.,") else text


def spread(mean: str, half: float, spec: str) -> str:
    """A mean that is already text, ± the half width where there is one."""
    return mean if math.isnan(half) else f"{mean} ± {number(half, spec)}"


def percent(mean: float, half: float = math.nan, style: str = "", spec: str = ".1f") -> Cell:
    """A share as per cent, ± the half width where there is one."""
    if math.isnan(mean):
        return Cell("–", -math.inf, "muted")
    return Cell(spread(number(100 * mean, spec), 100 * half, spec), mean, style)


def share(name: str | None) -> bool:
    """Whether a metric of this name is a share, which is shown in per cent: an accuracy, or none that is known."""
    return name is None or "acc" in name or name.startswith("top")


def metric(mean: float, half: float, name: str | None) -> Cell:
    """A metric's mean ± half width: shares in per cent, others with four digits."""
    if share(name) or math.isnan(mean):
        return percent(mean, half)
    return Cell(spread(number(mean, ".4g"), half, ".2g"), mean)


def ratio(mean: float, half: float = math.nan) -> Cell:
    """A ratio with three decimals, two digits below a hundredth; the half width where it shows."""
    if math.isnan(mean):
        return Cell("–", math.inf, "muted")
    text = number(mean, ".2g" if 0 < abs(mean) < 0.01 else ".3f")
    return Cell(spread(text, half if half >= 0.0005 else math.nan, ".3f"), mean)


def quantity(value: float, unit: str) -> Cell:
    """A value with an SI prefix, four digits: 1.234 G; bytes in binary prefixes."""
    if math.isnan(value):
        return Cell("–", math.inf, "muted")
    step, names = (1024, " Ki Mi Gi Ti") if unit == "B" else (1000, " k M G T P E")
    scaled, prefixes = value, names.split(" ")
    # The rounded figure decides, so that 999,999 is 1 M and not 1000 k.
    while math.isfinite(value) and abs(float(f"{scaled:.4g}")) >= step and len(prefixes) > 1:
        scaled, prefixes = scaled / step, prefixes[1:]
    return Cell(f"{number(scaled, '.4g')} {prefixes[0]}{unit}".rstrip(), value)


def level(sparsity: float) -> Cell:
    """A sparsity level in per cent; a dash where it does not apply."""
    if math.isnan(sparsity):
        return Cell("–", -1)
    return Cell(f"{number(100 * sparsity, '.6g')} %", sparsity)


def whole(value: float) -> Cell:
    """A count."""
    return Cell("–", -1, "muted") if math.isnan(value) else Cell(number(value, ",.0f"), value)
