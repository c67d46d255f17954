"""The charts of a section of the page: which there are, drawn, with what the reader must know beside each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dstbench.reports import charts, series
from dstbench.reports.drawing import svg
from dstbench.reports.rows import split
from dstbench.reports.tables import level


@dataclass
class Chart:
    """A drawing and its caption; `note` says what the drawing cannot show."""

    svg: str
    title: str
    note: str = ""


@dataclass
class Plots:
    """The charts of one setting by group; curves under a heading a sparsity level."""

    sparsity: list[Chart]
    flops: list[Chart]
    papers: list[Chart]
    ratios: list[Chart]
    curves: dict[str, list[Chart]]


def plots(
    cells: pd.DataFrame, points: pd.DataFrame, curves: pd.DataFrame, ratios: pd.DataFrame,
    looks: Mapping[str, series.Look], prefix: str,
) -> Plots:  # fmt: skip
    """Draw every chart of one setting; `prefix` starts the ids of all of them."""
    found = Plots(sparsity=[], flops=[], papers=[], ratios=[], curves=_curves(curves, cells, looks, prefix))
    metrics = series.metrics(cells)
    for number, (task, part) in enumerate(split(points, "task")):
        hidden = "; ".join(series.unseen(part, cells[cells["task"] == task]))
        note = f"Not shown: {hidden}." if hidden else ""
        drawn = svg(charts.accuracy_sparsity(part, looks, metrics[task]), f"{prefix}-sparsity-{number}")
        found.sparsity.append(Chart(drawn, str(task), note))
        for group, column in ((found.flops, "ratio"), (found.papers, "papers")):
            if part[column].notna().any():
                spec = charts.accuracy_flops(part, looks, metrics[task], column)
                group.append(Chart(svg(spec, f"{prefix}-{column}-{number}"), str(task), note))
    for number, measure in enumerate(dict.fromkeys(ratios["measure"])):
        spec = charts.ratio_chart(ratios[ratios["measure"] == measure], looks, measure)
        found.ratios.append(Chart(svg(spec, f"{prefix}-ratios-{number}"), measure))
    return found


def _curves(
    curves: pd.DataFrame, cells: pd.DataFrame, looks: Mapping[str, series.Look], prefix: str
) -> dict[str, list[Chart]]:
    metrics = series.metrics(cells)
    found: dict[str, list[Chart]] = {}
    for sparsity in sorted(curves["sparsity"].dropna().unique(), reverse=True) or [math.nan]:
        heading = "Dense" if math.isnan(sparsity) else f"Sparsity {level(sparsity).text}"
        shown = curves[curves["sparsity"].isna() | (curves["sparsity"] == sparsity)]
        for task, part in split(shown, "task"):
            titles = {"loss": "training loss", "density": "density", "valid": f"valid {metrics.get(task) or 'metric'}"}
            for column, title in titles.items():
                if part[column].notna().any():
                    group = found.setdefault(heading, [])
                    name = f"{prefix}-curves-{len(found)}-{len(group)}"
                    group.append(Chart(svg(charts.curves(part, looks, column, title), name), f"{task} · {title}"))
    return found


def architecture(units: pd.DataFrame, prefix: str) -> list[Chart]:
    """Draw the active units of each run of a `series.architecture`."""
    panels: Any = split(units, "panel")
    return [Chart(svg(charts.architecture(p), f"{prefix}-units-{i}"), str(name)) for i, (name, p) in enumerate(panels)]


def speed_up(board: pd.DataFrame, looks: Mapping[str, series.Look]) -> list[Chart]:
    """Draw a panel for each task, kernel and machine that has a time."""
    panels: Any = split(board[board["time"].notna()], "panel")
    return [Chart(svg(charts.realised(part, looks), f"speed-{i}"), str(name)) for i, (name, part) in enumerate(panels)]
