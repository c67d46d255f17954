"""The accuracy tables: leaderboard, accuracy by sparsity, cells."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from dstbench.reports.boards import standing
from dstbench.reports.rows import each
from dstbench.reports.series import metrics
from dstbench.reports.statistics import POWER, sign_test_floor
from dstbench.reports.tables import Cell, Table, level, metric, percent, ratio, share, whole

FORMULA = (
    "Retention r = (test metric − chance) / (dense mean − chance). A method's figure is the mean over its C cells of "
    "the mean r over seeds, (1/C) Σ r̄_c, with Satterthwaite's 95 % interval: ± t(ν) · √V, where v_c = s_c² / (n_c C²), "
    "V = Σ v_c and ν = V² / Σ (v_c² / (n_c − 1)). Cells are taken as independent and the dense mean as exact: its "
    "error is common to all methods."
)
RULES = (
    "A run that diverged or collapsed is a result and counts as chance (r = 0). One stopped by error, oom or timeout "
    "says nothing of accuracy: its cell lacks it, as one off target, interrupted, skipped or not run. A method with "
    "such a cell, or with no run that ended at all, gets no rank; dense methods are references."
)

DIRECTION = (
    "Retention of a metric that is better lower is the same share, since both differences change sign: 1 is dense, 0 "
    "chance. Where a metric has no level of chance, r = metric / dense mean, or dense mean / metric where lower is "
    "better; its runs that diverged or collapsed then count as r = 0, and the mean of the metric is that of the others."
)


def judged(table: pd.DataFrame) -> list[str]:
    """The note on metrics other than those of which more is better and chance is known, where there are some."""
    return [DIRECTION] * bool(((~table["higher"] | table["chance"].isna()) & table["metric"].notna()).any())


def leaderboard(table: pd.DataFrame, flops: pd.DataFrame, title: str) -> Table:
    """One setting's methods by mean retention, with both FLOPs ratios beside it and its tie group."""
    board = standing(table)
    means = flops.groupby("method")[["ratio", "papers", "inference"]].mean()
    means = means.reindex(board["method"]).reset_index()
    rows = []
    for row, cost in zip(each(board), each(means), strict=True):
        place = Cell("–" if pd.isna(row.rank) else f"{row.rank:.0f}", 1e9 if pd.isna(row.rank) else row.rank, "strong")
        group = "reference" if row.dense else f"not ranked: {row.why}" if row.why else f"{row.group:.0f}"
        cells = Cell(f"{row.cells}/{row.of}", row.cells / max(1, row.of), "" if row.cells == row.of else "bad")
        rows.append([place, Cell(row.method, style="strong"), _kept(row), cells, whole(row.n),
                     ratio(cost.ratio), ratio(cost.papers), ratio(cost.inference),
                     Cell(group, style="muted")])  # fmt: skip
    headers = ["rank", "method", "retention, %", "cells", "runs", "training FLOPs ÷ dense",
               "papers' convention ÷ dense", "inference FLOPs ÷ dense", "tie group"]  # fmt: skip
    notes = [FORMULA, RULES, *judged(table), _pairs(board, table), FLOPS_NOTE]
    return Table("leaderboard", title, headers, rows, [n for n in notes if n])


FLOPS_NOTE = (
    "One multiply-add = 2 FLOPs. Ratios are means over cells, of the runs that ended on target. The honest count takes "
    "what each pass computed; the papers' convention counts 3f a dense step and for each method what its paper counts. "
    "FLOPs and accuracy are never blended."
)


def _pairs(board: pd.DataFrame, table: pd.DataFrame) -> str:
    from dstbench.reports.boards import ties

    ranked = board.loc[board["rank"].notna(), "method"]
    _, found = ties({name: table[table["method"] == name] for name in ranked})
    seen = [d.detectable for d in found.values() if d.detectable == d.detectable]
    if not found:
        return ""
    if not seen:
        return (
            "Differences cannot be tested: any two ranked methods have a cell in which they share fewer than two "
            "seeds, or no difference varies between seeds."
        )
    span = f"{100 * min(seen):.1f}" + (f" to {100 * max(seen):.1f}" if max(seen) - min(seen) > 5e-4 else "")
    return (
        "Tie group 1: the best method and all that are not told apart from it; 2: the best of the rest and all of the "
        "rest that are not told apart from that; and so on. That methods share a group does not show that they are "
        "alike. Told apart: the interval of the difference paired by seed leaves 0 out, at a level at which at most "
        f"one board in 20 tells any alike methods apart (Bonferroni over {len(ranked)} methods, docs/measuring.md). "
        f"Differences from a group's best of {span} points of retention would be seen with {100 * POWER:.0f} % power."
    )


