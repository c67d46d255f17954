"""Charts: they compile offline, show every point, and each mark says its values."""

from __future__ import annotations

import json
import re
from html import unescape

import pytest

from dstbench.reports import boards, charts, costs, series
from dstbench.reports.drawing import WIDTH, svg
from dstbench.reports.load import frame
from records import make


def grid():
    found = [make("dense", None, s, 0.9) for s in range(2)]
    for name, test in (("rigl", 0.85), ("set", 0.8)):
        found += [make(name, level, s, test + 0.01 * s) for level in (0.9, 0.95) for s in range(2)]
    return found


def tables(records):
    runs = frame(records)
    cells, flops = boards.cells(runs), costs.flops(runs)
    memory = costs.ratios(costs.remembered(runs, "training_state"))
    ratios = series.ratios(flops, memory, costs.ratios(costs.timed(runs)))
    points = series.points(cells, flops, runs)
    return points, series.curves(runs, records), ratios, series.looks(runs)


def specs(records):
    points, curves, ratios, looks = tables(records)
    yield charts.accuracy_sparsity(points, looks, "accuracy")
    yield charts.accuracy_flops(points, looks, "accuracy", "ratio")
    yield charts.accuracy_flops(points, looks, None, "papers")
    yield charts.curves(curves, looks, "loss", "training loss")
    yield charts.curves(curves, looks, "valid", "valid accuracy")
    yield charts.ratio_chart(ratios[ratios["measure"] == "Training FLOPs"], looks, "Training FLOPs")


def find(spec, key):
    children = spec.values() if isinstance(spec, dict) else spec if isinstance(spec, list) else ()
    here = [spec[key]] if isinstance(spec, dict) and key in spec else []
    return here + [found for child in children for found in find(child, key)]


def said(spec):
    """What the marks of a drawing say of themselves."""
    return [unescape(title) for title in re.findall(r"<title>(.*?)</title>", svg(spec, "x"))]


@pytest.mark.parametrize("off", [False, True])
def test_charts_compile_offline_with_one_domain_of_colour_and_shape(off):
    records = [*grid(), make("linbreg", 0.95, 0, 0.7, status="off_target")] if off else grid()
    for spec in specs(records):
        text = json.dumps(spec, allow_nan=False)
        assert "http" not in text and spec["width"] == WIDTH and spec["description"]
        assert svg(spec, "x").count("<path") > 5
        domains = {json.dumps(d) for d in find(spec, "domain") if isinstance(d[0], str)}
        assert len(domains) == 1 and '"dense", ' in domains.pop()


def test_points_say_method_level_interval_and_costs():
    found = list(specs([*grid(), make("linbreg", 0.95, 0, 0.7, status="off_target")]))
    sparsity, honest = said(found[0]), said(found[1])
    assert len(sparsity) == 6 and "rigl at 90 %: 85.5 ± 6.4 (n=2)" in sparsity
    assert "dense: 90.0 ± 0.0 (n=2)" in sparsity and "linbreg at 95 %: 70.0 (n=1), off target" in sparsity
    assert "set at 95 %: 80.5 ± 6.4 (n=2), FLOPs 0.050 of dense" in honest


def test_every_run_is_seen_in_curves_though_it_has_one_value():
    loss, valid = list(specs(grid()))[3:5]
    assert len(said(loss)) == 10 and "rigl at 90 %, seed 1" in said(loss)
    assert len(re.findall(r'<path d="M[^"]*L[^"]*" stroke="#\w+"[^>]*><title>', svg(loss, "x"))) == 10
    # These runs were validated once: a line through one point would be blank.
    assert len([mark for mark in re.findall(r"<path[^>]*><title>", svg(valid, "x")) if 'fill="#' in mark]) == 10


def test_ratios_say_each_cell_and_the_mean():
    found = said(list(specs(grid()))[5])
    assert len(found) == 4 + 2 and "rigl at 90 %, digits/mlp: 0.100 of dense" in found
    assert "rigl, mean over cells: 0.075 of dense" in found


def test_long_names_are_wrapped_never_cut():
    name = "ml_linbreg(lam=0.125, regularizer=group_lasso, thresholds=per_layer, steps_between=20)"
    records = [*grid(), *[make(name, level, s, 0.8) for level in (0.9, 0.95) for s in range(2)]]
    _, _, ratios, looks = tables(records)
    drawn = svg(charts.ratio_chart(ratios[ratios["measure"] == "Training FLOPs"], looks, "t"), "x")
    shown = re.findall(r"<tspan[^>]*>(.*?)</tspan>", drawn)
    assert " ".join(shown) == name and max(map(len, shown)) <= 26 and "…" not in drawn
