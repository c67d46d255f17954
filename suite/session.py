"""Session: one call of `run`: what is asked, what is left of it, and what has failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dstbench.suite import doctor, logs, planfile, record, sources
from dstbench.suite import plan as plans
from dstbench.suite.plan import Run

SHOWN = 20  # failed runs that are named one by one


@dataclass(frozen=True)
class Session:
    """The runs of a plan and those that are left of them, `jobs` at a time; `records` are those found, and the rest."""

    runs: list[Run]
    left: list[Run]
    records: list[dict[str, Any]]
    set_aside: list[tuple[Path, str]]
    results: Path
    jobs: int
    threads: int


def prepare(
    plan: str,
    options: Mapping[str, Any],
    files: Sequence[str],
    results: Path,
    retry: Collection[str] = (),
    jobs: int | None = None,
    **how: Any,
) -> Session:
    """Read the plan and find what is left of it; `retry`: statuses that run again, and "stale"; `how`: of `expand`."""
    found = planfile.read(plan, options, files)
    runs = plans.expand(found, files, **how)
    records, set_aside = record.load(results)
    finished = record.finished(records)
    again = {key for key, status in finished.items() if status in retry}
    if "stale" in retry:
        again |= record.stale(records, sources.hashes(records, files))
    left = [run for run in runs if run.key not in finished or run.key in again]
    jobs = jobs or (1 if runs[0].device.startswith("cuda") else max(1, doctor.cores() // found.threads))
    return Session(runs, left, records, set_aside, results, jobs, found.threads)


def train(session: Session) -> tuple[str, list[str]]:
    """Run what is left, showing how it goes.

    Returns:
        The counts of each status as a line, "" where nothing was left: of the records that lie on the disk now. And a
        line for each run whose record does not.
    """
    from dstbench.suite import progress
    from dstbench.suite.executors import Local
    from dstbench.suite.lock import Busy, lock
    from dstbench.suite.tidy import tidy

    if not session.left:
        with suppress(Busy), lock(session.results):
            tidy(session.results, session.records)
        return "", []
    with lock(session.results):
        tidy(session.results, session.records, {run.key for run in session.left})
        before = {path for run in session.left for path in record.paths(session.results, run.key)}
        modules = sources.modules(name for run in session.left for name in (run.method, run.task))
        local = Local(session.jobs, session.threads, ("sklearn.datasets", *modules))
        progress.follow(local, session.left, session.results)
    made: dict[str, str] = {}
    for run in session.left:
        for path in record.paths(session.results, run.key):
            with suppress(ValueError):
                made |= {run.key: record.read(path)["status"]["name"]} if path not in before else {}
    counts = Counter(made.get(run.key, "lost") for run in session.left)
    lost = [run for run in session.left if run.key not in made]
    lines = [
        f"error: {described(run)}: it ended, but no record of it lies in {session.results}" for run in lost[:SHOWN]
    ]
    if len(lost) > SHOWN:
        lines.append(f"error: and {len(lost) - SHOWN} more")
    return ", ".join(f"{count} {status}" for status, count in sorted(counts.items())), lines


def failed(session: Session) -> list[str]:
    """A line for each run of the plan whose newest record is an error, and how to repeat them."""
    statuses = {r["id"]["key"]: r["status"] for r in record.load(session.results)[0]}
    bad = [run for run in session.runs if statuses.get(run.key, {}).get("name") == "error"]
    lines = [f"error: {described(run)}: {why(statuses[run.key], session.results, run.key)}" for run in bad[:SHOWN]]
    if len(bad) > SHOWN:
        lines.append(f"error: and {len(bad) - SHOWN} more")
    return [*lines, f"{len(bad)} of {len(session.runs)} runs ended in error; --retry error repeats them"] if bad else []


def described(run: Run) -> str:
    """Method, task, sparsity and seed."""
    return f"{run.method} {run.task} {'dense' if run.sparsity is None else f'{run.sparsity:g}'} seed {run.seed}"


def why(status: Mapping[str, Any], results: Path, key: str) -> str:
    """The first line of a status's reason, and the log where there is one."""
    first = next(iter(str(status["reason"]).strip().splitlines()), "no reason given")
    log = logs.path(results, key)
    return f"{first[:200]}; log: {log}" if log.exists() else first[:200]
