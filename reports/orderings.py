"""Orderings that the literature agrees on, held against the records."""

from __future__ import annotations

import math

import pandas as pd

from dstbench.reports.rows import each
from dstbench.reports.statistics import Difference, paired_difference
from dstbench.reports.tables import Cell, Table, level, percent, whole

EXPECTED = (
    ("static", "set", "growing at random beats standing still: Evci et al., arXiv 1911.11134, table 2"),
    ("set", "rigl", "growing by gradient beats growing at random: Evci et al., arXiv 1911.11134, table 2"),
    ("static", "snip", "scored masks beat random ones: Lee et al., arXiv 1810.02340, table 2"),
    ("static", "dense", "sparse training gives up accuracy: Evci et al., arXiv 1911.11134, figure 2"),
)
NOTE = (
    "Difference of retention, stronger minus weaker, paired by seed, mean over the tasks of a level, with its 95 % "
    "interval. Within the interval: the means are the other way round, and the interval leaves the order open. "
    "Each row stands for itself: of 40 pairs without a difference, about one is said not to hold."
)


def orderings(table: pd.DataFrame, expected: tuple[tuple[str, str, str], ...] = EXPECTED) -> Table:
    """The cells of one setting -> one row for each expected pair and sparsity level, and for each method and dense."""
    rows = []
    for sparsity in sorted(table["sparsity"].dropna().unique()):
        part = table[table["sparsity"] == sparsity]
        for weak, strong, why in expected:
            if found := difference(part, weak, strong):
                rows.append(_row(f"{weak} ≤ {strong}", sparsity, found, why))
        dense = [row.method for row in each(part[part["dense"] & (part["method"] == part["reference"])])]
        for method in sorted(set(part.loc[~part["dense"], "method"])):
            found = difference(part, method, dense[0]) if dense else None
            if found and (method, dense[0]) not in {pair[:2] for pair in expected}:
                rows.append(_row(f"{method} ≤ {dense[0]}", sparsity, found, "no sparse method beats dense training"))
    headers = ["order", "sparsity", "difference, points of retention", "pairs", "verdict", "expected because"]
    return Table("orderings", "Orderings that the literature agrees on", headers, rows, [NOTE])


def difference(part: pd.DataFrame, weak: str, strong: str) -> Difference | None:
    """Retention of `strong` minus that of `weak` over the cells that both have; None where there is none."""
    both = part[part["method"] == strong].merge(part[part["method"] == weak], on=["task", "sparsity"])
    found = paired_difference(list(both["seeds_x"]), list(both["seeds_y"]))
    return found if found.pairs and not math.isnan(found.mean) else None


def verdict(found: Difference) -> str:
    """What a difference says of an expected order."""
    if found.mean >= 0:
        return "holds"
    return "does not hold" if found.mean + found.half < 0 else "within the interval"


def _row(order: str, sparsity: float, found: Difference, why: str) -> list[Cell]:
    said = verdict(found)
    shown = Cell(said, style="bad" if said == "does not hold" else "muted" if said == "holds" else "")
    pair = percent(found.mean, found.half)
    return [Cell(order, style="strong"), level(sparsity), pair, whole(found.pairs), shown, Cell(why)]
