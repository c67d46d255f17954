"""What the timing commands share: options, samples taken in turns, medians free of foreign load, rows and their JSON.

A sample is a batch of calls of at least 60 ms; it is dropped when other processes used more than 12 % of one core (and
one tick of the clock) during it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psutil
import torch

from dstbench.suite import machine
from dstbench.suite.kernels import allocator

SAMPLE = 0.06  # seconds
FOREIGN, TICK = 0.12, 0.01

Call = Callable[[], object]
K = TypeVar("K", bound=Hashable)


# ---- samples -----------------------------------------------------------------------------------------------------


def sample(call: Call, times: int = 1) -> tuple[float, bool]:
    """Seconds of one call, and whether other processes left us alone."""
    busy, own, start = _busy(), time.process_time(), time.perf_counter()
    for _ in range(times):
        call()
    wall = time.perf_counter() - start
    foreign = _busy() - busy - (time.process_time() - own)
    return wall / times, foreign <= FOREIGN * wall + TICK


def _busy() -> float:
    spent = psutil.cpu_times()
    return sum(spent) - spent.idle - getattr(spent, "iowait", 0.0) - getattr(spent, "guest", 0.0)


def median(samples: Sequence[tuple[float, bool]]) -> float:
    """Of the clean samples; with fewer than 2 of those, of the fastest third of all."""
    clean = [seconds for seconds, alone in samples if alone]
    fastest = sorted(seconds for seconds, _ in samples)[: max(1, len(samples) // 3)]
    return statistics.median(clean if len(clean) >= 2 else fastest)


def medians(calls: Mapping[K, Call], rounds: int) -> dict[K, tuple[float, int]]:
    """Median seconds and the number of clean samples of each; all take turns, after two calls each to warm up."""
    times = {}
    for key, call in calls.items():
        call()
        times[key] = max(1, round(SAMPLE / sample(call)[0] + 0.5))
    found: dict[K, list[tuple[float, bool]]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            found[key].append(sample(call, times[key]))
    return {key: (median(samples), sum(alone for _, alone in samples)) for key, samples in found.items()}


# ---- options -----------------------------------------------------------------------------------------------------


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parser(
    doc: str | None, names: Sequence[str] = (), sparsity: Sequence[float] = (), batch: int = 0, rounds: int = 0
) -> argparse.ArgumentParser:
    """The common options with a command's defaults, without those it has no use for; `--only` chooses from `names`."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.set_defaults(only="", names=names)
    if names:
        listed = ", ".join(names)
        made.add_argument("--only", default="", metavar="PARTS", help=f"what has one of these in its name: {listed}")
    if sparsity:
        made.add_argument("--sparsity", type=share, nargs="+", default=list(sparsity), help="shares of zero weights")
    if batch:
        made.add_argument("--batch", type=count, default=batch)
    if rounds:
        made.add_argument("--rounds", type=count, default=rounds, help="samples of each candidate")
    made.add_argument("--threads", type=count, default=min(2, cores()))
    made.add_argument(
        "--allocator",
        choices=("tuned", "system"),
        default="tuned",
        help="tuned: freed memory is kept, for dense and sparse alike (suite/kernels/allocator.py)",
    )
    made.add_argument("--json", action="store_true", help="print one JSON object, and progress on standard error")
    return made


def begin(made: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse; set threads, seed and allocator; `options.chosen` are the names that `--only` chose."""
    options = made.parse_args(arguments)
    parts = [part.strip() for part in options.only.split(",") if part.strip()]
    for part in parts:
        if not any(part in name for name in options.names):
            made.error(f"--only: no name has {part!r} in it; choose from {', '.join(options.names)}")
    options.chosen = [name for name in options.names if not parts or any(part in name for part in parts)]
    if options.threads > cores():
        made.error(f"--threads {options.threads}: there are {cores()} cores here; give at most that many")
    if options.allocator == "tuned" and not allocator.tune():
        options.allocator = "system (this C library has no setting)"
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    return options


def count(text: str) -> int:
    """An option's whole number from 1 on."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from 1 on")
    return int(text)


def share(text: str) -> float:
    """An option's share of zero weights."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a share of zero weights between 0 and 1, such as 0.9")
    return value


# ---- rows --------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """Rows as they come: a table on standard output or, with `--json`, on standard error, and one object at the end."""

    options: argparse.Namespace
    rows: list[dict[str, Any]] = field(default_factory=list)

    def say(self, text: str) -> None:
        """A line of the table."""
        print(text, file=sys.stderr if self.options.json else sys.stdout, flush=True)

    def add(self, row: dict[str, Any], remark: str = "") -> None:
        """One row: "model" or "layer", "kernel", "sparsity" (a share, or None), "seconds", "speedup", and more."""
        self.rows.append(row)
        name = next(row[key] for key in ("method", "model", "layer") if key in row)
        level = "" if row["sparsity"] is None else f"{row['sparsity']:.4g}"
        times = f"{row['seconds'] * 1e3:11.3f} ms {row['speedup']:6.2f} x"
        self.say(f"{name:22s} {row['kernel']:16s} {level:>5s} {times}  {remark}")

    def close(self, **more: Any) -> None:
        """Print what it all was measured on and, with `--json`, the object."""
        facts, versions = machine.facts(), machine.versions()
        names = ("threads", "batch", "rounds", "allocator")
        settings = {name: value for name in names if (value := getattr(self.options, name, None)) is not None}
        listed = ", ".join(f"{name} {value}" for name, value in settings.items())
        self.say(f"{facts['cpu']}, {facts['cores']} cores, torch {versions['torch']}; {listed}")
        if self.options.json:
            print(json.dumps({"machine": facts, "versions": versions, **settings, **more, "rows": self.rows}))
