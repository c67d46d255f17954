"""Estimate: what a plan will cost, before it runs; closed forms and earlier records, never a measurement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

from dstbench.suite import registry
from dstbench.suite.plan import Run, own_data

# FLOPs a second of a run, least and most, where no record says it: small networks on slow cores to large on fast ones.
ASSUMED = {"cpu": (3e9, 6e10), "cuda": (5e11, 3e13), "mps": (1e11, 3e12)}


def training_flops(run: Run) -> tuple[float, float]:
    """FLOPs (low, high) of the training passes of a run, one multiply-add = 2, by the papers' convention.

    With f_D the forward pass of a sample and f_S the same with the target share of the maskable weights read: a dense
    step is 3 f_D, a sparse one 3 f_S (sparse weight gradient) to 2 f_S + f_D (dense weight gradient), less the f of
    weights that take no gradient. Methods that start dense cost more, up to 3 f_D.

    Reference: Evci et al. 2020, RigL, arXiv 1911.11134, appendix H.
    """
    from dstbench.suite import sizes
    from dstbench.suite.model import SparseModel

    task = own_data(registry.task(run.task, run.plugins, run.recipe, run.definition), run.data_root, False)
    model = SparseModel(task.build(0), task.example() if run.data else sizes.pair(task), task.dense)
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
        if _kind(run) not in cache:
            cache[_kind(run)] = training_flops(run)
    found = [cache[_kind(run)] for run in runs]
    return sum(low for low, _ in found), sum(high for _, high in found)


def expected_seconds(runs: Sequence[Run], records: Iterable[Mapping[str, Any]], jobs: int) -> float | None:
    """Seconds for all runs, from the wall time per unit of budget in records of the same tasks; None if any lacks."""
    seen: dict[tuple[str, ...], list[float]] = {}
    for record in records:
        wall = (record.get("time") or {}).get("wall")
        if wall:
            identity = record["id"]
            seen.setdefault(_task_of(identity), []).append(wall / identity["budget"])
    total = 0.0
    for run in runs:
        found = seen.get(_task_of(run.identity()))
        if not found:
            return None
        total += mean(found) * run.budget * float(run.hyperparameters.get("budget", 1.0))
    return total / jobs


def expected_span(
    runs: Sequence[Run], records: Iterable[Mapping[str, Any]], jobs: int
) -> tuple[float, float, str] | None:
    """Least and most seconds for all runs, and how they are known; None for a device of which nothing is known.

    What takes time is taken to be the dense arithmetic, which the kernel `masked` does whatever the masks are. From
    records of the same task where there are some; else from the FLOPs a second of all records of the device; else
    `ASSUMED`.
    """
    found = list(records)
    speeds: dict[str, list[float]] = {}
    for record in found:
        wall, dense = ((record.get(block) or {}).get(n) for block, n in (("time", "wall"), ("flops", "dense_total")))
        if wall and dense:
            speeds.setdefault(record["id"]["device"], []).append(dense / wall)
    low = high = 0.0
    how = set()
    parts: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        parts.setdefault(_task_of(run.identity()), []).append(run)
    for part in parts.values():
        device = part[0].identity()["device"]
        if (seconds := expected_seconds(part, found, 1)) is not None:
            low, high, source = low + seconds, high + seconds, "earlier runs of the same tasks"
        else:
            dense, known = dense_flops(part), speeds.get(device)
            slow, fast = (min(known), max(known)) if known else ASSUMED.get(device, (0.0, 0.0))
            if not slow:
                return None
            low, high = low + dense / fast, high + dense / slow
            source = f"{slow:.3g} to {fast:.3g} FLOPs a second on {device}, "
            source += "as in earlier runs" if known else "assumed: no run of this device yet"
        how.add(source)
    return low / jobs, high / jobs, "; ".join(sorted(how))


def _task_of(identity: Mapping[str, Any]) -> tuple[str, ...]:
    """What decides how long a step of a task takes, and how many there are."""
    return tuple(str(identity.get(key)) for key in ("task", "task_version", "device", "recipe", "definition"))


def dense_flops(runs: Sequence[Run]) -> float:
    """FLOPs of the same samples trained dense, of all runs."""
    return total_flops([replace(run, sparsity=None) for run in runs])[0]


def describe(runs: Sequence[Run], left: Sequence[Run], records: Iterable[Mapping[str, Any]], jobs: int) -> str:
    """All runs of a plan, one a line, and what those left are expected to cost."""
    keys = {run.key for run in left}
    lines = [f"{run}{'' if run.key in keys else '  (done)'}" for run in runs]
    if absent := dict.fromkeys(run.task for run in runs if not run.data):
        lines.append(f"the data of {', '.join(absent)} is missing: what of these is done is not known")
    lines.append(f"{len(runs)} runs, {len(left)} left, {jobs} at a time")
    low, high = total_flops(left)
    lines.append(f"training, estimated by a closed form (one multiply-add = 2 FLOPs): {low:.3g} to {high:.3g} FLOPs")
    span = expected_span(left, records, jobs)
    lines.append(f"expected time: {'unknown' if span is None else told(*span)}")
    return "\n".join(lines)


def told(low: float, high: float, how: str) -> str:
    """A span of seconds in words: as a clock and in hours."""
    if not how:
        return "none"
    same = clock(low) == clock(high)
    shown = clock(low) if same else f"{clock(low)} to {clock(high)}"
    unit, name = (3600, "hours") if high < 48 * 3600 else (24 * 3600, "days")
    size = f"{low / unit:.2g}" if same else f"{low / unit:.2g} to {high / unit:.2g}"
    return f"{shown} ({size} {name}; {how})"


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _kind(run: Run) -> tuple[Any, ...]:
    return (run.task, run.sparsity, run.budget, str(run.recipe), run.hyperparameters.get("budget", 1.0))
