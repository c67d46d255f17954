"""python -m benchmarks.kernels: its rows, tiny."""

from __future__ import annotations

import json

import pytest

from benchmarks import kernels, timing


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> None:
    monkeypatch.setattr(timing, "SAMPLE", 0.0)
    monkeypatch.setattr(
        kernels.roofs, "measure", lambda threads: {"registers": 8.0, "l1": 4.0, "l2": 2.0, "memory": 1.0}
    )
    monkeypatch.setattr(
        kernels, "LAYERS", {"linear small": (48, 32, 1), "linear tokens": (16, 24, 600), "conv": (8, 4)}
    )


def run(capsys, *arguments: str) -> dict:
    common = ("--threads", "1", "--batch", "2", "--rounds", "1", "--allocator", "system", "--sparsity", "0.9", "--json")
    assert kernels.main([*arguments, *common]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sparse")
def test_rows(capsys) -> None:
    found = run(capsys)
    got = {layer: [r["kernel"] for r in found["rows"] if r["layer"] == layer] for layer in kernels.LAYERS}
    dense, chains = ["dense rows", "dense columns", "dense bf16"], ("drop-in", "chained")
    assert got == {
        "linear small": [*dense, "sparse drop-in", "sparse chained", "csr", *(f"sparse 8x1 {k}" for k in chains)],
        "linear tokens": [*dense, "sparse drop-in", "csr", "sparse 8x1 drop-in"],
        "conv": ["dense NCHW", "dense NHWC", "dense bf16", "sparse NCHW", "sparse blocked"],
    }
    for row in found["rows"]:
        assert row["seconds"] > 0 and row["speedup"] > 0
        assert row["sparsity"] == (None if row["kernel"].startswith("dense") else 0.9)
        assert (row["of_l1"] is None) == (row["sparsity"] is None)
    best = {r["layer"]: r["seconds"] for r in found["rows"] if r["speedup"] == 1 and r["kernel"] in kernels.FP32}
    assert all(r["speedup"] == pytest.approx(best[r["layer"]] / r["seconds"]) for r in found["rows"])


@pytest.mark.slow
def test_useful_arithmetic_is_three_products_with_the_weights_read(capsys) -> None:
    for row in run(capsys, "--only", "conv")["rows"]:
        flops = 3 * 2 * (8 * 8 * 9) * (4 * 4 * 2) * (0.1 if row["sparsity"] else 1)
        assert row["gflops"] == pytest.approx(flops / row["seconds"] / 1e9)
        if row["sparsity"]:
            assert (row["of_l1"], row["of_l2"]) == pytest.approx((row["gflops"] / 4, row["gflops"] / 2))
    assert kernels.products("linear tokens", 2) == 3 * 2 * 16 * 24 * 1200
