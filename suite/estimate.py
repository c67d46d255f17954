"""Estimate: what a plan will cost, before it runs; closed forms and earlier records, never a measurement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from dstbench.suite import registry
from dstbench.suite.plan import Run, own_data


def training_flops(run: Run) -> tuple[float, float]:
    """FLOPs (low, high) of the training passes of a run, one multiply-add = 2, by the papers' convention.

    With f_D the forward pass of a sample and f_S the same with the target share of the maskable weights read: a dense
    step is 3 f_D, a sparse one 3 f_S (sparse weight gradient) to 2 f_S + f_D (dense weight gradient), less the f of
    weights that take no gradient. Methods that start dense cost more, up to 3 f_D.

    Reference: Evci et al. 2020, RigL, arXiv 1911.11134, appendix H.
    """
    from dstbench.suite.model import SparseModel

    task = own_data(registry.task(run.task, run.plugins, run.recipe, run.definition), run.data_root, False)
    model = SparseModel(task.build(0), task.example(), task.dense)
    passes = model.dense_passes
    maskable = sum(passes.forward.get(layer.key, 0) for layer in model.layers)
    dense = passes.ahead
    sparse = dense - maskable * (run.sparsity or 0.0)
    recipe = task.recipe.scaled(run.budget * float(run.hyperparameters.get("budget", 1.0)))
    samples = recipe.steps * recipe.batch
    frozen = sum(passes.forward.values()) - sum(passes.weights.values())
    if run.sparsity is None:
        return (3 * dense - frozen) * samples, (3 * dense - frozen) * samples
    return (3 * sparse - frozen) * samples, (2 * sparse + dense - frozen) * samples


def total_flops(runs: Sequence[Run]) -> tuple[float, float]:
    """The sum of `training_flops`."""
    cache: dict[tuple[Any, ...], tuple[float, float]] = {}
    for run in runs:
        kind = _kind(run)
        if kind not in cache:
            cache[kind] = training_flops(run)
    totals = [cache[_kind(run)] for run in runs]
    return sum(low for low, _ in totals), sum(high for _, high in totals)


def expected_seconds(runs: Sequence[Run], records: Iterable[Mapping[str, Any]], jobs: int) -> float | None:
    """Seconds for all runs, from the wall time per unit of budget in records of the same tasks; None if any lacks."""
    seen: dict[tuple[str, str], list[float]] = {}
    for record in records:
        wall = (record.get("time") or {}).get("wall")
        if wall:
            identity = record["id"]
            seen.setdefault((identity["task"], identity["device"]), []).append(wall / identity["budget"])
    total = 0.0
    for run in runs:
        found = seen.get((run.task, run.device.split(":")[0]))
        if not found:
            return None
        total += mean(found) * run.budget
    return total / jobs


def describe(runs: Sequence[Run], left: Sequence[Run], records: Iterable[Mapping[str, Any]], jobs: int) -> str:
    """All runs of a plan, one a line, and what those left are expected to cost."""
    keys = {run.key for run in left}
    lines = [f"{run}{'' if run.key in keys else '  (done)'}" for run in runs]
    lines.append(f"{len(runs)} runs, {len(left)} left, {jobs} at a time")
    low, high = total_flops(left)
    lines.append(f"training, estimated by a closed form (one multiply-add = 2 FLOPs): {low:.3g} to {high:.3g} FLOPs")
    seconds = expected_seconds(left, records, jobs)
    lines.append(f"expected time: {'unknown' if seconds is None else clock(seconds)}")
    return "\n".join(lines)


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _kind(run: Run) -> tuple[Any, ...]:
    return (run.task, run.sparsity, run.budget, str(run.recipe), run.hyperparameters.get("budget", 1.0))
