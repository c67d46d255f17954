"""Learning rates of the tasks' recipes: the same number of trials of SGD and Adam, dense, judged by the valid split.

`python -m benchmarks.tuning --tasks digits/mlp,digits/resnet,digits/vit` prints the table of docs/tuning.md.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import date
from multiprocessing import get_context
from pathlib import Path

GRID = {"sgd": (0.01, 0.03, 0.1, 0.3, 1.0), "adam": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)}
TASKS = "digits/mlp,digits/resnet,digits/vit"


@dataclass(frozen=True)
class Trial:
    """One dense run: the task with this kind of optimiser and learning rate."""

    task: str
    kind: str
    lr: float
    seed: int
    budget: float = 1.0
    root: Path | None = None

    def run(self) -> float:
        """The metric on the valid split after the last step; nan where training diverged."""
        import torch

        from dstbench.suite import registry
        from dstbench.suite.method import Method
        from dstbench.suite.train import Diverged, Training

        torch.set_num_threads(1)
        task = replace(registry.task(self.task), root=self.root)
        rates = {**task.recipe.lr, self.kind: self.lr}
        task = replace(task, recipe=replace(task.recipe, optimizer=self.kind, lr=rates))
        training = Training(task, Method(sparsity=0.0), self.seed, budget=self.budget)  # the base class trains dense
        try:
            training.run()
        except Diverged:
            return math.nan
        return training.evaluate("valid")


@dataclass(frozen=True)
class Row:
    """All trials of one task, kind and learning rate; `best` marks the recipe's choice.

    `share` and `higher` say of the task's metric whether it is shown in per cent, and whether more of it is better.
    """

    task: str
    kind: str
    lr: float
    valid: tuple[float, ...]
    best: bool = False
    share: bool = True
    higher: bool = True

    @property
    def mean(self) -> float:
        """Mean over seeds; a diverged trial counts 0, or as without bound where lower is better."""
        worst = 0.0 if self.higher else math.inf
        return statistics.fmean(worst if math.isnan(v) else v for v in self.valid)

    @property
    def rank(self) -> tuple[float, float]:
        """What the best rate has most of: the mean, then the smaller rate."""
        return (1 if self.higher else -1) * round(self.mean, 9), -self.lr

    def shown(self, value: float, digits: int) -> str:
        """A value of the metric: a share in per cent, another as it is with two more digits."""
        if math.isnan(value):
            return "diverged"
        return f"{100 * value:.{digits}f}" if self.share else f"{value:.{digits + 2}f}"


def trials(tasks: Iterable[str], seeds: int, budget: float, root: Path | None) -> list[Trial]:
    """The grid, in the order of the table."""
    return [
        Trial(task, kind, lr, seed, budget, root)
        for task in tasks
        for kind, rates in GRID.items()
        for lr in rates
        for seed in range(seeds)
    ]


def rows(done: Iterable[tuple[Trial, float]]) -> Iterator[Row]:
    """One row a learning rate; of each (task, kind) the best mean is marked, the smaller rate among equals."""
    from dstbench.suite import registry

    found: dict[tuple[str, str], dict[float, list[float]]] = {}
    for trial, score in done:
        found.setdefault((trial.task, trial.kind), {}).setdefault(trial.lr, []).append(score)
    for (task, kind), by_rate in found.items():
        judged = registry.task(task)
        direction = {"share": judged.metric == "accuracy", "higher": judged.higher_is_better}
        candidates = [Row(task, kind, lr, tuple(scores), **direction) for lr, scores in sorted(by_rate.items())]
        best = max(candidates, key=lambda row: row.rank)
        yield from (replace(row, best=row is best) for row in candidates)


def table(found: Iterable[Row]) -> str:
    """Markdown: one line a row, accuracies in per cent."""
    lines = ["| task | optimiser | learning rate | valid, mean | valid, each seed | |", "|---|---|---|---|---|---|"]
    for row in found:
        each = ", ".join(row.shown(v, 1) for v in row.valid)
        mark = "chosen" if row.best else ""
        lines.append(f"| {row.task} | {row.kind} | {row.lr:g} | {row.shown(row.mean, 2)} | {each} | {mark} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the grid and print the table and what it was run on."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuning", description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default=TASKS, help=f"names, separated by commas (default {TASKS})")
    parser.add_argument("--seeds", type=int, default=3, help="trials of each learning rate (default 3)")
    parser.add_argument("--budget", type=float, default=1.0, help="factor on the tasks' steps (default 1)")
    parser.add_argument("--data-root", type=Path, help="folder of the data sets")
    parser.add_argument("--jobs", type=int, default=1, help="trials side by side, one thread each (default 1)")
    parser.add_argument("--json", action="store_true", help="print rows as JSON instead of a table")
    options = parser.parse_args(arguments)
    listed = trials(options.tasks.split(","), options.seeds, options.budget, options.data_root)
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        scores = pool.map(Trial.run, listed)
        found = list(rows(zip(listed, scores, strict=True)))
    if options.json:
        print(json.dumps([asdict(row) | {"mean": row.mean} for row in found], indent=1))
        return 0
    from dstbench.suite import machine

    here, versions = machine.facts(), machine.versions()
    print(table(found))
    system = f"{platform.system()} {platform.machine()}, Python {here['python']}"
    print(f"\n{date.today()}, {here['cpu']}, {here['cores']} cores, {system},")
    print(", ".join(f"{name} {versions[name]}" for name in ("torch", "timm", "scikit-learn", "numpy")) + ".")
    return 0


if __name__ == "__main__":
    sys.exit(main())
