"""What single settings of a method are worth: every combination of values, on the digits tasks, by the valid split.

`python -m benchmarks.ablation ml_linbreg m=0,3,7,15` prints one row a setting, one column a task and sparsity: the mean
accuracy of the seeds after the last step, in per cent, and the training FLOPs (papers' convention) beside dense.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from multiprocessing import get_context
from typing import Any

TASKS = "digits/mlp,digits/resnet,digits/vit"


@dataclass(frozen=True)
class Trial:
    """One run of `method` with `setting`, at its task, sparsity and seed."""

    method: str
    setting: tuple[tuple[str, Any], ...]
    task: str
    sparsity: float
    seed: int

    def run(self) -> tuple[float, float]:
        """Accuracy on valid (nan where it diverged), and training FLOPs beside dense."""
        import torch

        from dstbench.suite import registry
        from dstbench.suite.train import Diverged, Training

        torch.set_num_threads(1)
        method = registry.method(self.method, sparsity=self.sparsity, **dict(self.setting))
        training = Training(registry.task(self.task), method, self.seed)
        try:
            training.setup()
            training.run()
        except Diverged:
            return math.nan, math.nan
        flops = training.book.block(training.model.dense_passes, training.model.cost(), training.samples)
        return training.evaluate("valid"), flops["papers_ratio"]


def table(found: Mapping[Trial, tuple[float, float]]) -> str:
    """A Markdown table: settings down, task and sparsity across."""
    cells = list(dict.fromkeys((t.task, t.sparsity) for t in found))
    lines = [
        "| method | setting | " + " | ".join(f"{task} {100 * sparsity:g} %" for task, sparsity in cells) + " | FLOPs |",
        "|---" * (len(cells) + 3) + "|",
    ]
    for method, setting in dict.fromkeys((t.method, t.setting) for t in found):
        mine = {t: r for t, r in found.items() if (t.method, t.setting) == (method, setting)}
        row = [mean([r[0] for t, r in mine.items() if (t.task, t.sparsity) == cell]) for cell in cells]
        ratio = statistics.fmean([r[1] for r in mine.values() if not math.isnan(r[1])] or [math.nan])
        text = ", ".join(f"{name}={value}" for name, value in setting) or "default"
        lines.append(f"| {method} | {text} | " + " | ".join(row) + f" | {ratio:.3f} |")
    return "\n".join(lines)


def mean(scores: Sequence[float]) -> str:
    """Per cent; a diverged seed counts 0 and is told."""
    lost = sum(math.isnan(s) for s in scores)
    value = 100 * statistics.fmean(0.0 if math.isnan(s) else s for s in scores)
    return f"{value:.1f}" + (f" ({lost} diverged)" if lost else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", help="names, separated by commas")
    parser.add_argument("fields", nargs="*", metavar="FIELD=VALUE,VALUE", help="all combinations are run")
    parser.add_argument("--tasks", default=TASKS)
    parser.add_argument("--sparsity", default="0.9,0.95")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()

    from dstbench.suite import machine

    axes = [[(name, v) for v in values.split(",")] for name, _, values in (f.partition("=") for f in options.fields)]
    trials = [
        Trial(method, setting, task, float(sparsity), seed)
        for method in options.methods.split(",")
        for setting in itertools.product(*axes)
        for task in options.tasks.split(",")
        for sparsity in options.sparsity.split(",")
        for seed in range(options.seeds)
    ]
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "torchvision", "timm", "dstbench.suite.train"])
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        found = dict(zip(trials, pool.map(Trial.run, trials), strict=True))
    print(table(found))
    facts, versions = machine.facts(), machine.versions()
    print(f"\n{options.seeds} seeds; {date.today()}, {facts['cpu']}, torch {versions['torch']}")


if __name__ == "__main__":
    main()
