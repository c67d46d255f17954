"""One run: every block of the record, statuses, and the same result after SIGKILL at any moment."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dstbench.suite import record
from dstbench.suite.plan import Run
from dstbench.suite.run import _Execution, build, execute
from dstbench.suite.train import Training

PLUGIN = """
from dataclasses import dataclass
import torch
from dstbench.suite.method import Method
from dstbench.suite.registry import register

@register
class Raises(Method):
    where: str = "step"
    def setup(self, gradients):
        if self.where == "setup": raise KeyError("no such thing")
    def begin(self, t):
        if t == 5 and self.where == "memory": raise torch.OutOfMemoryError("not enough")
    def step(self, t):
        if t == 5 and self.where == "step": raise ZeroDivisionError("by my own fault")
        if t == 47 and self.where == "last": self.layers[0].assign(self.layers[0].weight * float("nan"))
        if t == 5 and self.where == "nan": self.layers[0].assign(self.layers[0].weight * float("nan"))
        super().step(t)

@register
class Endless(Method):
    bound: float = float("inf")
    def finish(self): self.charge(10**9)

@register
class Empties(Method):
    def setup(self, gradients):
        for layer in self.layers: layer.activate(torch.zeros(layer.shape, dtype=torch.bool))

@register
class Picky(Method):
    def skip(self, task): return f"{task.name} has no convolutions"

@register
class Missing(Method):
    def setup(self, gradients):
        for layer in self.layers: layer.activate(torch.rand(layer.shape, generator=self.rng) < 0.5)
