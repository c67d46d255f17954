"""Figures as SVG and PNG, the same bytes from the same records."""

from __future__ import annotations

import pytest

from dstbench.reports import boards, costs, figures, series
from dstbench.reports.load import frame
from records import make


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


@pytest.mark.slow
def test_svg_is_reproducible(tmp_path):
    one, two = (draw(grid(), tmp_path / name)[0].read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.sampled(3)
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
