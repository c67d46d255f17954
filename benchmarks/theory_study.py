"""LinBreg and ML LinBreg with stochastic gradients on convex problems: suboptimality against steps, noise and m."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context

import numpy as np

from dstbench.reports.statistics import Interval, t_interval
from dstbench.tasks.convex import Array, ConvexTask, PowerLaw, Problem

LEAST_SQUARES = Problem(rows=200, inputs=100, outputs=16, nonzero=10)
LOGISTIC = Problem("logistic", rows=400, inputs=20, nonzero=5)
POINTS = 60  # at which a run is looked at, equally spaced in the logarithm, and as many more in its second half


@dataclass(frozen=True)
class Cell:
    """One run. The outputs of its problem are independent of each other, and so are its replicates.

    It starts at zero, ML LinBreg with a fine step. The noise of each output is drawn anew, and the l1 rule never mixes
    outputs: a run of 16 outputs is 16 runs.
    """

    problem: Problem
    m: int
    noise: float
    tau: float
    decay: float
    steps: int
    batch: int
    lam: float = 1.0
    seed: int = 0

    def run(self) -> Trace:
        """Train by the suite's own loop and method."""
        import torch

        from dstbench.methods.bregman import LinBreg, MLLinBreg
        from dstbench.suite.train import Training

        torch.set_num_threads(1)
        fixed = {"control": "fixed", "lam": self.lam, "start_density": 0.05}
        method = MLLinBreg(m=self.m, order="fine_first", **fixed) if self.m else LinBreg(**fixed)  # type: ignore[arg-type]
        zero = {"sgd": 0.0, "adam": 0.0}
        rates = {"sgd": self.tau, "adam": self.tau}
        recipe = PowerLaw(
            self.steps, self.batch, rates, weight_decay=zero, momentum=0.0, decay=self.decay, hold=self.hold
        )
        task = ConvexTask("theory/study", recipe, problem=self.problem, noise=self.noise, start=0.0)
        run = Training(task, method, self.seed)
        run.setup()
        truth, gaps, active, found = self.problem.data[2] != 0, [], [], []
        for step in self.looks:
            run.run(until=step)
            weight = run.model.layers[0].weight.numpy()
            gaps.append(self.problem.gaps(weight))
            active.append((weight != 0).sum(1))
            found.append(((weight != 0) | ~truth).all(1))
        return Trace(self, np.array(self.looks), np.stack(gaps), np.stack(active), np.stack(found))

    @property
    def hold(self) -> int:
        """Steps after which a decaying rate begins to fall."""
        return max(1, self.steps // 100)

    @property
    def looks(self) -> list[int]:
        """The steps after which the run is looked at."""
        early = np.geomspace(10, self.steps, POINTS)
        return sorted({*np.rint([*early, *np.linspace(self.steps / 2, self.steps, POINTS)]).astype(int).tolist()})

    @property
    def floor(self) -> Array:
        """The mean gap of SGD with this noise and constant step on the true support alone, (outputs,); least squares.

        Sum over the eigenvalues h of the Hessian there of tau noise^2 h / (2 rows (2 - tau h)).
        """
        a, _, truth = self.problem.data
        rows, out = self.problem.rows, []
        for vector in truth:
            h = np.linalg.eigvalsh(a[:, vector != 0].T @ a[:, vector != 0] / rows)
            out.append((self.tau * self.noise**2 * h / (2 * rows * (2 - self.tau * h))).sum())
        return np.array(out)


@dataclass(frozen=True)
class Trace:
    """After `steps` (looks,): gaps, numbers of active weights, whether all true ones are, (looks, replicates) each."""

    cell: Cell
    steps: Array
    gaps: Array
    active: Array
    found: Array

    @property
    def wait(self) -> float:
        """The step of the first look at which all true weights are active, the median of replicates; inf: never."""
        first = np.where(self.found.any(0), self.steps[self.found.argmax(0)], np.inf)
        return float(np.median(first))

    @property
    def early(self) -> float:
        """The share of replicates in which all true weights are active at every look of the last decade of steps."""
        return float(self.found[self.steps >= self.cell.steps / 10].all(0).mean())

    @property
    def late(self) -> Array:
        """The looks in the second half of the run."""
        return self.steps >= self.cell.steps / 2

    @property
    def plateau(self) -> Array:
        """The mean gap over the second half, (replicates,)."""
        return self.gaps[self.late].mean(0)

    def exponent(self) -> Interval:
        """a of gap ~ tau_k^a over the last decade of steps, with its interval over replicates.

        With stochastic gradients, theory for strongly convex problems says 1.
        """
        cell, part = self.cell, self.steps >= self.cell.steps / 10
        rate = -cell.decay * np.log10(1 + self.steps[part] / cell.hold)
        return t_interval([float(np.polyfit(rate, y, 1)[0]) for y in np.log10(self.gaps[part]).T])

    def slope(self) -> Interval:
        """b of gap ~ k^b over the last decade of steps, with its interval over replicates."""
        part = self.steps >= self.cell.steps / 10
        x = np.log10(self.steps[part])
        return t_interval([float(np.polyfit(x, y, 1)[0]) for y in np.log10(self.gaps[part]).T])


def joined(traces: Sequence[Trace]) -> Trace:
    """Runs of several seeds as the replicates of one."""
    parts = [np.concatenate([getattr(t, name) for t in traces], 1) for name in ("gaps", "active", "found")]
    return Trace(replace(traces[0].cell, seed=0), traces[0].steps, *parts)


def across(traces: Iterable[Trace], field: str) -> Interval:
    """c of plateau ~ field^c over runs that differ in that field alone, with its interval over replicates."""
    found = list(traces)
    x = np.log10([getattr(t.cell, field) for t in found])
    return t_interval([float(np.polyfit(x, y, 1)[0]) for y in np.log10([t.plateau for t in found]).T])


def log_mean(values: Array) -> Interval:
    """log10 of positive values, its mean and interval."""
    return t_interval(np.log10(values).tolist())


def cells(quick: bool) -> list[Cell]:
    """The grid. Least squares: whole batches with noisy targets; logistic regression: batches of 20 of 400 rows."""
    steps = 200 if quick else 6_000
    ms = (0, 9) if quick else (0, 9, 99)
    noises = (0.3, 3.0) if quick else (0.3, 1.0, 3.0)
    base = Cell(LEAST_SQUARES, 0, 1.0, 0.3, 0.0, steps, LEAST_SQUARES.rows)
    found = [replace(base, m=m, noise=noise, decay=decay) for m in ms for noise in noises for decay in (0.0, 0.75)]
    found += [replace(base, m=m, tau=0.1) for m in ms]
    found += [replace(base, m=m, decay=decay) for m in ms for decay in ((1.0,) if quick else (0.5, 1.0))]
    other = Cell(LOGISTIC, 0, 0.0, 2.0, 0.75, steps // 2, 20, lam=0.3)
    seeds = range(2 if quick else 4)
    found += [replace(other, m=m, decay=decay, seed=seed) for m in ms for decay in (0.0, 0.75) for seed in seeds]
    return [*dict.fromkeys(found)]


def traces(grid: Sequence[Cell], jobs: int) -> Iterator[Trace]:
    """The runs, `jobs` side by side; seeds of one cell are joined."""
    if jobs > 1:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            done = list(pool.map(Cell.run, grid))
    else:
        done = [cell.run() for cell in grid]
    groups: dict[Cell, list[Trace]] = {}
    for trace in done:
        groups.setdefault(replace(trace.cell, seed=0), []).append(trace)
    return (joined(group) for group in groups.values())


def text(found: Interval, digits: int = 2) -> str:
    """ "mean ± half", the half left out where there is none."""
    return f"{found.mean:.{digits}f}" + (f" ± {found.half:.{digits}f}" if math.isfinite(found.half) else "")
