"""Realised speed-up: FLOPs against time over dense of the same machine, threads and precision, under any kernel."""

from __future__ import annotations

import math

import pytest

from dstbench.reports import charts, figures, realised, series
from dstbench.reports.drawing import svg
from dstbench.reports.load import frame
from records import make
from test_costs import pick


def run(method, sparsity, step, kernel="sparse", flops=None, steps=10, **more):
    """A run of steps of `step` seconds, whose training FLOPs are `flops` of dense's 1e9."""
    share = 1.0 if sparsity is None else 1 - sparsity
    blocks = {"time": {"step_median": step, "steps": steps, "simulated": kernel == "masked"}, "id": {"kernel": kernel}}
    blocks["flops"] = {"total": 1e9 * (share if flops is None else flops)}
    for name, fields in more.pop("blocks", {}).items():
        blocks[name] = blocks.get(name, {}) | fields
    return make(method, sparsity, **blocks, **more)


def board(*records):
    return realised.board(frame(records))


def test_time_and_flops_are_over_dense_whatever_its_kernel():
    found = board(
        run("dense", None, 0.004, kernel="masked"),
        run("rigl", 0.9, 0.001, flops=0.2),
        run("rigl", 0.9, 0.005, kernel="masked", flops=0.2),
    )
    real, simulated = pick(found, kernel="sparse"), pick(found, kernel="masked")
    assert (real["flops"], real["time"], real["share"]) == pytest.approx((0.2, 0.25, 0.8))
    assert (simulated["time"], simulated["share"]) == pytest.approx((1.25, 0.16))
    assert simulated["simulated"] and not real["simulated"] and list(found["note"]) == ["", ""]
    assert set(found["panel"]) == {"digits/mlp · kernel sparse", "digits/mlp · kernel masked"}
    text = realised.table(found).markdown()
    assert "| rigl | sparse | 0.200 | 1 ms | 0.250 | 4.00 × | 80.0 | 1 |  |" in text
    assert "| 16.0 | 1 | simulated |" in text and "machine" not in text.split("\n")[2]


def test_dense_runs_of_all_kernels_are_one_reference_and_seeds_are_averaged():
    dense = [run("dense", None, 0.004, kernel="masked"), run("dense", None, 0.006, seed=1)]
    row = pick(board(*dense, run("set", 0.9, 0.001), run("set", 0.9, 0.003, seed=1)))
    assert row["time"] == pytest.approx(0.4) and row["n"] == 2 and row["half"] > 0


def test_a_method_that_trains_longer_is_compared_by_the_step():
    row = pick(board(run("dense", None, 0.004), run("rigl", 0.9, 0.001, flops=1.0, steps=50)))
    assert row["flops"] == pytest.approx(0.2) and row["share"] == pytest.approx(0.8)


@pytest.mark.parametrize(
    "other",
    [
        {"machine": {"name": "b" * 12}},
        {"id": {"threads": 2}},
        {"id": {"precision": "bf16"}},
        {"id": {"allocator": "tuned"}},
    ],
)
def test_dense_of_another_machine_threads_or_precision_is_no_reference(other):
    found = board(run("dense", None, 0.004), run("rigl", 0.9, 0.001, blocks=other))
    row = pick(found)
    assert math.isnan(row["time"]) and row["note"] == "dense reference missing on this machine"
    both = board(
        run("dense", None, 0.004), run("dense", None, 0.002, blocks=other),
        run("rigl", 0.9, 0.001), run("rigl", 0.9, 0.001, blocks=other),
    )  # fmt: skip
    assert sorted(both["time"]) == pytest.approx([0.25, 0.5]) and both["panel"].nunique() == 2
    place = "machine" if "machine" in other else "conditions"
    assert realised.table(both).headers[0] == place


@pytest.mark.parametrize(("how", "why"), [({"shared": True}, "ran beside other runs"), ({"resumed": 1}, "resumed")])
def test_shared_and_resumed_runs_have_no_time(how, why, tmp_path):
    spoilt = {"stamps": how}
    found = board(run("dense", None, 0.004), run("rigl", 0.9, 0.001, blocks=spoilt), run("set", 0.9, 0.001))
    assert math.isnan(pick(found, method="rigl")["time"]) and pick(found, method="set")["time"] == 0.25
    assert f"no time: {why}" in realised.table(found).markdown()
    assert realised.ALONE not in realised.table(found).notes
    mixed = board(run("dense", None, 0.004), run("set", 0.9, 0.001), run("set", 0.9, 9.0, seed=1, blocks=spoilt))
    assert pick(mixed)["time"] == 0.25 and pick(mixed)["n"] == 1
    none = board(run("dense", None, 0.004, blocks=spoilt), run("rigl", 0.9, 0.001), run("set", 0.9, 0.001))
    assert none["time"].isna().all() and set(none["note"]) == {f"dense reference {why}"}
    shown = realised.table(none)
    assert shown.notes[0] == realised.ALONE and " ms |" not in shown.markdown()
    assert figures.realised(tmp_path, none, series.looks(frame([make("rigl"), make("set")]))) == []


def test_failed_runs_and_dense_ones_have_no_row():
    assert board().empty and board(run("dense", None, 0.004)).empty
    assert board(run("dense", None, 0.004), run("rigl", 0.9, 0.001, status="error")).empty
    assert board(run("dense", None, 0.004), run("rigl", 0.9, None)).empty


def test_chart_and_figure_show_every_point_and_the_ideal(tmp_path):
    records = [run("dense", None, 0.004), run("rigl", 0.9, 0.001), run("set", 0.95, 0.0009), run("set", 0.9, 0.001)]
    records.append(run("rigl", 0.9, 0.004, kernel="masked"))
    found, looks = board(*records), series.looks(frame(records))
    paths = figures.realised(tmp_path, found, looks)
    assert [path.name for path in paths] == ["realised.svg", "realised.png"]
    text = paths[0].read_text()
    assert "kernel sparse" in text and "kernel masked" in text and "hollow: simulated" in text
    part = found[found["kernel"] == "sparse"]
    spec = charts.realised(part, looks)
    rows = spec["datasets"]["d0"]
    assert [row["flops"] for row in rows] == list(part["flops"]) and [row["time"] for row in rows] == list(part["time"])
    low, high = series.bounds(part)
    assert low < part["flops"].min() and high > 1
    drawn = svg(spec, "x")
    assert drawn.count("<title>") == 3 and "rigl at 90 %, kernel sparse: FLOPs 0.100, time 0.250 of dense" in drawn
