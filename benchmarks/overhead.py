"""What the training loop costs beyond a bare PyTorch loop, for dense training: python -m benchmarks.overhead

Prints, for each task, the median over pairs of the ratio of two times of the same number of steps, taken in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from dstbench.suite import machine, registry
from dstbench.suite.task import Task
from dstbench.suite.train import Training


def bare(task: Task) -> Callable[[int], None]:
    """The loop that a user would write: same network, batches, optimiser and schedule, nothing else."""
    net, recipe = task.build(0), task.recipe
    weights = [p for p in net.parameters() if p.dim() > 1]
    others = [p for p in net.parameters() if p.dim() <= 1]
    groups = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
    optimizer = recipe.make_optimizer(groups, recipe.optimizer)
    batches = task.batches("train", 0)
    net.train()

    def run(steps: int) -> None:
        for t in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr[recipe.optimizer] * recipe.factor(t)
            x, y = next(batches)
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(net(x), y, label_smoothing=recipe.label_smoothing)
            loss.backward()
            loss.item()
            if recipe.clip:
                torch.nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
            optimizer.step()

    return run


def ours(task: Task) -> Callable[[int], None]:
    """The suite's loop around `dense`; evaluations at curve points are left out of the comparison."""
    training = Training(task, registry.method("dense"))
    training.setup()
    training.evaluate = lambda split: 0.0  # type: ignore[method-assign]
    return lambda steps: training.run(until=training.t + steps)


def seconds(run: Callable[[int], None], steps: int) -> float:
    start = time.perf_counter()
    run(steps)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="digits/vit,digits/resnet,digits/mlp")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.tasks.split(","):
        task = registry.task(name, recipe={"steps": (options.pairs + 1) * options.steps})
        plain, suite = bare(task), ours(task)
        seconds(plain, options.steps), seconds(suite, options.steps)
        times = [(seconds(plain, options.steps), seconds(suite, options.steps)) for _ in range(options.pairs)]
        ratio = statistics.median(b / a for a, b in times)
        step = statistics.median(a for a, _ in times) / options.steps
        rows.append({"task": name, "overhead": ratio - 1, "bare_step_seconds": step})
        if not options.json:
            print(f"{name:16s} overhead {ratio - 1:+7.2%}   bare step {step * 1e3:.2f} ms", flush=True)
    found = {"machine": machine.facts(), "versions": machine.versions(), "rows": rows}
    print(json.dumps(found) if options.json else f"{found['machine']['cpu']}, torch {found['versions']['torch']}")


if __name__ == "__main__":
    main()
