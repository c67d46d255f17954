"""Boards of FLOPs, time, energy and memory: ratios to dense of the same setting and machine, one quantity at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from dstbench.reports.boards import levels, reference
from dstbench.reports.rows import split
from dstbench.reports.statistics import t_interval

FLOPS = {"ratio": "flops.ratio", "papers": "flops.papers_ratio", "inference": "inference"}


def flops(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean FLOPs of each cell: both counts, their ratios to the same samples trained dense, inference per sample."""
    part = levels(runs[(runs["outcome"] == "counted") & runs["flops.total"].notna()])
    part = part.assign(inference=part["flops.inference"] / part["flops.dense_inference"])
    keys = ["setting", "task", "sparsity", "method", "dense"]
    means = part.groupby(keys, dropna=False).agg(
        n=("run", "size"),
        total=("flops.total", "mean"),
        ratio=("flops.ratio", "mean"),
        papers_total=("flops.papers", "mean"),
        papers=("flops.papers_ratio", "mean"),
        inference=("inference", "mean"),
        setup=("flops.setup", "mean"),
        charged=("flops.charged", "mean"),
        dense_steps=("flops.dense_gradient_steps", "mean"),
        source=("flops.source", lambda names: ", ".join(sorted(set(names)))),
    )
    return means.reset_index()


def timed(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs with seconds of training as `value`, and in `unfit` why they cannot be ranked."""
    part = runs[(runs["outcome"] == "counted") & runs["time.train"].notna()]
    simulated = part["time.simulated"].eq(True)
    return part.assign(value=part["time.train"], unfit=_unfit(part), simulated=simulated & ~part["dense"])


def remembered(runs: pd.DataFrame, field: str) -> pd.DataFrame:
    """Runs with bytes of the memory block's `field` as `value`."""
    part = runs[(runs["outcome"] == "counted") & runs[f"memory.{field}"].notna()]
    return part.assign(value=part[f"memory.{field}"], unfit="", simulated=False)


def energy(runs: pd.DataFrame, records: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], pd.DataFrame]:
    """(component, source, scope) -> runs with joules as `value`; a reading that failed is in the table with nan."""
    part = runs[runs["outcome"] == "counted"].assign(unfit="", simulated=False)
    part["unfit"] = _unfit(part)
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in part.to_dict("records"):
        for entry in records[row["run"]].get("energy") or []:
            # A modelled count of joules does not see what else the machine did, and has no clock to resume.
            measured = not entry["source"].startswith("modelled:")
            unfit = (row["unfit"] or ("ran beside other runs" if entry["shared"] else "")) if measured else ""
            extra = {"value": entry["joules"], "unfit": unfit, "note": entry["note"] or ""}
            extra["simulated"] = measured and row["time.simulated"] is True and not row["dense"]
            name = (entry["component"], entry["source"], entry["scope"] or "")
            found.setdefault(name, []).append({str(k): v for k, v in row.items()} | extra)
    return {name: pd.DataFrame(rows).astype({"value": float}) for name, rows in sorted(found.items())}


def _unfit(part: pd.DataFrame) -> list[str]:
    resumed, shared = part["stamps.resumed"].fillna(0) > 0, part["stamps.shared"].eq(True)
    return ["resumed" if r else "ran beside other runs" if s else "" for r, s in zip(resumed, shared, strict=True)]


def ratios(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs with `value`, `unfit`, `simulated` -> one row for each machine and cell, as ratios to dense of that machine.

    Where a cell has runs fit to be ranked only those count; a cell, or a dense reference, without one is not ranked and
    `note` says why. Ranks are within machine, setting, task and sparsity.
    """
    columns = ["setting", "machine", "task", "sparsity", "method", "dense", "n", "value", "ratio", "half", "simulated",
               "note", "rank"]  # fmt: skip
    runs = runs[runs["value"].notna()]
    rows = []
    for (setting, machine, task), group in split(runs, ["setting", "machine.name", "task"]):
        base = group[group["method"] == reference(group)]
        whole, base_note = fit(base)
        scale = whole["value"].mean() if len(whole) else float("nan")
        for (sparsity, method, dense), part in split(levels(group), ["sparsity", "method", "dense"]):
            used, note = fit(part)
            ratio = t_interval(list(used["value"] / scale))
            note = note or (f"dense reference {base_note}" if base_note else "")
            rows.append([setting, machine, task, sparsity, method, dense, len(used), used["value"].mean(), ratio.mean,
                         ratio.half, bool(used["simulated"].any()), note, None])  # fmt: skip
    table = pd.DataFrame(rows, columns=columns)
    ranked = table[(table["note"] == "") & ~table["dense"].astype(bool) & table["ratio"].notna()]
    table["rank"] = ranked.groupby(["setting", "machine", "task", "sparsity"], dropna=False)["value"].rank(method="min")
    return table


def fit(part: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The runs fit to be ranked and no note; all of them and the reason if none is."""
    alone = part[part["unfit"] == ""]
    if len(alone) or not len(part):
        return alone, "" if len(part) else "missing on this machine"
    return part, ", ".join(sorted(set(part["unfit"])))
