"""Progress: bars on a terminal, elsewhere one plain line for each run that ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from dstbench.suite import logs, record
from dstbench.suite.estimate import clock
from dstbench.suite.executors import Executor, Outcome
from dstbench.suite.plan import Run
from dstbench.suite.words import printable


def follow(executor: Executor, runs: list[Run], results: Path, bars: bool | None = None) -> dict[str, int]:
    """Run all runs and show how it goes; returns how many ended with each status. Bars by default on a terminal."""
    counts: dict[str, int] = {}
    bars = (sys.stdout is not None and sys.stdout.isatty()) if bars is None else bars
    view: Any = Bars(len(runs)) if bars else Lines(len(runs))
    with view, closing(executor.run(runs, results)) as outcomes:  # type: ignore[type-var]
        for outcome in outcomes:
            if outcome.status != "running":
                counts[outcome.status] = counts.get(outcome.status, 0) + 1
            view.show(outcome, score(results, outcome))
    return counts


def score(results: Path, outcome: Outcome) -> str:
    """The test score of a run that ended, or the reason why it has none."""
    files = [] if outcome.status == "running" else record.paths(results, outcome.run.key)
    try:
        found = record.read(files[-1])
    except (IndexError, ValueError):
        return ""
    if found["score"] and found["score"]["test"] is not None:
        return f"{found['score']['test']:.4g}"
    reason = " ".join(found["status"]["reason"].split())[:200]
    log = logs.path(results, outcome.run.key)
    return f"{reason}; log: {log}" if outcome.status == "error" and log.exists() else reason


def line(done: int, total: int, outcome: Outcome, score: str, left: float) -> str:
    """One run that ended, on one line; `left` are the expected seconds for the rest."""
    run = outcome.run
    sparsity = "dense" if run.sparsity is None else f"{run.sparsity:g}"
    what = f"{run.key} {run.method:<12} {run.task:<16} {sparsity:<5} seed {run.seed}"
    head = f"[{done:>{len(str(total))}}/{total}]"
    return printable(f"{head} {what}  {outcome.status:<10} {score:<8} {outcome.seconds:5.1f} s  left {clock(left)}")


class Lines:
    """Plain lines, for logs."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.began = total, 0, time.monotonic()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def show(self, outcome: Outcome, score: str) -> None:
        if outcome.status != "running":
            self.done += 1
            left = (time.monotonic() - self.began) / self.done * (self.total - self.done)
            with suppress(OSError, ValueError):  # a closed pipe or a full disk at the other end stops no run
                print(line(self.done, self.total, outcome, score, left), flush=True)


class Bars:
    """A bar for all runs and a line for each that runs."""

    def __init__(self, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Remaining

        columns: Iterable[Any] = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, TextColumn("left"), Remaining())
        self.all = self.progress.add_task("runs", total=total)
        self.running: dict[str, Any] = {}

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.progress.stop()

    def show(self, outcome: Outcome, score: str) -> None:
        key, run = outcome.run.key, outcome.run
        if outcome.status == "running" and key in self.running:  # done again
            return
        if outcome.status == "running":
            self.running[key] = self.progress.add_task(f"  {run.method} {run.task} seed {run.seed}", total=None)
            return
        if key in self.running:
            self.progress.remove_task(self.running.pop(key))
        if outcome.status != "ok":
            self.progress.console.print(printable(f"{outcome.status}: {run}: {score}"), markup=False, highlight=False)
        self.progress.advance(self.all)
