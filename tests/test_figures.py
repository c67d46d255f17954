"""Figures as SVG and PNG, the same bytes from the same records."""

from __future__ import annotations

import hashlib
import json

import pytest

from reports import boards, costs, figures, series
from reports.load import frame


def make(method="rigl", sparsity=0.9, seed=0, test=0.9, status="ok", task="digits/mlp", **blocks):
    """A complete record; a failed one has null blocks. Keyword arguments update blocks field by field."""
    who = {"task": task, "task_version": 1, "method": method, "method_version": 1, "hyperparameters": {}, "seed": seed}
    who |= {"sparsity": sparsity, "budget": 1.0, "precision": "fp32", "kernel": "masked", "device": "cpu", "threads": 1}
    who |= {"data": "d" * 12} | blocks.pop("id", {})
    key = hashlib.sha256(json.dumps(who, sort_keys=True).encode()).hexdigest()[:12]
    share = 1.0 if sparsity is None else 1 - sparsity
    record = {
        "score": {"metric": "accuracy", "higher_is_better": True, "chance": 0.1, "target": None, "valid": test},
        "sparsity": {"target": sparsity, "achieved": sparsity or 0.0, "layers": {}},
        "flops": {"total": 1e9 * share, "papers": 8e8 * share, "inference": 100 * share, "dense_total": 1e9,
                  "dense_inference": 100, "ratio": share, "papers_ratio": 0.8 * share, "setup": 0, "charged": 0,
                  "dense_gradient_steps": 3, "source": "masks"},
        "time": {"wall": 5.0, "train": 4.0, "overhead": 0.1, "step_median": 0.01, "simulated": True},
        "energy": [],
        "memory": {"training_state": 1000 * share, "model_dense": 400, "model_sparse": 400 * share,
                   "peak_over_start": 10.0, "peak_resident": 20.0, "cuda_allocated": None, "cuda_reserved": None},
        "curve": {"step": [0, 1], "loss": [2.0, 1.0], "density": [1.0, share], "valid": [None, test]},
    }  # fmt: skip
    record["score"]["test"], record["sparsity"]["on_target"] = test, status != "off_target"
    if status not in ("ok", "off_target", "collapsed"):
        record = dict.fromkeys(record)
    record["machine"] = {"name": "a" * 12, "cpu": "test", "cores": 2, "memory": 2**33, "gpu": None, "os": "Linux"}
    record["machine"]["python"] = "3.11"
    record["code"] = {"versions": {"torch": "2.15.0"}, "method_source": "s", "commit": None}
    record["stamps"] = {"started": "2025-01-01", "finished": "2025-01-01", "resumed": 0, "shared": False}
    record |= {"schema": 1, "id": {"key": key} | who, "params": {"recipe": {"steps": 3}, "own_tuning": False}}
    record["status"] = {"name": status, "reason": "because" if status != "ok" else "", "traceback": ""}
    for name, fields in blocks.items():
        record[name] = fields if not isinstance(fields, dict) or record[name] is None else record[name] | fields
    return record


def draw(records, out, suffix=""):
    runs = frame(records)
    cells, flops = boards.cells(runs), costs.flops(runs)
    memory, time = costs.ratios(costs.remembered(runs, "training_state")), costs.ratios(costs.timed(runs))
    metrics = dict(zip(cells["task"], cells["metric"], strict=True))
    points, curves = series.points(cells, flops, runs), series.curves(runs, records)
    return figures.write(out, points, curves, series.ratios(flops, memory, time), series.looks(runs), metrics, suffix)


def grid(tasks=("digits/mlp",)):
    found = []
    for task in tasks:
        found += [make("dense", None, s, 0.9, task=task) for s in range(2)]
        found += [make("rigl", level, s, 0.8 + 0.01 * s, task=task) for level in (0.9, 0.95) for s in range(2)]
        found.append(make("set", 0.9, 0, 0.7, status="off_target", task=task))
    return found


def test_all_figures_in_both_formats(tmp_path):
    paths = draw(grid(("a", "b", "c", "d")), tmp_path, "-2")
    names = ("accuracy-sparsity", "accuracy-flops", "curves", "ratios")
    assert [p.name for p in paths] == [f"{name}-2.{kind}" for name in names for kind in ("svg", "png")]
    for path in paths:
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" or path.read_text().startswith("<?xml")
    text = (tmp_path / "accuracy-sparsity-2.svg").read_text()
    assert "rigl" in text and "test accuracy, %" in text and ">d<" in text
    assert "2 FLOPs" in (tmp_path / "accuracy-flops-2.svg").read_text()
    assert "sparsity 95 %" in (tmp_path / "curves-2.svg").read_text()
    assert "simulated sparsity" in (tmp_path / "ratios-2.svg").read_text()


def test_svg_is_reproducible(tmp_path):
    one, two = (draw(grid(), tmp_path / name)[0].read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize(
    ("records", "figures"),
    [
        ([], set()),
        ([make("dense", None)], {"accuracy-sparsity", "accuracy-flops", "curves"}),
        ([make("rigl")], {"accuracy-sparsity", "accuracy-flops", "curves", "ratios"}),
        ([make("rigl", status="error")], set()),
        ([make("rigl", flops=None, curve=None)], {"accuracy-sparsity"}),
        ([make("rigl", curve={"valid": [None, None]})], {"accuracy-sparsity", "accuracy-flops", "curves", "ratios"}),
        (
            [make("rigl", score={"metric": "loss"}, status="off_target")],
            {"accuracy-sparsity", "accuracy-flops", "curves"},
        ),
    ],
)
def test_whatever_is_missing_the_rest_is_drawn(records, figures, tmp_path):
    assert {path.stem for path in draw(records, tmp_path)} == figures


def test_no_global_style_is_left(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    draw(grid(), tmp_path)
    assert dict(matplotlib.rcParams) == before
