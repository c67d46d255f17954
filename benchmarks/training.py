"""A whole short training, sparse against dense SGD: python -m benchmarks.training --data-root DIR

Every candidate is a run of the suite on the same task, seed and steps, and all take turns step by step: `dense`;
`static` and `rigl` at each sparsity and `ml_linbreg` with its density rising from 1 to 7 %, once of all Layers together
and once of each, all under the kernels `masked`, `csr` (where there is one) and `sparse`. Dense and `sparse` train to
the end. The others, and dense in the layout NHWC, run the first steps alone, and their seconds are extrapolated from
those after the first. `masked NHWC` is there to tell what another order of summation alone does to the losses, and
`masked float64` how far the float32 of `masked` takes them. A step that other processes disturbed (benchmarks.timing
says when) counts the median of the clean steps of its kind, with or without dense weight gradient.

Prints seconds to the same number of steps and their ratio to dense, how far the losses of `sparse` part from those of
`masked` over the first steps, the accuracy on the valid split at the end and the seconds to the same accuracy as dense.
`speedup` is against the best dense layout, `ratio` against the layout in which the suite trains, NCHW.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import timing
from dstbench.suite import registry
from dstbench.suite.kernels import KERNELS
from dstbench.suite.task import DataError, Task
from dstbench.suite.train import Diverged, Training

METHODS = ("static", "rigl", "ml_linbreg")
# Reached when `ramp`, 30 % of the run, is over; the same density in every Layer to begin with, as in its paper.
RISING = {"sparsity": 0.93, "start_density": 0.01, "allocation": "uniform"}
ML_LINBREG = (RISING, {**RISING, "scope": "layer"})
# How a run may differ from the suite's: in the layout of images and weights, or their precision.
VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "NHWC": {"memory_format": torch.channels_last},
    "float64": {"dtype": torch.float64},
}
FIRST = 20  # steps
LOOKS = 4  # at the valid split, evenly spread, the last after the last step


class Watched(Training):
    """A run that keeps every step's loss and density, and is evaluated by the benchmark alone."""

    def __init__(self, *arguments: Any, variant: str = "", **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.losses: list[float] = []
        self.densities: list[float] = []
        if kind := VARIANTS[variant]:
            self.model.net.to(**kind)
            self.model.net.register_forward_pre_hook(lambda _, images: tuple(x.to(**kind) for x in images))

    def _trace(self, t: int, loss: float) -> None:
        self.losses.append(loss)
        self.densities.append(self.model.density)


@dataclass
class Candidate:
    """A run, how many of its steps are made, and what each took."""

    method: str
    kernel: str
    setting: dict[str, Any]  # hyper-parameters
    run: Watched
    until: int
    samples: list[tuple[float, bool]] = field(default_factory=list)
    kinds: list[bool] = field(default_factory=list)  # whether the step computed a dense weight gradient
    looks: list[tuple[float, float]] = field(default_factory=list)  # seconds so far, accuracy on valid
    failed: str | None = None

    def step(self) -> None:
        """One more step, timed."""
        before = self.run.book.dense_gradient_steps
        try:
            taken = timing.sample(lambda: self.run.run(until=self.run.t + 1))
        except Diverged as why:
            self.failed, self.until = str(why), self.run.t
            return
        self.samples.append(taken)
        self.kinds.append(self.run.book.dense_gradient_steps > before)

    def look(self) -> None:
        """Evaluate on the valid split; that takes none of the run's seconds."""
        if self.run.t == self.run.recipe.steps:
            self.run.method.finish()
        self.looks.append((sum(self.seconds()), self.run.evaluate("valid")))

    def seconds(self) -> list[float]:
        """Of each step; a disturbed one counts the median of the clean ones of its kind."""
        pairs = list(zip(self.kinds, self.samples, strict=True))
        typical = {}
        for kind in set(self.kinds):
            clean = [taken for made, (taken, alone) in pairs if made == kind and alone]
            typical[kind] = statistics.median(clean) if clean else None
        return [taken if alone else typical[kind] or taken for kind, (taken, alone) in pairs]

    @property
    def extrapolated(self) -> bool:
        """Whether the total is more than what was measured."""
        return len(self.samples) < self.run.recipe.steps

    @property
    def total(self) -> float:
        """Seconds of all steps, extrapolated from those after the first where not all were made."""
        made = self.seconds()
        return (
            statistics.fmean(made[1:] or made or [math.nan]) * self.run.recipe.steps if self.extrapolated else sum(made)
        )


def candidates(task: Task, options: argparse.Namespace) -> Iterator[Candidate]:
    """Dense first, then `masked` before the other kernels of each method."""
    first = options.steps if options.full else min(FIRST, options.steps)
    yield Candidate("dense", "dense NCHW", {}, Watched(task, registry.method("dense")), options.steps)
    yield Candidate("dense", "dense NHWC", {}, Watched(task, registry.method("dense"), variant="NHWC"), first)
    for name in options.chosen:
        for setting in ML_LINBREG if name == "ml_linbreg" else [{"sparsity": s} for s in options.sparsity]:
            for kernel in ("masked", "masked NHWC", "masked float64", *(k for k in ("csr", "sparse") if k in KERNELS)):
                method, (stored, _, variant) = registry.method(name, **setting), kernel.partition(" ")
                run = Watched(task, method, kernel=stored, variant=variant)
                yield Candidate(name, kernel, setting, run, options.steps if kernel == "sparse" else first)


def train(listed: Sequence[Candidate], steps: int) -> None:
    """All take turns, step by step; those that train to the end are evaluated along the way."""
    for one in listed:
        one.run.setup()
    for t in range(1, steps + 1):
        for one in listed:
            if t <= one.until:
                one.step()
        if t * LOOKS // steps > (t - 1) * LOOKS // steps:
            for one in listed:
                if one.until == steps:
                    one.look()
            print(f"step {t} of {steps}", file=sys.stderr, flush=True)


def reached(looks: Sequence[tuple[float, float]], wanted: float, chance: float) -> float | None:
    """Seconds at which the accuracy first was `wanted`, on the straight line between two looks; None: never."""
    before, start = 0.0, chance
    for seconds, accuracy in looks:
        if accuracy >= wanted:
            gained = (wanted - start) / (accuracy - start) if accuracy > start else 1.0
            return before + max(0.0, gained) * (seconds - before)
        before, start = seconds, accuracy
    return None


def apart(one: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """The largest differences of two curves of losses, over the first steps of both."""
    pairs = list(zip(one, other, strict=False))[:FIRST]
    return {
        "loss_difference": max((abs(a - b) for a, b in pairs), default=math.nan),
        "loss_difference_relative": max((abs(a - b) / abs(b) for a, b in pairs if b), default=math.nan),
    }


def rows(listed: Sequence[Candidate], task: Task) -> Iterator[dict[str, Any]]:
    """A row a candidate."""
    dense = listed[0]
    best = min(one.total for one in listed if one.method == "dense")
    masked: dict[tuple[str, str], Candidate] = {}
    for one in listed:
        row: dict[str, Any] = {"model": task.name, "method": one.method, "kernel": one.kernel}
        row |= {"sparsity": one.setting.get("sparsity"), "setting": one.setting}
        row |= {"seconds": one.total, "speedup": best / one.total, "ratio": one.total / dense.total}
        row |= {"ratio_best": one.total / best, "extrapolated": one.extrapolated, "steps": len(one.samples)}
        row |= {"clean_steps": sum(alone for _, alone in one.samples), "failed": one.failed}
        row |= {"dense_gradient_steps": sum(one.kinds), "training_state": one.run.memory.peaks["training_state"]}
        row |= {"routes": dict(Counter(layer.kernel.route(layer) for layer in one.run.model.layers))}
        row |= {"loss": one.run.losses, "density": one.run.densities, "looks": one.looks}
        if one.looks and dense.looks:
            wanted = min(one.looks[-1][1], dense.looks[-1][1])
            row |= {"accuracy": one.looks[-1][1], "accuracy_matched": wanted}
            row["seconds_to_accuracy"] = reached(one.looks, wanted, task.chance)
            row["dense_seconds_to_accuracy"] = reached(dense.looks, wanted, task.chance)
        if one.kernel == "masked":
            masked[one.method, str(one.setting)] = one
        elif reference := masked.get((one.method, str(one.setting))):
            row |= apart(one.run.losses, reference.run.losses)
        yield row


def remark(row: dict[str, Any]) -> str:
    """What the table says of a row beside its time."""
    parts = [f"{row['ratio']:6.1%} of dense NCHW, {row['ratio_best']:6.1%} of the best layout"]
    parts += [f"extrapolated from {row['steps']} steps"] if row["extrapolated"] else []
    parts += [f"scope {row['setting']['scope']}"] if "scope" in row["setting"] else []
    if row["density"] and row["sparsity"] is not None:
        parts.append(f"density {row['density'][0]:.2%} to {row['density'][-1]:.2%}")
    if "loss_difference" in row:
        parts.append(
            f"losses within {row['loss_difference']:.1e} ({row['loss_difference_relative']:.1e} of it) of masked"
        )
    if "accuracy" in row:
        parts.append(f"valid {row['accuracy']:.2%}")
        times = row["seconds_to_accuracy"], row["dense_seconds_to_accuracy"]
        if None not in times:
            parts.append(f"{row['accuracy_matched']:.2%} after {times[0]:.1f} s, dense {times[1]:.1f} s")
    return "; ".join([*parts, *([row["failed"]] if row["failed"] else [])])


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, measure and print."""
    made = timing.parser(__doc__, METHODS, [0.95], batch=128)
    made.add_argument("--steps", type=timing.count, default=200)
    made.add_argument("--task", default="cifar10/resnet18", help="of the suite, trained by SGD")
    made.add_argument("--data-root", type=Path, help="folder of the data sets")
    made.add_argument(
        "--recipe", nargs="+", default=[], metavar="FIELD=VALUE", help="of the task's: warmup=0.2 lr.sgd=0.05"
    )
    made.add_argument("--full", action="store_true", help="train every candidate to the end: much slower")
    options = timing.begin(made, arguments)
    try:
        recipe = {"steps": options.steps, "batch": options.batch, "optimizer": "sgd"}
        recipe |= dict(text.partition("=")[::2] for text in options.recipe)
        task = registry.task(options.task, recipe=recipe)
        task = replace(task, root=options.data_root)
        task.prepare()
    except (registry.RegistryError, DataError) as why:
        made.error(str(why))
    report = timing.Report(options)
    listed = list(candidates(task, options))
    train(listed, options.steps)
    for row in rows(listed, task):
        report.add(row, remark(row))
    report.close(steps=options.steps, recipe=options.recipe)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
