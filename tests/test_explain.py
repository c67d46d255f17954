"""Explain: kernel, route, fall-back and share of the FLOPs of every layer, before anything is trained."""

from __future__ import annotations

import json

import pytest
import torch

from dstbench.suite import kernels
from dstbench.suite.explain import OUTSIDE, explain, text
from dstbench.suite.registry import RegistryError
from test_run_all import call, said


def test_routes_and_shares_of_an_mlp_are_those_of_its_sizes() -> None:
    sizes = {"fc1": 64 * 100, "fc2": 100 * 100, "fc3": 100 * 10}
    found = explain("snip", "digits/mlp", 0.9)
    rows = {row["layer"]: row for row in found["layers"]}
    assert list(rows) == list(sizes)
    for name, size in sizes.items():
        assert rows[name]["share"] == pytest.approx(size / sum(sizes.values()))
        assert rows[name]["density"] < 0.35 and rows[name]["fallback"] is None
    assert rows["fc1"]["shape"] == [100, 64]
    assert sum(sizes[name] * row["density"] for name, row in rows.items()) == pytest.approx(1740, abs=1)
    assert found["routes"] == pytest.approx({"sparse": 1.0, OUTSIDE: 0.0})


def test_a_fallback_shows_its_layer_reason_and_share() -> None:
    found = explain("static", "digits/vit", 0.9)
    fallen = [row for row in found["layers"] if row["kernel"] == "masked"]
    assert [(row["layer"], row["fallback"]) for row in fallen] == [
        ("patch_embed.proj", "no sparse convolution with stride (4, 4)")
    ]
    assert found["routes"]["masked"] == pytest.approx(sum(row["share"] for row in fallen))
    assert sum(found["routes"].values()) == pytest.approx(1) and found["routes"][OUTSIDE] > 0
    shown = text(found)
    assert fallen[0]["fallback"] in shown and f"masked {found['routes']['masked']:.1%}" in shown


def test_masks_are_those_of_the_first_pass() -> None:
    """Dense-to-sparse methods' routes start dense."""
    dense = explain("magnitude", "digits/mlp", 0.95)
    assert {row["density"] for row in dense["layers"]} == {1.0} and dense["routes"]["dense"] == pytest.approx(1)
    assert explain("rigl", "digits/mlp", 0.95, "masked")["routes"]["masked"] == pytest.approx(1)


def test_the_threads_asked_for_are_those_of_the_building_alone(monkeypatch) -> None:
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(kernels.Masked, "route", lambda self, layer: seen.append(torch.get_num_threads()) or "masked")
    explain("static", "digits/mlp", 0.9, "masked", threads=before + 1)
    assert set(seen) == {before + 1} and torch.get_num_threads() == before


def test_names_that_are_wrong_and_methods_that_skip_are_refused() -> None:
    with pytest.raises(RegistryError, match="unknown kernel 'sparce'; did you mean sparse"):
        explain("static", "digits/mlp", 0.9, kernel="sparce")
    with pytest.raises(RegistryError, match="nm skips digits/mlp: "):
        explain("nm", "digits/mlp", 0.97)


def test_the_command_prints_a_table_or_json() -> None:
    result = call("explain", "dense", "--kernel", "masked")
    assert result.exit_code == 0 and "fc1" in result.output and "by route: masked 100.0%" in result.output
    found = json.loads(call("explain", "--sparsity", "0.95", "--kernel", "compact", "--json").output)
    assert found["routes"]["compact"] == pytest.approx(1)
    wrong = call("explain", "rigel")
    assert wrong.exit_code == 2 and "did you mean rigl" in said(wrong)
    assert call("explain", "--sparsity", "1.5").exit_code == 2
