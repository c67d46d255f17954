"""What charts draw: looks, points, binned curves, ratios."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dstbench.reports import boards, costs, series
from dstbench.reports.load import frame
from records import make


def tables(records):
    runs = frame(records)
    cells = boards.cells(runs)
    return runs, cells, series.points(cells, costs.flops(runs), runs)


def grid():
    found = [make("dense", None, s, 0.9) for s in range(2)]
    for name, test in (("rigl", 0.85), ("set", 0.8)):
        found += [make(name, level, s, test + 0.01 * s) for level in (0.9, 0.95) for s in range(2)]
    return found


def test_looks_are_distinct_and_stable():
    names = [f"m{i:02d}" for i in range(56)]
    looks = series.looks(frame([make("dense", None), make("dense:adam", None), *[make(n) for n in names[:55]]]))
    assert len({(look.colour, look.shape) for look in looks.values()}) == 57
    assert looks["dense"].colour == "#000000" and next(iter(looks)) == "dense"
    assert series.looks(frame([make("rigl"), make("set")])) == series.looks(frame([make("set"), make("rigl")]))
    assert len(set(series.SHAPES)) == 8 and len(set(series.COLOURS)) == 8


def test_points_hold_intervals_costs_and_runs_off_target():
    records = [*grid(), make("linbreg", 0.95, 0, 0.7, status="off_target")]
    records[-1]["sparsity"]["achieved"] = 0.93
    _, _, points = tables(records)
    row = points[(points["method"] == "rigl") & (points["sparsity"] == 0.95)].iloc[0]
    assert row["mean"] == pytest.approx(0.855) and row["low"] < 0.855 < row["high"]
    assert row["ratio"] == pytest.approx(0.05) and row["papers"] == pytest.approx(0.04)
    assert abs(row["x"] - 0.95) < 0.005
    away = points[points["off"].astype(bool)].iloc[0]
    assert (away["method"], away["x"], away["mean"]) == ("linbreg", 0.93, 0.7) and math.isnan(away["low"])
    assert points.loc[points["dense"].astype(bool), "x"].isna().all()
    assert not points.loc[~points["dense"].astype(bool), "x"].duplicated().any()


def test_domain_leaves_failures_out_and_unseen_names_them():
    records = [*grid(), make("static", 0.9, 0, 0.8), make("static", 0.9, 1, status="diverged")]
    records += [make("snip", 0.9, s, status="diverged") for s in range(2)]
    _, cells, points = tables(records)
    low, high = series.domain(points)
    assert 0.7 < low < 0.8 and 0.9 < high < 1.0
    assert series.unseen(points, cells) == ["snip at 90 % failed", "static at 90 % outside"]


def test_curves_are_binned():
    steps = list(range(500))
    curve = {"step": steps, "loss": [float(s) for s in steps], "density": [1.0] * 499 + [0.1]}
    curve["valid"] = [None] * 250 + [0.5] + [None] * 249
    records = [make(curve=curve), make("set"), make("x", status="error")]
    runs = frame(records)
    table = series.curves(runs, records)
    long = table[table["method"] == "rigl"]
    assert len(long) == 60 and long["step"].iloc[-1] == 499 and long["density"].iloc[-1] == 0.1
    assert long["loss"].mean() == pytest.approx(np.mean(steps), abs=0.5)
    assert list(long["valid"].dropna()) == [0.5]
    assert len(table[table["method"] == "set"]) == 2 and "x" not in set(table["method"])
    assert len(series.curves(runs, records, budget=20)) == 10 + 2
    assert series.curves(frame([]), []).empty


def test_infinite_losses_leave_gaps():
    records = [make(curve={"loss": [1.0, math.inf]})]
    assert series.curves(frame(records), records)["loss"].isna().sum() == 1


def test_ratios_name_what_seconds_are_worth():
    records = [*grid()]
    runs = frame(records)
    memory = costs.ratios(costs.remembered(runs, "training_state"))
    table = series.ratios(costs.flops(runs), memory, costs.ratios(costs.timed(runs)))
    assert set(table["measure"]) == {
        "Training FLOPs", "Training FLOPs, papers' convention", "Inference FLOPs", "Training memory",
        "Training time (simulated sparsity)",
    }  # fmt: skip
    assert set(table["method"]) == {"rigl", "set"} and table["value"].notna().all()
