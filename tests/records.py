"""Records of runs as the reports read them, made up for tests."""

from __future__ import annotations

from typing import Any

from dstbench.suite import record as records
from dstbench.suite.plan import Run, key_of


def make(
    method: str = "rigl",
    sparsity: float | None = 0.9,
    seed: int = 0,
    test: float = 0.9,
    status: str = "ok",
    task: str = "digits/mlp",
    **blocks: Any,
) -> dict[str, Any]:
    """A complete record; a failed one has null blocks. Keyword arguments update blocks field by field."""
    who = {"task": task, "task_version": 1, "method": method, "method_version": 1, "hyperparameters": {}, "seed": seed}
    who |= {"sparsity": sparsity, "budget": 1.0, "precision": "fp32", "kernel": "masked", "device": "cpu", "threads": 1}
    who |= {"data": "d" * 12} | blocks.pop("id", {})
    key = key_of(who)
    share = 1.0 if sparsity is None else 1 - sparsity
    record: dict[str, Any] = {
        "score": {"metric": "accuracy", "higher_is_better": True, "chance": 0.1, "target": None, "valid": test},
        "sparsity": {"target": sparsity, "achieved": sparsity or 0.0, "layers": {}, "maskable_share": 0.4,
                     "left_dense": {"rnn.weight": "recurrent"}, "never_reached": ["head"], "warning": "40.0% of all"},
        "flops": {"total": 1e9 * share, "papers": 8e8 * share, "inference": 100 * share, "dense_total": 1e9,
                  "dense_inference": 100, "ratio": share, "papers_ratio": 0.8 * share, "setup": 0, "charged": 0,
                  "dense_gradient_steps": 3, "source": "masks", "uncounted": {"fft": 2}, "warning": "FLOPs lack fft"},
        "time": {"wall": 5.0, "train": 4.0, "overhead": 0.1, "step_median": 0.01, "steps": 2, "simulated": True},
        "energy": [],
        "memory": {"training_state": 1000 * share, "model_dense": 400, "model_sparse": 400 * share,
                   "peak_over_start": 10.0, "peak_resident": 20.0, "cuda_allocated": None, "cuda_reserved": None},
        "curve": {"step": [0, 1], "loss": [2.0, 1.0], "density": [1.0, share], "valid": [None, test]},
    }  # fmt: skip
    record["score"]["test"], record["sparsity"]["on_target"] = test, status != "off_target"
    if status not in ("ok", "off_target", "collapsed"):
        record = dict.fromkeys(record)
    record["machine"] = {"name": "a" * 12, "cpu": "test", "cores": 2, "memory": 2**33, "gpu": None}
    record["machine"] |= {"os": "Linux", "python": "3.11"}
    record["code"] = {"versions": {"torch": "2.15.0"}, "method_source": "s", "commit": None}
    record["code"]["distribution"] = "dstbench 0.1.0"
    record["stamps"] = {"started": "2025-01-01", "finished": "2025-01-01", "resumed": 0, "shared": False}
    record |= {"schema": 1, "id": {"key": key} | who, "params": {"recipe": {"steps": 3}, "own_tuning": False}}
    record["status"] = {"name": status, "reason": "because" if status != "ok" else "", "traceback": ""}
    for name, fields in blocks.items():
        record[name] = fields if not isinstance(fields, dict) or record[name] is None else record[name] | fields
    return record


def ended(run: Run, status: str = "ok", reason: str = "", test: float = 0.9, **blocks: Any) -> dict[str, Any]:
    """A record of this run that has what its status asks for, and no other block than those given."""
    found = records.empty(run, status, reason)
    if status == "ok":
        found["score"] = {"metric": "accuracy", "higher_is_better": True, "chance": 0.1, "test": test}
        found["sparsity"] = {"achieved": run.sparsity or 0.0, "layers": {}}
    return found | blocks
