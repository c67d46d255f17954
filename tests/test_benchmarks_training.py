"""python -m benchmarks.training: its rows on a tiny network, and the arithmetic of its times."""

from __future__ import annotations

import json
from argparse import Namespace
from types import SimpleNamespace

import pytest

from benchmarks import training
from benchmarks.training import Candidate, apart, reached
from dstbench.suite import registry

COMMON = ("--threads", "1", "--allocator", "system", "--task", "digits/mlp", "--batch", "50", "--json")


def run(capsys, *arguments: str) -> dict:
    assert training.main([*arguments, *COMMON]) == 0
    return json.loads(capsys.readouterr().out)


def test_rows(capsys, monkeypatch) -> None:
    monkeypatch.setattr(training, "FIRST", 10)
    found = run(capsys, "--steps", "30")
    rows = {(row["method"] + row["setting"].get("scope", ""), row["kernel"]): row for row in found["rows"]}
    kernels = ["masked", "masked NHWC", "masked float64"]
    kernels += [kernel for kernel in ("csr", "sparse") if kernel in training.KERNELS]
    dense = [("dense", "dense NCHW"), ("dense", "dense NHWC")]
    methods = ("static", "rigl", "ml_linbreg", "ml_linbreglayer")
    assert list(rows) == [*dense, *((m, k) for m in methods for k in kernels)]
    assert found["steps"] == 30 and found["machine"]["cpu"]
    for (method, kernel), row in rows.items():
        whole = kernel in ("dense NCHW", "sparse")
        assert row["model"] == "digits/mlp" and row["failed"] is None
        assert row["extrapolated"] != whole and row["steps"] == len(row["loss"]) == (30 if whole else 10)
        assert row["ratio"] == pytest.approx(row["seconds"] / rows[dense[0]]["seconds"])
        assert row["speedup"] == pytest.approx(1 / row["ratio_best"])
        assert ("accuracy" in row) == whole and len(row["looks"]) == (4 if whole else 0)
        assert row["routes"] == {"sparse" if kernel in ("csr", "sparse") else "masked": 3}
        assert row["sparsity"] == (None if method == "dense" else 0.93 if method.startswith("ml") else 0.95)
    for method in methods[2:]:
        assert rows[method, "sparse"]["density"][0] == pytest.approx(0.01, abs=1e-3)
        assert rows[method, "sparse"]["density"][-1] == pytest.approx(0.07, abs=1e-3)
    assert rows["static", "sparse"]["dense_gradient_steps"] == 0 < rows["rigl", "sparse"]["dense_gradient_steps"]
    for method in methods:
        assert 0 <= rows[method, "sparse"]["loss_difference"] < 1e-3
        assert 0 <= rows[method, "masked NHWC"]["loss_difference"] < 1e-3
        assert 0 < rows[method, "masked float64"]["loss_difference"] < 1e-3
        first = [rows[method, k]["loss"][0] for k in kernels]
        assert first == pytest.approx([first[0]] * len(first), rel=1e-5)


def test_a_whole_training_of_every_candidate(capsys) -> None:
    found = run(
        capsys, "--steps", "4", "--only", "static", "--full", "--sparsity", "0.9", "0.95", "--recipe", "lr.sgd=0"
    )
    rows = found["rows"]
    assert found["recipe"] == ["lr.sgd=0"] and len({row["accuracy"] for row in rows[:2]}) == 1
    assert all(not row["extrapolated"] and len(row["looks"]) == 4 for row in rows)
    assert {row["sparsity"] for row in rows} == {None, 0.9, 0.95}


def test_the_run_measured_is_the_run_of_the_suite() -> None:
    task = registry.task("digits/mlp", recipe={"steps": 12})
    options = Namespace(steps=12, full=False, chosen=["rigl"], sparsity=[0.95])
    listed = list(training.candidates(task, options))
    training.train(listed, 12)
    plain = training.Training(task, registry.method("rigl", sparsity=0.95), kernel="sparse")
    plain.setup()
    plain.run()
    assert listed[-1].run.book == plain.book
    for one, other in zip(listed[-1].run.model.layers, plain.model.layers, strict=True):
        assert one.weight.equal(other.weight)


def test_missing_data_and_unknown_tasks_are_told(capsys, tmp_path) -> None:
    for arguments, text in (
        (["--data-root", str(tmp_path)], "--data-root DIR"),
        (["--task", "digits/mlq"], "did you mean"),
        (["--recipe", "warmup"], "warmup"),
        (["--recipe", "warmupp=0.1"], "did you mean"),
    ):
        with pytest.raises(SystemExit):
            training.main([*arguments, "--threads", "1", "--allocator", "system"])
        assert text in capsys.readouterr().err


# ---- times -------------------------------------------------------------------------------------------------------


def candidate(samples: list[tuple[float, bool]], kinds: list[bool], steps: int) -> Candidate:
    run = SimpleNamespace(recipe=SimpleNamespace(steps=steps))
    return Candidate("rigl", "sparse", {"sparsity": 0.95}, run, steps, samples, kinds)


def test_a_disturbed_step_counts_the_median_of_its_kind() -> None:
    samples = [(1.0, True), (9.0, False), (1.5, True), (2.0, True), (7.0, False), (4.0, True)]
    kinds = [False, False, False, False, True, True]
    one = candidate(samples, kinds, 6)
    assert one.seconds() == [1.0, 1.5, 1.5, 2.0, 4.0, 4.0]
    assert one.total == 14 and not one.extrapolated
    assert candidate([(3.0, False)], [False], 1).seconds() == [3.0]


def test_what_was_not_made_is_extrapolated_from_the_steps_after_the_first() -> None:
    one = candidate([(50.0, True), (1.0, True), (3.0, True)], [False] * 3, 200)
    assert one.extrapolated and one.total == 400
    assert candidate([(2.0, True)], [False], 10).total == 20


def test_seconds_to_an_accuracy_lie_on_the_line_between_two_looks() -> None:
    looks = [(10.0, 0.3), (20.0, 0.25), (30.0, 0.45)]
    assert reached(looks, 0.2, 0.1) == pytest.approx(5.0)
    assert reached(looks, 0.35, 0.1) == pytest.approx(25.0)
    assert reached(looks, 0.5, 0.1) is None
    assert reached(looks, 0.1, 0.1) == 0.0


def test_losses_are_compared_over_the_first_steps_of_both() -> None:
    found = apart([2.0, 1.0, 0.4, 9.0], [2.0, 1.1, 0.5])
    assert found["loss_difference"] == pytest.approx(0.1)
    assert found["loss_difference_relative"] == pytest.approx(0.2)


def test_a_run_that_diverges_leaves_the_others_running() -> None:
    task = registry.task("digits/mlp", recipe={"steps": 4, "lr.sgd": 1e30})
    listed = list(training.candidates(task, Namespace(steps=4, full=False, chosen=["static"], sparsity=[0.9])))
    training.train(listed, 4)
    rows = list(training.rows(listed, task))
    assert all("the loss is" in row["failed"] for row in rows) and all(row["steps"] < 4 for row in rows)
    assert "the loss is" in training.remark(rows[0])