def by_sparsity(table: pd.DataFrame, sparsity: float) -> Table:
    """Mean of the metric of each method on each task at one sparsity level, and the retention over these tasks."""
    part = table[table["sparsity"].isna() if sparsity != sparsity else table["sparsity"] == sparsity]
    board = standing(part)
    tasks = sorted(part["task"].unique())
    found = {(row.method, row.task): row for row in each(part)}
    rows = []
    for row in each(board):
        place = Cell("–" if pd.isna(row.rank) else f"{row.rank:.0f}", 1e9 if pd.isna(row.rank) else row.rank, "strong")
        shown = [_score(found[row.method, task]) for task in tasks]
        rows.append([place, Cell(row.method, style="strong"), *shown, _kept(row)])
    name = "no sparse method" if sparsity != sparsity else f"sparsity {level(sparsity).text}"
    headers = ["rank", "method", *[f"{task}{_unit(part, task)}" for task in tasks], "retention, %"]
    notes = ["Mean ± 95 % t-interval over n seeds of the test metric at the last step. Ranked by retention over tasks."]
    notes += judged(part)
    return Table(f"accuracy-{sparsity:g}".replace(".", "-"), f"{heading(part)} at {name}", headers, rows, notes)


def heading(table: pd.DataFrame) -> str:
    """What the scores of these cells are: "Accuracy" where all are shares, else "Scores"."""
    return "Accuracy" if all(share(name) for name in table["metric"].dropna()) else "Scores"


def _unit(part: pd.DataFrame, task: str) -> str:
    name = metrics(part)[task]
    return f", {name}{' %' * share(name)}" if name else ""


def _kept(row: Any) -> Cell:
    """A method's retention; "failed" where none of its runs ended, which no figure stands for."""
    return Cell("failed", -1e9, "bad") if row.failed else percent(row.retention, row.half)


def _score(row: Any) -> Cell:
    if row.state in ("failed", "missing"):
        text = f"{row.state} ({row.statuses})" if row.statuses else "not run"
        worst = -1e9 if row.higher else 1e9  # beyond any score
        return Cell(text, worst if row.state == "failed" else 2 * worst, "bad")
    shown = metric(row.mean, row.half, row.metric)
    marks = [f"n={row.n}", row.statuses, f"{row.stale} stale" if row.stale else ""]
    text = f"{shown.text}{row.star} ({', '.join(filter(None, marks))})"
    return Cell(text, shown.order, "bad" if row.statuses or row.state != "ok" else "")


def cell_table(table: pd.DataFrame) -> Table:
    """Every cell: mean, interval, n, retention, achieved sparsity."""
    rows = []
    names = metrics(table) if heading(table) == "Scores" else {}
    for row in each(table.sort_values(["task", "sparsity", "method"])):
        kept = percent(row.retention, math.nan if row.state == "failed" else row.retention_half)
        said = f"{row.state}: {row.reason}" if row.reason else row.state
        state = Cell(said, style="muted" if row.state == "ok" and not row.reason else "bad")
        name = [Cell(f"{names[row.task] or '–'}{', %' * share(names[row.task])}")] if names else []
        rows.append([Cell(row.task), level(row.sparsity), Cell(row.method, style="strong"), *name, _score(row),
                     whole(row.n), kept, percent(row.achieved, spec=".2f"), state])  # fmt: skip
    seeds = int(table["n"].max()) if len(table) else 0
    star = (
        "* : differs from dense by a paired sign test over seeds."
        if seeds >= 6
        else f"No stars: a paired sign test on {seeds} seeds cannot go below p = {sign_test_floor(seeds):.2g}; 6 can."
    )
    notes = [
        "On target: the achieved density is within 1 % of the target density, or one weight, or one unit of a "
        "structured method up to 5 %. A cell is failed where nothing ended, incomplete where some runs crashed or are "
        "off target, interrupted or skipped, missing where all are. Intervals are Student's t; runs that diverged or "
        "collapsed count as chance. Dense runs count at every sparsity level.",
        *judged(table),
        star,
    ]
    headers = [
        "task",
        "sparsity",
        "method",
        *["metric"] * bool(names),
        "test metric",
        "n",
        "retention, %",
        "achieved sparsity, %",
        "state",
    ]
    return Table("cells", "Cells", headers, rows, notes)
