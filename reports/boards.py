"""Cells and standings: what the accuracy boards may say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import pandas as pd

from dstbench.reports.rows import each, split
from dstbench.reports.statistics import (
    Difference,
    Interval,
    bonferroni,
    paired_difference,
    retention,
    satterthwaite,
    star,
    t_interval,
)

CELL = ["setting", "task", "sparsity", "method"]


def levels(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs, each dense one repeated at every sparsity level of its setting and task; once at nan where none is."""
    grid = runs.loc[~runs["dense"], ["setting", "task", "sparsity"]].drop_duplicates()
    dense = runs[runs["dense"]].drop(columns="sparsity").merge(grid, on=["setting", "task"], how="left")
    parts = [part for part in (dense[runs.columns], runs[~runs["dense"]]) if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else runs.copy()


def reference(runs: pd.DataFrame) -> str | None:
    """The dense method that ratios and retention refer to: `dense`, or the first dense one there is."""
    names = sorted(runs.loc[runs["dense"], "method"].unique())
    return "dense" if "dense" in names else names[0] if names else None


def cells(runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each setting × task × sparsity × method, those without a run included.

    `n` runs that count (`failed` among them, as chance), `missing` runs off target, interrupted or skipped; `mean` ±
    `half` of the metric; `seeds`: seed -> retention; `state` "ok", "failed" (no run ended), "incomplete" (some runs
    missing) or "missing".
    """
    rows: list[dict[str, Any]] = []
    for (setting, task), group in split(runs, ["setting", "task"]):
        facts = _facts(group)
        parts = dict(split(levels(group), ["sparsity", "method"]))
        everywhere = runs[runs["setting"] == setting].groupby("method")["dense"].first()
        for level in sorted({key[0] for key in parts}, key=lambda s: (math.isnan(s), s)):
            for method, dense in everywhere.items():
                if math.isnan(level) and not dense:
                    continue  # A task that only dense methods ran asks nothing of the others.
                part = next((g for (s, m), g in parts.items() if m == method and (s == level or s != s)), None)
                where = {"setting": setting, "task": task, "sparsity": level, "method": method, "dense": dense}
                rows.append(where | _cell(group.iloc[:0] if part is None else part, facts))
    table = pd.DataFrame(rows, columns=[*CELL, "dense", *_cell(runs.iloc[:0], _facts(runs.iloc[:0]))])
    return _stars(table.astype({"sparsity": float, "dense": bool}))


def _facts(group: pd.DataFrame) -> dict[str, Any]:
    """What all cells of a task share: metric, chance, and the mean of its dense reference."""
    scored = group[group["score.metric"].notna()]
    first = scored.iloc[0] if len(scored) else None
    name = reference(group)
    dense = group[(group["method"] == name) & (group["outcome"] == "counted")]["score.test"].mean()
    facts = {"metric": None, "higher": True, "chance": math.nan, "reference": name, "dense_mean": dense}
    if first is not None:
        facts |= {"metric": first["score.metric"], "higher": bool(first["score.higher_is_better"])}
        facts |= {"chance": first["score.chance"]}
    return facts


def _cell(part: pd.DataFrame, facts: Mapping[str, Any]) -> dict[str, Any]:
    outcome = part["outcome"]
    counted, failed = part[outcome == "counted"], part[outcome == "failed"]
    scores = dict(zip(counted["seed"].astype(int), counted["score.test"], strict=True))
    values = scores | {int(seed): facts["chance"] for seed in failed["seed"]}
    missing = int((outcome == "missing").sum())
    state = "missing" if not values else "incomplete" if missing else "ok" if scores else "failed"
    shown = t_interval(list(values.values()) if scores else [])
    kept = {seed: retention(value, facts["chance"], facts["dense_mean"]) for seed, value in scores.items()}
    kept |= {int(seed): 0.0 for seed in failed["seed"]}
    mean = t_interval(list(kept.values()))
    return {
        "metric": facts["metric"],
        "higher": facts["higher"],
        "reference": facts["reference"],
        "state": state,
        "n": len(values),
        "failed": len(failed),
        "missing": missing,
        "stale": int(part["stale"].sum()),
        "mean": shown.mean,
        "half": shown.half,
        "retention": mean.mean,
        "retention_half": 0.0 if state == "failed" else mean.half,
        "achieved": counted["sparsity.achieved"].mean(),
        "seeds": kept,
    }


def _stars(table: pd.DataFrame) -> pd.DataFrame:
    """Mark cells that a paired sign test tells from the dense reference, where there are seeds enough."""
    seeds = {tuple(row[:4]): row[4] for row in each(table[[*CELL, "seeds"]])}
    marks = []
    for row in each(table):
        base = seeds.get((row.setting, row.task, row.sparsity, row.reference), {})
        marks.append(star([row.seeds[s] - base[s] for s in sorted(row.seeds.keys() & base.keys())]))
    return table.assign(star=marks)


def standing(table: pd.DataFrame) -> pd.DataFrame:
    """The cells of one setting -> one row a method: mean retention with Satterthwaite interval, rank, and who is not
    distinguishable from it.

    A method is ranked only with every cell complete; dense methods are references and never ranked. `why` says why not.
    """
    methods = {str(name): part for name, part in split(table, "method")}
    rows = []
    for name, part in methods.items():
        interval = _overall(part)
        why = _why_unranked(part)
        rows.append({"method": name, "dense": bool(part["dense"].iloc[0]), "retention": interval.mean,
                     "half": interval.half, "cells": int((part["n"] > 0).sum()), "of": len(part), "n": interval.n,
                     "why": why})  # fmt: skip
    board = pd.DataFrame(rows, columns=["method", "dense", "retention", "half", "cells", "of", "n", "why"])
    ranked = (board["why"] == "") & ~board["dense"]
    board["rank"] = board.loc[ranked, "retention"].rank(ascending=False, method="min")
    compared = differences({name: methods[name] for name in board.loc[ranked, "method"]})
    board["like"] = [_alike(name, compared) for name in board["method"]]
    return board.sort_values(["dense", "rank", "method"], na_position="last", ignore_index=True)


def _overall(part: pd.DataFrame) -> Interval:
    # A cell in which every run failed is 0 by rule, not by sampling: it has no variance even with one seed.
    values = [[0.0, 0.0] if state == "failed" else list(seeds.values())
              for state, seeds in zip(part["state"], part["seeds"], strict=True) if seeds]  # fmt: skip
    interval = satterthwaite(values)
    return Interval(interval.mean, interval.half, int(part["n"].sum()), interval.df)


def _why_unranked(part: pd.DataFrame) -> str:
    if part["dense"].iloc[0]:
        return "reference"
    for state in ("missing", "incomplete"):
        hit = part[part["state"] == state]
        if len(hit):
            return f"{len(hit)} of {len(part)} cells {state}"
    unreferenced = part.loc[part["retention"].isna(), "task"].unique()
    return f"no dense reference for {', '.join(unreferenced)}" if len(unreferenced) else ""


def differences(methods: Mapping[str, pd.DataFrame]) -> dict[tuple[str, str], Difference]:
    """Every pair of methods with complete cells -> their pooled paired difference, at Bonferroni's level."""
    pairs = list(combinations(methods, 2))
    level = bonferroni(len(pairs))
    found = {}
    for a, b in pairs:
        both = methods[a].merge(methods[b], on=["task", "sparsity"], suffixes=("_a", "_b"))
        found[a, b] = paired_difference(list(both["seeds_a"]), list(both["seeds_b"]), level)
    return found


def _alike(name: str, compared: Mapping[tuple[str, str], Difference]) -> tuple[str, ...]:
    return tuple(b if a == name else a for (a, b), d in compared.items() if name in (a, b) and not d.distinguishable)
