"""Table: one table of the report, written as HTML by the page, as Markdown, and as text for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


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
        lines = [f"## {self.title}", ""]
        if self.rows:
            bars = ["---:" if figure else "---" for figure in self.figures]
            texts = [[_pipe(cell.text) for cell in row] for row in self.rows]
            lines += [f"| {' | '.join(line)} |" for line in [[_pipe(h) for h in self.headers], bars, *texts]]
        else:
            lines.append("None.")
        return "\n".join([*lines, "", *[line for note in self.notes for line in (_pipe(note), "")]])

    def text(self) -> str:
        """Columns aligned for a terminal, the notes beneath."""
        grid = [list(self.headers), *[[cell.text for cell in row] for row in self.rows]]
        widths = [max(len(row[i]) for row in grid) for i in range(len(self.headers))]
        pad = [str.rjust if figure else str.ljust for figure in self.figures]
        lines = ["  ".join(p(t, w) for p, t, w in zip(pad, row, widths, strict=True)).rstrip() for row in grid]
        lines.insert(1, "  ".join("-" * w for w in widths))
        notes = ["", *self.notes] if self.notes else []
        return "\n".join([self.title, "", *(lines if self.rows else ["No runs."]), *notes])


def _pipe(text: str) -> str:
    safe = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return " ".join(safe.split())


def percent(mean: float, half: float = math.nan, style: str = "") -> Cell:
    """A share as per cent, ± the half width where there is one."""
    if math.isnan(mean):
        return Cell("–", -math.inf, "muted")
    return Cell(f"{100 * mean:.1f}" + ("" if math.isnan(half) else f" ± {100 * half:.1f}"), mean, style)


def metric(mean: float, half: float, name: str | None) -> Cell:
    """A metric's mean ± half width: accuracies in per cent, others with four digits."""
    if name is None or "acc" in name or math.isnan(mean):
        return percent(mean, half)
    return Cell(f"{mean:.4g}" + ("" if math.isnan(half) else f" ± {half:.2g}"), mean)


def ratio(mean: float, half: float = math.nan) -> Cell:
    """A ratio with three decimals below 10, the half width where it shows."""
    if math.isnan(mean):
        return Cell("–", math.inf, "muted")
    return Cell(f"{mean:.3f}" + (f" ± {half:.3f}" if half >= 0.0005 else ""), mean)


def quantity(value: float, unit: str) -> Cell:
    """A value with an SI prefix, four digits: 1.234 G; bytes in binary prefixes."""
    if math.isnan(value):
        return Cell("–", math.inf, "muted")
    step, prefixes = (1024, ("", "Ki", "Mi", "Gi", "Ti")) if unit == "B" else (1000, ("", "k", "M", "G", "T", "P", "E"))
    power = min(len(prefixes) - 1, max(0, math.floor(math.log(abs(value), step)))) if value else 0
    return Cell(f"{value / step**power:.4g} {prefixes[power]}{unit}".rstrip(), value)


def level(sparsity: float) -> Cell:
    """A sparsity level in per cent; a dash where it does not apply."""
    return Cell("–" if math.isnan(sparsity) else f"{100 * sparsity:.4g} %", -1 if math.isnan(sparsity) else sparsity)


def whole(value: float) -> Cell:
    """A count."""
    return Cell("–", -1, "muted") if math.isnan(value) else Cell(f"{value:,.0f}", value)
