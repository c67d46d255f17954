"""What charts and figures draw: how each method looks, points of cells, curves of runs, ratios."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dstbench.reports.rows import each
from dstbench.reports.tables import level

# Okabe and Ito 2008, "Color universal design"; grey stands for its yellow, which is too light for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
# Vega's name and matplotlib's marker of the same shape.
SHAPES = (("circle", "o"), ("square", "s"), ("triangle-up", "^"), ("diamond", "D"), ("triangle-down", "v"),
          ("cross", "P"), ("triangle-right", ">"), ("triangle-left", "<"))  # fmt: skip
PRUNED = 0.95  # of a Layer's units: where no Layer ends with fewer, nothing of the architecture was found
MEASURES = {
    "ratio": "Training FLOPs",
    "papers": "Training FLOPs, papers' convention",
    "inference": "Inference FLOPs",
    "memory": "Training memory",
    "time": "Training time",
}


@dataclass(frozen=True)
class Look:
    """Colour, Vega shape and matplotlib marker of a method."""

    colour: str
    shape: str
    marker: str


def looks(runs: pd.DataFrame) -> dict[str, Look]:
    """Method -> look: black for the first dense one, else colour and shape that together name up to 56 methods."""
    dense = sorted(runs.loc[runs["dense"], "method"].unique())
    others = [*sorted(runs.loc[~runs["dense"], "method"].unique()), *dense[1:]]
    found = {name: Look(COLOURS[7], SHAPES[3][0], SHAPES[3][1]) for name in dense[:1]}
    for i, name in enumerate(others):
        shape = SHAPES[(i + 2 * (i // 7)) % 8]
        found[name] = Look(COLOURS[i % 7], shape[0], shape[1])
    return found


def metrics(cells: pd.DataFrame) -> dict[str, str | None]:
    """Task -> the name of its metric as titles have it, which says where lower is better; None where nothing ended."""
    found = cells.drop_duplicates("task")
    names = [n if not isinstance(n, str) or up else f"{n} (lower is better)"
             for n, up in zip(found["metric"], found["higher"], strict=True)]  # fmt: skip
    return dict(zip(found["task"], (n if isinstance(n, str) else None for n in names), strict=True))


def points(cells: pd.DataFrame, flops: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each cell with a score, and each run off target at its true sparsity (`off`).

    `x` is the sparsity moved a little sideways, so that intervals of methods do not hide each other; dense methods have
    nan there.
    """
    shown = cells[cells["mean"].notna()].merge(
        flops[["task", "sparsity", "method", "ratio", "papers"]], on=["task", "sparsity", "method"], how="left"
    )
    shown = shown.assign(low=shown["mean"] - shown["half"], high=shown["mean"] + shown["half"], off=False)
    away = runs[(runs["outcome"] == "missing") & runs["score.test"].notna() & ~runs["dense"]]
    away = away.rename(columns={"score.test": "mean", "flops.ratio": "ratio", "flops.papers_ratio": "papers"})
    away = away.assign(off=True, n=1, failed=0, x=away["sparsity.achieved"])
    rank = {name: i for i, name in enumerate(sorted(shown["method"].unique()))}
    span = shown["sparsity"].max() - shown["sparsity"].min()
    step = (span if span > 0 else 0.05) / 12 / max(1, len(rank))
    moved = shown["sparsity"] + step * (shown["method"].map(rank) - (len(rank) - 1) / 2)
    shown["x"] = moved.astype(float).where(~shown["dense"].astype(bool))
    columns = [
        "task",
        "sparsity",
        "method",
        "dense",
        "mean",
        "low",
        "high",
        "n",
        "failed",
        "ratio",
        "papers",
        "x",
        "off",
    ]
    parts = [part.reindex(columns=columns) for part in (shown, away) if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def domain(part: pd.DataFrame) -> list[float]:
    """The range of the metric worth showing: that of the means without failed runs, with room for intervals."""
    means = part.loc[(part["failed"] == 0) & ~part["off"].astype(bool), "mean"]
    means = means if len(means) else part["mean"]
    span = max(float(means.max() - means.min()), 0.02 * max(abs(float(means.max())), 0.1))
    return [float(means.min() - 0.35 * span), float(means.max() + 0.35 * span)]


def bounds(part: pd.DataFrame) -> list[float]:
    """The range that both ratios of a realised speed-up, and dense at 1, lie in, with room at the edges."""
    both = part[["flops", "time"]]
    return [0.8 * float(both.min().min()), 1.25 * max(1.0, float(both.max().max()))]


def unseen(part: pd.DataFrame, cells: pd.DataFrame) -> list[str]:
    """What a chart of one task cannot show: failed cells, and points outside `domain`."""
    low, high = domain(part) if len(part) else (-math.inf, math.inf)
    named = cells.loc[cells["state"] == "failed", ["method", "sparsity"]].assign(why="failed")
    out = part.loc[(part["mean"] < low) | (part["mean"] > high), ["method", "sparsity"]].assign(why="outside")
    return [f"{method} at {level(sparsity).text} {why}" for method, sparsity, why in each(pd.concat([named, out]))]


def curves(runs: pd.DataFrame, records: Sequence[Mapping[str, Any]], budget: int = 5000) -> pd.DataFrame:
    """Curves of the runs as bins of steps: `step`, mean `loss`, last `density` and `valid` of each bin, one row a bin.

    The number of bins a run falls with the number of runs, from 60 to 8, to hold about `budget` rows.
    """
    drawn = [row for row in runs.to_dict("records") if (records[row["run"]].get("curve") or {}).get("step")]
    bins = int(min(60, max(8, budget // max(1, len(drawn)))))
    columns = ["run", "task", "method", "sparsity", "seed", "step", "loss", "density", "valid"]
    if not drawn:
        return pd.DataFrame(columns=columns)
    table = pd.concat([_binned(records[row["run"]]["curve"], bins).assign(run=row["run"]) for row in drawn])
    table = table.replace([np.inf, -np.inf], np.nan)
    how = {"step": "last", "loss": "mean", "density": "last", "valid": "last"}
    binned = table.groupby(["run", "bin"], as_index=False).agg(how)
    return binned.merge(runs[["run", "task", "method", "sparsity", "seed"]], on="run")[columns]


def _binned(curve: Mapping[str, Any], bins: int) -> pd.DataFrame:
    columns = {name: np.array(curve[name], dtype=float) for name in ("step", "loss", "density", "valid")}
    length = len(curve["step"])
    return pd.DataFrame(columns | {"bin": np.arange(length) * bins // max(length, bins)})


def architecture(runs: pd.DataFrame, records: Sequence[Mapping[str, Any]], most: int = 12) -> pd.DataFrame:
    """Active units of each Layer over time: a row for each `panel`, `layer` and `step`, with `active`, `of`, `share`.

    A panel is the first seed of a method at a task's highest sparsity; those alone in which some Layer ends with at
    most `PRUNED` of its units, and of these the `most` that have fewest. `position`: of the Layer in the network.
    """
    ended = runs[runs["outcome"].eq("counted") | runs["ended"].eq("off_target")]
    top = ended[ended["sparsity"] == ended.groupby("task")["sparsity"].transform("max")]
    found: list[tuple[float, list[dict[str, Any]]]] = []
    for row in each(top.sort_values("seed", kind="stable").drop_duplicates(["task", "method"])):
        units: dict[str, Any] = (records[row.run].get("curve") or {}).get("active_units") or {}
        sizes = [n for n in units["of"].values() if n] if units.get("step") else []
        if not sizes or len(sizes) != len(units["of"]):
            continue
        panel = f"{row.task}, {row.method}, {level(row.sparsity).text}"
        rows = [
            {"panel": panel, "method": row.method, "layer": name, "position": position, "step": step,
             "active": active, "of": units["of"][name], "share": min(1.0, active / units["of"][name])}
            for position, (name, counts) in enumerate(units["layers"].items())
            for step, active in zip(units["step"], counts, strict=True)
        ]  # fmt: skip
        last = [one["share"] for one in rows if one["step"] == units["step"][-1]]
        if min(last) <= PRUNED:
            found.append((sum(last) / len(last), rows))
    shown = [row for _, rows in sorted(found, key=lambda pair: pair[0])[:most] for row in rows]
    return pd.DataFrame(shown, columns=["panel", "method", "layer", "position", "step", "active", "of", "share"])


def ratios(flops: pd.DataFrame, memory: pd.DataFrame, time: pd.DataFrame) -> pd.DataFrame:
    """Long table measure, task, sparsity, method, value: every ratio to dense, dense methods left out."""
    parts = [flops.assign(measure=MEASURES[m], value=flops[m]) for m in ("ratio", "papers", "inference")]
    parts.append(memory.assign(measure=MEASURES["memory"], value=memory["ratio"]))
    # What an honest reader must know of seconds belongs in the title, not in a note that a copied figure loses.
    doubts = ["simulated sparsity"] * bool(time["simulated"].any()) + ["not ranked"] * bool((time["note"] != "").any())
    title = MEASURES["time"] + (f" ({', '.join(doubts)})" if doubts else "")
    parts.append(time.assign(measure=title, value=time["ratio"]))
    columns = ["measure", "task", "sparsity", "method", "dense", "value"]
    filled = [part[columns] for part in parts if len(part)]
    table = pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=columns)
    return table[~table["dense"].astype(bool) & table["value"].notna()].drop(columns="dense")
