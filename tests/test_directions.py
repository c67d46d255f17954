"""Metrics of either direction, with a level of chance and without, through boards, tables, charts and figures."""

from __future__ import annotations

import math
import re

import pytest

from dstbench.reports import boards, charts, costs, figures, sections, series
from dstbench.reports.drawing import svg
from dstbench.reports.load import frame
from dstbench.reports.orderings import orderings
from dstbench.reports.page import write
from dstbench.reports.statistics import retention
from records import make
from test_page import store

# metric, lower is better, chance, dense, a good method, a bad method, and their retentions by hand
KINDS = {
    "loss": (False, math.log(65), 1.9, 2.0, 2.6, (math.log(65) - 2.0) / (math.log(65) - 1.9)),
    "perplexity": (False, None, 20.0, 25.0, 40.0, 0.8),
    "mse": (False, 0.25, 0.01, 0.02, 0.1, 0.23 / 0.24),
    "psnr": (True, None, 30.0, 27.0, 15.0, 0.9),
    "log10_gap": (False, 0.0, -8.0, -6.0, -2.0, 0.75),
}


def grid(name):
    higher, chance, dense, good, bad, _ = KINDS[name]
    score = {"metric": name, "higher_is_better": higher, "chance": chance}
    found = [make("dense", None, s, dense * (1 + 0.001 * s), score=score) for s in (-1, 0, 1) if s >= 0]
    for method, test in (("rigl", good), ("static", bad)):
        found += [make(method, 0.9, s, test * (1 + 0.001 * s), score=score) for s in range(2)]
    return found


def tables(records):
    runs = frame(records)
    cells = boards.cells(runs)
    return runs, cells, costs.flops(runs)


@pytest.mark.parametrize("name", KINDS)
def test_the_better_method_leads_whatever_the_direction(name):
    _, cells, flops = tables(grid(name))
    kept = cells.set_index("method")["retention"]
    assert kept["rigl"] == pytest.approx(KINDS[name][5], abs=0.004) and kept["dense"] == pytest.approx(1, abs=1e-3)
    board = boards.standing(cells)
    assert list(board["method"]) == ["rigl", "static", "dense"] and (board["why"] == ["", "", "reference"]).all()
    assert [row[2].text for row in sections.leaderboard(cells, flops, "L").rows][2].startswith("100.0")
    said = [row[4].text for row in orderings(cells).rows if row[0].text == "static ≤ dense"]
    assert said == ["holds"]


@pytest.mark.parametrize("name", KINDS)
def test_no_table_writes_per_cent_of_such_a_metric(name):
    _, cells, _ = tables(grid(name))
    higher, _, _, good, _, _ = KINDS[name]
    by_level, every = sections.by_sparsity(cells, 0.9), sections.cell_table(cells)
    assert by_level.title == "Scores at sparsity 90 %"
    assert by_level.headers[2] == f"digits/mlp, {name}" + ("" if higher else " (lower is better)")
    assert every.headers[3:5] == ["metric", "test metric"]
    row = next(row for row in every.rows if row[2].text == "rigl")
    assert row[3].text == name + ("" if higher else " (lower is better)")
    assert float(row[4].text.split()[0]) == pytest.approx(good, rel=1e-2)
    known = KINDS[name][1] is not None
    assert (sections.DIRECTION in by_level.notes) is (not higher or not known)


@pytest.mark.parametrize("name", KINDS)
def test_charts_are_drawn_on_a_plain_axis(name):
    runs, cells, flops = tables(grid(name))
    points, looks, metrics = series.points(cells, flops, runs), series.looks(runs), series.metrics(cells)
    title = metrics["digits/mlp"]
    spec = charts.accuracy_sparsity(points, looks, title)
    assert "%" not in "".join(re.findall(r"<title>(.*?)</title>", svg(spec, "x"))).replace("at 90 %", "")
    drawn = re.sub(r"<title>.*?</title>", "", svg(spec, "x"))
    assert f"test {title}" in drawn and len(re.findall(r">[^<]*%<", drawn)) == 1  # the axis of sparsity alone


@pytest.mark.slow
def test_figures_name_the_direction_and_show_no_per_cent(tmp_path):
    records = grid("log10_gap")
    runs, cells, flops = tables(records)
    memory, time = costs.ratios(costs.remembered(runs, "training_state")), costs.ratios(costs.timed(runs))
    points, curves, metrics = series.points(cells, flops, runs), series.curves(runs, records), series.metrics(cells)
    figures.write(tmp_path, points, curves, series.ratios(flops, memory, time), series.looks(runs), metrics)
    text = (tmp_path / "accuracy-sparsity.svg").read_text()
    assert "test log10_gap (lower is better)<" in text and "log10_gap (lower is better), %" not in text


def test_failed_runs_of_a_metric_without_chance_count_0_and_are_in_no_mean():
    records = [*grid("perplexity"), make("rigl", 0.9, 2, status="diverged"), make("set", 0.9, 0, status="diverged")]
    _, cells, _ = tables(records)
    row = cells[cells["method"] == "rigl"].iloc[0]
    assert row["n"] == 3 and row["failed"] == 1 and row["mean"] == pytest.approx(25.0125)
    assert row["retention"] == pytest.approx(2 * 0.8 / 3, abs=1e-3) and row["seeds"][2] == 0
    lost = sections.by_sparsity(cells, 0.9).rows
    assert {r[1].text: r[2].order for r in lost}["set"] == 1e9  # sorts behind every perplexity


def test_failed_runs_of_a_loss_with_chance_count_as_chance():
    _, cells, _ = tables([*grid("loss"), make("rigl", 0.9, 2, status="collapsed", score=None)])
    row = cells[cells["method"] == "rigl"].iloc[0]
    assert row["mean"] == pytest.approx((2.0 + 2.002 + math.log(65)) / 3) and row["seeds"][2] == 0


def test_without_chance_a_value_that_is_not_positive_has_no_retention_and_says_why():
    records = grid("log10_gap")
    for record in records:
        record["score"]["chance"] = None
    _, cells, _ = tables(records)
    assert cells["retention"].isna().all() and set(cells["lacks"]) == {"no level of chance"}
    why = boards.standing(cells).set_index("method")["why"]
    assert why["rigl"] == "no level of chance for digits/mlp"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((25.0, math.nan, 20.0, False), 0.8),
        ((0.5, math.nan, 0.8, True), 0.625),
        ((0.0, math.nan, 20.0, False), math.nan),
        ((-1.0, math.nan, -2.0, False), math.nan),
        ((2.5, 2.5, 2.0, False), 0.0),
        ((3.0, 2.5, 2.0, False), -1.0),
        ((1.0, 2.0, 2.0, False), math.nan),
    ],
)
def test_retention_by_hand(values, expected):
    assert retention(*values) == pytest.approx(expected, nan_ok=True)


def test_a_page_of_several_metrics(tmp_path, monkeypatch):
    for name in ("write", "realised"):
        monkeypatch.setattr(f"dstbench.reports.figures.{name}", lambda *_: [])
    records = [r | {"id": r["id"]} for r in grid("loss")] + [make("dense", None, 0, task="b/c"), make(task="b/c")]
    summary = write(store(tmp_path, records), tmp_path / "report")
    text = summary.index.read_text(encoding="utf-8")
    assert "Scores at sparsity 90 %" in text and ">Scores</h2>" in text and "b/c, accuracy %" in text
    assert "digits/mlp, loss (lower is better)" in text and "valid loss (lower is better)" in text
