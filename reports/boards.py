"""Cells and standings: what the accuracy boards may say."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import combinations
from statistics import median
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

    `n` runs that count (`failed` among them, as chance: diverged or collapsed), `crashed` runs (error, oom, timeout: no
    result), `missing` runs off target, interrupted or skipped; `statuses` and `reason` of all that were not counted;
    `mean` ± `half` of the metric (without failed runs where `chance` is nan: they are 0 in `retention` alone); `lacks`:
    why there is no retention, where there is none; `seeds`: seed -> retention; `state` "ok", "failed" (nothing ended),
    "incomplete" (some runs crashed or missing) or "missing".
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
    counted, failed, lost = part[outcome == "counted"], part[outcome == "failed"], part[outcome != "counted"]
    scores = dict(zip(counted["seed"].astype(int), counted["score.test"], strict=True))
    known = not math.isnan(facts["chance"])
    values = scores | ({int(seed): facts["chance"] for seed in failed["seed"]} if known else {})
    shown = t_interval(list(values.values()) if scores else [])
    judged = facts["chance"], facts["dense_mean"], facts["higher"]
    kept = {seed: retention(value, *judged) for seed, value in scores.items()}
    kept |= {int(seed): 0.0 for seed in failed["seed"]}
    mean = t_interval(list(kept.values()))
    return {
        "metric": facts["metric"],
        "higher": facts["higher"],
        "chance": facts["chance"],
        "reference": facts["reference"],
        "state": (state := _state(part)),
        "n": len(kept),
        "failed": len(failed),
        "crashed": int((outcome == "crashed").sum()),
        "missing": int((outcome == "missing").sum()),
        "statuses": ", ".join(f"{n} {status}" for status, n in lost["ended"].value_counts().sort_index().items()),
        "reason": _commonest(f"{a}: {b}" if b else a for a, b in zip(lost["ended"], lost["reason"], strict=True)),
        "stale": int(part["stale"].sum()),
        "mean": shown.mean,
        "half": shown.half,
        "lacks": _lacks(facts) if any(map(math.isnan, kept.values())) else "",
        "retention": mean.mean,
        "retention_half": 0.0 if state == "failed" and values else mean.half,
        "achieved": counted["sparsity.achieved"].mean(),
        "seeds": kept,
    }


def _lacks(facts: Mapping[str, Any]) -> str:
    if math.isnan(facts["dense_mean"]):
        return "no dense reference"
    return "no level of chance" if math.isnan(facts["chance"]) else "dense is no better than chance"


def _state(part: pd.DataFrame) -> str:
    found = part["outcome"].value_counts()
    lost = found.get("failed", 0) + found.get("crashed", 0)
    if "counted" in found:
        return "incomplete" if found.get("crashed", 0) + found.get("missing", 0) else "ok"
    if not lost:
        return "missing"
    # A run off target did end, only not where it should.
    return "incomplete" if (part["ended"] == "off_target").any() else "failed"


def _commonest(reasons: Iterable[str]) -> str:
    """The reason given most often, cut where it is long, and how many others there are."""
    found = Counter(r if len(r) <= 160 else f"{r[:159]}…" for r in reasons if r).most_common()
    others = f" (and {len(found) - 1} other reason{'s' * (len(found) > 2)})" if len(found) > 1 else ""
    return found[0][0] + others if found else ""


def _stars(table: pd.DataFrame) -> pd.DataFrame:
    """Mark cells that a paired sign test tells from the dense reference, where there are seeds enough."""
    seeds = {tuple(row[:4]): row[4] for row in each(table[[*CELL, "seeds"]])}
    marks = []
    for row in each(table):
        base = seeds.get((row.setting, row.task, row.sparsity, row.reference), {})
        marks.append(star([row.seeds[s] - base[s] for s in sorted(row.seeds.keys() & base.keys())]))
    return table.assign(star=marks)


def standing(table: pd.DataFrame) -> pd.DataFrame:
    """The cells of one setting -> one row a method: mean retention with Satterthwaite interval, rank, and tie group.

    A method is ranked only with every cell complete and something that ended; dense methods are references and never
    ranked. `why` says why not.
    `group`, for ranked methods: 1 for the best method and all that are not told apart from it, 2 for the best of the
    rest and all of the rest that are not told apart from that, and so on.
    """
    methods = {str(name): part for name, part in split(table, "method")}
    rows = []
    for name, part in methods.items():
        interval = _overall(part)
        why = _why_unranked(part)
        rows.append({"method": name, "dense": bool(part["dense"].iloc[0]), "retention": interval.mean,
                     "half": interval.half, "cells": int((part["n"] > 0).sum()), "of": len(part), "n": interval.n,
                     "why": why, "failed": _nothing_ended(part)})  # fmt: skip
    board = pd.DataFrame(rows, columns=["method", "dense", "retention", "half", "cells", "of", "n", "why", "failed"])
    ranked = (board["why"] == "") & ~board["dense"]
    board["rank"] = board.loc[ranked, "retention"].rank(ascending=False, method="min")
    group, _ = ties({name: methods[name] for name in board.loc[ranked, "method"]})
    board["group"] = board["method"].map(group)
    return board.sort_values(["dense", "rank", "method"], na_position="last", ignore_index=True)


def _overall(part: pd.DataFrame) -> Interval:
    # A cell in which every run failed is 0 by rule, not by sampling: it has no variance even with one seed.
    values = [[0.0, 0.0] if state == "failed" else list(seeds.values())
              for state, seeds in zip(part["state"], part["seeds"], strict=True) if seeds]  # fmt: skip
    interval = satterthwaite(values)
    return Interval(interval.mean, interval.half, int(part["n"].sum()), interval.df)


def _nothing_ended(part: pd.DataFrame) -> bool:
    """Whether a method has runs that failed, and no other."""
    states = set(part["state"])
    return "failed" in states <= {"failed", "missing"} and not part["statuses"].str.contains("off_target").any()


def _why_unranked(part: pd.DataFrame) -> str:
    if part["dense"].iloc[0]:
        return "reference"
    if _nothing_ended(part):
        lost = int(part[["failed", "crashed"]].to_numpy().sum())
        return f"{lost} of {lost + int(part['missing'].sum())} failed: {_commonest(part['reason'])}"
    failed = part["state"] == "failed"
    whole = (part["crashed"] == 0) & (part["missing"] == 0)  # A cell that diverged in all of its runs is a result, 0.
    for state, hit in (("failed", failed & ~whole), *((s, part["state"] == s) for s in ("missing", "incomplete"))):
        if hit.any():
            reason = _commonest(part.loc[hit, "reason"])
            return f"{int(hit.sum())} of {len(part)} cells {state}" + (f": {reason}" if reason else "")
    lacking = part[part["lacks"] != ""]
    tasks = {why: ", ".join(found["task"].unique()) for why, found in split(lacking, "lacks")}
    return "; ".join(f"{why} for {names}" for why, names in tasks.items())


def ties(methods: Mapping[str, pd.DataFrame]) -> tuple[dict[str, int], dict[tuple[str, str], Difference]]:
    """Groups of methods that are not told apart from the best of them, and the differences from that best one.

    The best is chosen from the same data, so that Bonferroni counts every method, and no pair's error is taken below
    the median over pairs: by chance, some of many pairs have hardly any spread. `benchmarks.coverage` simulates it.

    Args:
        methods: name -> its cells, all of them complete.

    Returns:
        Name -> group, from 1; and (best, other) -> difference for each comparison made.
    """
    cells = {name: part.set_index(["task", "sparsity"])["seeds"].to_dict() for name, part in methods.items()}
    level = bonferroni(len(cells))

    def difference(a: str, b: str, least: float = 0.0) -> Difference:
        shared = [cell for cell in cells[a] if cell in cells[b]]
        return paired_difference([cells[a][c] for c in shared], [cells[b][c] for c in shared], level, least)

    errors = [found.error for a, b in combinations(cells, 2) if math.isfinite((found := difference(a, b)).error)]
    least = median(errors) if errors else 0.0
    group: dict[str, int] = {}
    compared: dict[tuple[str, str], Difference] = {}
    rest = sorted(methods, key=lambda name: (-methods[name]["retention"].mean(), name))
    while rest:
        best, number = rest[0], max(group.values(), default=0) + 1
        compared |= {(best, name): difference(best, name, least) for name in rest[1:]}
        told = [name for name in rest[1:] if compared[best, name].mean > compared[best, name].half]
        group |= {name: number for name in rest if name not in told}
        rest = told
    return group, compared
