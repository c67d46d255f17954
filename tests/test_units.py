"""Active units: counted in training, kept by the record, drawn by the report; older records go on to be read."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from dstbench.reports import charts, figures, plots, series
from dstbench.reports.drawing import svg
from dstbench.reports.load import frame
from dstbench.suite import record, registry, schema
from dstbench.suite.meters.units import MOST, Units, active
from dstbench.suite.model import SparseModel
from dstbench.suite.train import Training
from records import make


def model() -> SparseModel:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(4, 3))
    return SparseModel(net, torch.zeros(1, 2, 3, 3))


def test_units_are_rows_and_channels_with_any_weight() -> None:
    conv, linear = layers = model().layers
    assert [active(layer) for layer in layers] == [4, 3]
    units = Units(layers)
    units.look(1)
    mask = torch.zeros(conv.shape, dtype=torch.bool)
    mask[1, 0, 2, 2] = mask[3] = True
    conv.activate(mask)
    linear.activate(torch.zeros(linear.shape, dtype=torch.bool))
    units.look(5)
    assert units.seen == {"step": [1, 5], "of": {"0": 4, "2": 3}, "layers": {"0": [4, 2], "2": [3, 0]}}


def test_large_networks_are_left_out() -> None:
    units = Units([model().layers[0]] * (MOST + 1))
    units.look(1)
    assert units.seen is None and Units([]).seen is None


def test_a_run_keeps_its_units_over_a_checkpoint() -> None:
    def begin() -> Training:
        task = registry.task("digits/mlp", recipe={"steps": 6, "batch": 8})
        return Training(task, registry.method("static", sparsity=0.9))

    whole = begin()
    whole.setup()
    whole.run()
    units = whole.curve["active_units"]
    assert units["step"] == [1, 6] and all(len(counts) == 2 for counts in units["layers"].values())
    assert units["of"] == {layer.name: layer.shape[0] for layer in whole.model.layers}
    half = begin()
    half.setup()
    half.run(until=3)
    again = begin()
    again.load(copy.deepcopy(half.state()))
    again.run()
    assert again.curve == whole.curve
    older = half.state() | {"curve": {k: list(v) for k, v in half.curve.items() if k != "active_units"}}
    late = begin()
    late.load(copy.deepcopy(older))
    late.run()
    assert late.curve["active_units"]["step"] == [6] and late.curve["loss"] == whole.curve["loss"]


UNITS = {"step": [1, 100, 200], "of": {"a": 8, "b": 4}, "layers": {"a": [8, 4, 2], "b": [4, 4, 4]}}


def test_records_with_and_without_units_are_read(tmp_path) -> None:
    folder = tmp_path / "records"
    folder.mkdir()
    for found in (
        make(seed=1),
        make(seed=2, curve={"active_units": UNITS}),
        make(seed=3, curve={"active_units": None}),
    ):
        (folder / f"{found['id']['key']}-1.json").write_text(json.dumps(found))
    records, aside = record.load(tmp_path)
    assert aside == []
    assert sorted(str(r["curve"]["active_units"]) for r in records) == ["None", "None", str(UNITS)]


@pytest.mark.parametrize(
    "change",
    [{"step": None}, {"of": []}, {"layers": {}}, {"layers": {"a": [1, 2, 3], "b": [1]}}, {"of": {"a": 8, "b": -1}},
     {"layers": {"a": [1, 2, "3"], "b": [1, 2, 3]}}, {"layers": {"a": None, "b": None}}],
)  # fmt: skip
def test_units_that_are_none_are_refused(change) -> None:
    with pytest.raises(ValueError, match=r"curve\.active_units"):
        schema.validate(make(curve={"active_units": UNITS | change}))


def test_the_architecture_that_training_found_is_drawn(tmp_path) -> None:
    whole = {"step": [1, 200], "of": {"a": 8}, "layers": {"a": [8, 8]}}
    records = [make("linbreg", level, s, curve={"active_units": UNITS}) for level in (0.5, 0.9) for s in (1, 0)]
    records += [make("dense", None), make("set", curve={"active_units": whole}), make("rigl"), make(status="error")]
    table = series.architecture(frame(records), records)
    assert set(table["panel"]) == {"digits/mlp, linbreg, 90 %"} and len(table) == 6
    assert list(table[table["layer"] == "a"]["share"]) == [1, 0.5, 0.25]
    told = svg(charts.architecture(table), "x")
    assert "a after 200 steps: 2 of 8 units" in told and "active units of each layer" in told
    assert [chart.title for chart in plots.architecture(table, "s0")] == ["digits/mlp, linbreg, 90 %"]
    nothing = series.architecture(frame([]), [])
    assert nothing.empty and plots.architecture(nothing, "s0") == [] and figures.architecture(tmp_path, nothing) == []
    many = [make(f"m{i:02d}", curve={"active_units": UNITS}) for i in range(14)]
    assert series.architecture(frame(many), many)["panel"].nunique() == 12


@pytest.mark.slow
def test_the_figure_file_names_layers_and_steps(tmp_path) -> None:
    records = [make("linbreg", curve={"active_units": UNITS})]
    paths = figures.architecture(tmp_path, series.architecture(frame(records), records))
    assert [p.name for p in paths] == ["architecture.svg", "architecture.png"]
    text = paths[0].read_text()
    assert all(f">{word}<" in text for word in ("a", "b", "100", "active units", "digits/mlp, linbreg, 90 %"))