"""


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    path = tmp_path / "plugin.py"
    path.write_text(textwrap.dedent(PLUGIN))
    return str(path)


def do(results: Path, method: str, sparsity: float | None = 0.9, **options) -> dict:
    run = Run(method, "digits/mlp", sparsity, budget=0.1, **options)
    status = execute(run.to_json(), str(results))
    (found,), set_aside = record.load(results)
    assert not set_aside and found["status"]["name"] == status and found["id"]["key"] == run.key
    return found


def test_the_record_holds_every_block_and_they_agree(tmp_path: Path) -> None:
    found = do(tmp_path, "rigl")
    assert all(found[block] is not None for block in record.BLOCKS)
    assert found["status"] == {"name": "ok", "reason": "", "traceback": ""}
    sparsity, flops, time_ = found["sparsity"], found["flops"], found["time"]
    active = sum(round(y["density"] * y["numel"]) for y in sparsity["layers"].values())
    assert active == sparsity["active_weights"] == sparsity["target_weights"] == round(0.1 * sparsity["maskable"])
    assert sparsity["on_target"] and sparsity["parameters"] == 64 * 100 + 100 * 100 + 100 * 10 + 210
    assert flops["total"] == flops["forward"] + flops["inputs"] + flops["weights"]
    assert flops["dense_total"] == 48 * 50 * (2 * (3 * (6400 + 10000 + 1000) - 6400))
    assert flops["check"]["torch"] == flops["check"]["forward"] == 2 * (6400 + 10000 + 1000)
    assert flops["check"]["torch_difference"] == 0 and abs(flops["check"]["difference"]) < 0.03
    assert time_["steps"] == 48 and 0 < time_["overhead"] + time_["data"] < time_["train"] < time_["wall"]
    assert {e["source"] for e in found["energy"]} >= {"estimated:cpu-time", "modelled:ops"}
    assert found["memory"]["training_state"] > found["memory"]["model_dense"] > found["memory"]["model_sparse"]
    curve = {name: column for name, column in found["curve"].items() if name != "active_units"}
    assert len({len(column) for column in curve.values()}) == 1 and curve["step"][-1] == 48
    assert curve["valid"][-1] == found["score"]["valid"]
    assert not (tmp_path / "work").exists() or not list((tmp_path / "work").iterdir()), "the checkpoint is gone"


@pytest.mark.parametrize(
    ("where", "status", "reason"),
    [
        ("setup", "error", "KeyError: 'no such thing'"),
        ("step", "error", "ZeroDivisionError: by my own fault"),
        ("memory", "oom", "OutOfMemoryError: not enough"),
        ("nan", "diverged", "the loss is nan at step 6 of 48"),
        ("last", "diverged", "fc1.weight of the network is not finite after the last step"),
    ],
)
def test_a_failed_run_says_why_and_keeps_what_it_measured(tmp_path, plugin, where, status, reason) -> None:
    found = do(tmp_path, "raises", plugins=(plugin,), hyperparameters={"where": where})
    assert found["status"]["name"] == status and reason in found["status"]["reason"]
    assert found["flops"] is not None and found["score"] is None
    assert (found["status"]["traceback"].count("\n") < 12 and "Error" in found["status"]["traceback"]) or where in (
        "nan",
        "last",
    )


@pytest.mark.parametrize(
    ("method", "status", "reason"),
    [
        ("empties", "collapsed", "no weight left in"),
        ("picky", "skipped", "digits/mlp has no convolutions"),
        ("missing", "off_target", "the target is 1740"),
    ],
)
def test_statuses_that_are_no_failure_of_the_code(tmp_path, plugin, method, status, reason) -> None:
    found = do(tmp_path, method, plugins=(plugin,))
    assert found["status"]["name"] == status and reason in found["status"]["reason"]
    assert (found["score"] is None) == (status == "skipped")


def test_a_parameter_without_bound_and_a_charge_in_finish_are_recorded(tmp_path: Path, plugin: str) -> None:
    found = do(tmp_path, "endless", 0.0, plugins=(plugin,))
    assert found["status"]["name"] == "ok" and found["params"]["method"]["bound"] == "Infinity"
    assert found["flops"]["charged"] == 10**9


def test_a_checkpoint_of_other_code_is_not_continued(tmp_path: Path, plugin: str) -> None:
    run = Run("set", "digits/mlp", 0.9, budget=0.1)
    execute(run.to_json(), str(tmp_path / "whole"))
    half_done(run, tmp_path / "other", source="of another version")
    assert execute(run.to_json(), str(tmp_path / "other")) == "ok"
    (whole,), (again,) = record.load(tmp_path / "whole")[0], record.load(tmp_path / "other")[0]
    assert again["stamps"]["resumed"] == 0 and same(whole, again)


def half_done(run: Run, results: Path, source: str = "") -> None:
    """A checkpoint as a run leaves it that is killed after 20 steps."""
    execution = _Execution(run, results, False, "")
    code = execution._code()
    execution.record["code"] = {**code, "method_source": source or code["method_source"]}
    training = Training(*build(run), budget=run.budget)
    training.setup()
    training.run(until=20)
    execution._save(training)


def test_a_retry_does_not_go_on_from_what_has_ended(tmp_path: Path) -> None:
    """Killed between the record and the removal of the checkpoint: the next attempt starts afresh."""
    run = Run("set", "digits/mlp", 0.9, budget=0.1)
    half_done(run, tmp_path)
    assert execute(run.to_json(), str(tmp_path)) == "ok"
    assert [r["stamps"]["resumed"] for r in record.load(tmp_path)[0]] == [1], "without a record it goes on"
    checkpoint = tmp_path / "work" / run.key / "checkpoint.pt"
    half_done(run, tmp_path / "other")
    checkpoint.parent.mkdir(parents=True)
    (tmp_path / "other" / "work" / run.key / "checkpoint.pt").rename(checkpoint)
    assert execute(run.to_json(), str(tmp_path)) == "ok" and record.attempts(tmp_path, run.key) == [1, 2]
    (again,), _ = record.load(tmp_path)
    assert again["stamps"]["resumed"] == 0 and not checkpoint.exists()
    half_done(run, tmp_path)  # of the third attempt: that one has no record yet
    execute(run.to_json(), str(tmp_path))
    (third,), _ = record.load(tmp_path)
    assert third["stamps"]["resumed"] == 1 and same(third, again)


def test_a_retry_goes_on_from_what_was_stopped(tmp_path: Path) -> None:
    """The record of a timeout is not the run's own word: nothing was ended."""
    run = Run("set", "digits/mlp", 0.9, budget=0.1)
    half_done(run, tmp_path)
    record.write(record.empty(run, "timeout", "stopped after 1 s"), tmp_path)
    (record.folder_of(tmp_path) / f"{run.key}-2.json").write_text("torn")
    assert execute(run.to_json(), str(tmp_path)) == "ok"
    (found,), _ = record.load(tmp_path)
    assert found["stamps"]["resumed"] == 1


def test_models_are_saved_with_their_masks(tmp_path: Path) -> None:
    found = do(tmp_path, "static", save_models=True)
    tensors = load_file(tmp_path / "models" / f"{found['id']['key']}.safetensors")
    masks = {name: t for name, t in tensors.items() if name.endswith("#mask")}
    assert sum(int(m.sum()) for m in masks.values()) == found["sparsity"]["active_weights"]
    for name, mask in masks.items():
        assert mask.dtype == torch.bool and not tensors[name.removesuffix("#mask")][~mask].any()


def test_watts_per_core_scale_the_estimate_and_not_the_identity(tmp_path: Path) -> None:
    found = do(tmp_path / "a", "static", watts_per_core=100.0)
    (reading,) = [e for e in found["energy"] if e["source"] == "estimated:cpu-time"]
    assert "100 W per core" in reading["note"]
    assert found["id"]["key"] == do(tmp_path / "b", "static")["id"]["key"]


def test_recipe_overrides_and_precision_reach_the_run(tmp_path: Path) -> None:
    found = do(tmp_path, "dense", None, recipe={"lr.sgd": 0.01}, precision="bf16")
    recipe = found["params"]["recipe"]
    assert recipe["lr"]["sgd"] == 0.01 and recipe["precision"] == "bf16" and found["params"]["own_tuning"]


TO_KILL = [("rigl", "compact"), ("rigl", "masked"), ("ml_linbreg", "masked"), ("ml_linbreg", "compact")]
CHILD = """
import sys, json
from dstbench.suite import run
run.CHECKPOINT_SECONDS, run.CHECKPOINT_SHARE = 0.05, 1.0
run.execute(json.loads(sys.argv[1]), sys.argv[2])
"""


def same(a: dict, b: dict) -> bool:
    flops = [{k: v for k, v in r["flops"].items()} for r in (a, b)]
    return a["hashes"] == b["hashes"] and a["curve"] == b["curve"] and flops[0] == flops[1]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "kernel"), TO_KILL)
def test_killed_runs_end_bit_identical(tmp_path: Path, method: str, kernel: str) -> None:
    """SIGKILL after some checkpoints, several times, then to the end: the record equals an undisturbed run's."""
    task, budget = ("digits/mlp", 0.3) if kernel == "compact" else ("digits/resnet", 0.25)
    run = Run(method, task, 0.9, budget=budget, kernel=kernel)
    execute(run.to_json(), str(tmp_path / "whole"))
    killed, moments = 0, random.Random(0)
    while True:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, json.dumps(run.to_json()), str(tmp_path / "killed")],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[1],
        )
        checkpoint = tmp_path / "killed" / "work" / run.key / "checkpoint.pt"
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while killed < 2 and child.poll() is None:
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns != before:
                time.sleep(moments.random() * 0.2)
                child.send_signal(signal.SIGKILL)
                killed += 1
                break
            time.sleep(0.005)
        if child.wait() == 0:
            break
    (whole,), _ = record.load(tmp_path / "whole")
    (again,), _ = record.load(tmp_path / "killed")
    assert again["stamps"]["resumed"] == killed >= 1
    assert same(whole, again)
