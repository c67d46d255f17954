"""Convex problems with a known optimum: sparse least squares and logistic regression, gradients noisy on demand."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from dstbench.suite.recipe import Recipe
from dstbench.suite.task import SPLITS, Batch, Task
from dstbench.tasks.seeded import generator

if TYPE_CHECKING:
    from dstbench.suite.model import SparseModel

Array = np.ndarray
KINDS = ("least_squares", "logistic")
LEAST = 1e-16  # what a gap below rounding counts as


@dataclass(frozen=True)
class Problem:
    """L(W) = the mean over `rows` of l(a_i W^T, y_i), summed over `outputs`, which are independent of each other.

    l is (z - y)^2 / 2 or log(1 + e^z) - y z. The rows a_i of A are standard normal, each output has a true vector of
    `nonzero` entries of size 1 to 2. Targets are A W^T with noise of the standard deviation `spread`, or coins whose
    chance of 1 is the logistic function of it. `number` counts problems of the same kind.
    """

    kind: str = "least_squares"
    rows: int = 200
    inputs: int = 100
    outputs: int = 1
    nonzero: int = 10
    spread: float = 0.0
    number: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"problem.kind is {self.kind!r}; choose one of {', '.join(KINDS)}")
        if not 0 <= self.nonzero <= self.inputs:
            raise ValueError(f"problem.nonzero is {self.nonzero}; give a number of the {self.inputs} inputs")

    @property
    def data(self) -> tuple[Array, Array, Array]:
        """A (rows, inputs), targets (rows, outputs) and the true vectors (outputs, inputs), float64."""
        return _made(self)

    @property
    def optimum(self) -> tuple[Array, Array]:
        """A minimiser (outputs, inputs) and the least loss of each output (outputs,), by NumPy's or SciPy's solver."""
        return _solved(self)

    @property
    def smoothness(self) -> float:
        """The Lipschitz constant of the gradient: the largest eigenvalue of A^T A / rows; a quarter of it, logistic."""
        largest = float(np.linalg.norm(self.data[0], 2) ** 2 / self.rows)
        return largest / 4 if self.kind == "logistic" else largest

    def losses(self, weight: Array) -> Array:
        """The loss of each output, (outputs,), at a weight (outputs, inputs)."""
        a, y, _ = self.data
        z = a @ weight.T
        return ((z - y) ** 2 / 2 if self.kind == "least_squares" else np.logaddexp(0, z) - y * z).mean(0)

    def gradient(self, weight: Array) -> Array:
        """The gradient of the sum of the losses, (outputs, inputs)."""
        a, y, _ = self.data
        z = a @ weight.T
        return ((z if self.kind == "least_squares" else 1 / (1 + np.exp(-z))) - y).T @ a / self.rows

    def gaps(self, weight: Array) -> Array:
        """The suboptimality of each output, (outputs,), at least `LEAST`."""
        return np.maximum(self.losses(weight) - self.optimum[1], LEAST)


@lru_cache(maxsize=32)
def _made(problem: Problem) -> tuple[Array, Array, Array]:
    rng = np.random.RandomState(problem.number)
    a = rng.standard_normal((problem.rows, problem.inputs))
    shape = (problem.outputs, problem.inputs)
    ranks = rng.random_sample(shape).argsort(1).argsort(1)
    truth = rng.choice((-1.0, 1.0), shape) * (1 + rng.random_sample(shape)) * (ranks < problem.nonzero)
    z = a @ truth.T
    if problem.kind == "least_squares":
        return a, z + problem.spread * rng.standard_normal(z.shape), truth
    return a, (rng.random_sample(z.shape) < 1 / (1 + np.exp(-z))).astype(float), truth


@lru_cache(maxsize=32)
def _solved(problem: Problem) -> tuple[Array, Array]:
    a, y, _ = problem.data
    if problem.kind == "least_squares":
        best = np.linalg.lstsq(a, y, rcond=None)[0].T
        return best, problem.losses(best)
    from scipy.optimize import minimize

    found = []
    for target in y.T:

        def slope(w: Array, target: Array = target) -> Array:
            return a.T @ (1 / (1 + np.exp(-a @ w)) - target) / problem.rows

        def curvature(w: Array) -> Array:
            p = 1 / (1 + np.exp(-a @ w))
            return a.T * (p * (1 - p)) @ a / problem.rows

        def loss(w: Array, target: Array = target) -> float:
            return float((np.logaddexp(0, a @ w) - target * (a @ w)).mean())

        start = np.zeros(problem.inputs)
        result = minimize(loss, start, jac=slope, hess=curvature, method="trust-exact", options={"gtol": 1e-9})
        if np.abs(slope(result.x)).max() > 1e-6 or np.abs(result.x).max() > 1e3:
            raise ValueError(f"{problem}: the classes can be separated, so there is no optimum; give more rows")
        found.append(result.x - np.linalg.solve(curvature(result.x), slope(result.x)))  # to rounding
    return np.stack(found), problem.losses(np.stack(found))


@dataclass(frozen=True)
class PowerLaw(Recipe):
    """A recipe whose learning rate is lr (1 + t / hold)^-decay at step t: constant for a decay of 0.

    The steps of stochastic approximation, for decays above 1/2 and at most 1.
    Reference: Robbins & Monro 1951, "A Stochastic Approximation Method", Annals of Mathematical Statistics 22.
    """

    decay: float = 0.0
    hold: int = 1
    schedule: str = field(default="cosine", init=False)  # what `Recipe` checks; this one has its own
    warmup: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, good, wanted in (
            ("decay", 0 <= self.decay <= 1, "an exponent in [0, 1]"),
            ("hold", self.hold >= 1, "steps, at least 1"),
        ):
            if not good:
                raise ValueError(f"recipe.{name} is {getattr(self, name)}; give {wanted}")
        object.__setattr__(self, "schedule", "power law")

    def factor(self, t: int) -> float:
        """The factor on the learning rate at step t."""
        return (1 + t / self.hold) ** -self.decay


@dataclass(frozen=True)
class ConvexTask(Task):
    """One linear layer in float64 on a `Problem`, all rows in a batch, or as many as `recipe.batch`.

    `noise` is the standard deviation of fresh Gaussian noise on the targets of every training batch. The gradient stays
    unbiased; a whole batch adds noise of covariance noise^2 A^T A / rows^2 to it. `start` is a factor on the usual
    initial weights; 0 starts at zero. Every split is the whole problem: what is judged is the optimisation. The metric
    is log10 of the suboptimality, the mean over outputs of the loss above its least, floored at -16; lower is better.
    """

    one_split: ClassVar[bool] = True

    metric: str = "log10_gap"
    higher_is_better: bool = False
    problem: Problem = field(default_factory=Problem)
    noise: float = 0.0
    start: float = 1.0

    def __post_init__(self) -> None:
        for name in ("noise", "start"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{self.name}: {name} is {getattr(self, name)}; give a finite number, 0 or more")

    def fingerprint(self) -> str:
        """Over the numbers of the problem, to a millionth."""
        a, y, truth = self.problem.data
        whole = b"".join(np.rint(1e6 * x).astype("<i8").tobytes() for x in (a, y, truth))
        return hashlib.sha256(whole).hexdigest()[:12]

    def build(self, seed: int, width: float = 1.0) -> nn.Module:
        """(N, inputs) -> (N, outputs) without bias, initialised from `seed` alone; ValueError for another width."""
        if width != 1:
            raise ValueError(f"{self.name}: a convex problem has one width")
        problem, rng = self.problem, generator(seed, "weights")
        with torch.random.fork_rng(devices=[]):  # the layer draws weights of its own
            net = nn.Sequential(nn.Linear(problem.inputs, problem.outputs, bias=False, dtype=torch.float64))
        bound = self.start / math.sqrt(problem.inputs)
        weight = torch.rand(problem.outputs, problem.inputs, generator=rng, dtype=torch.float64)
        net[0].weight = nn.Parameter((2 * weight - 1) * bound)
        return net

    def example(self) -> Tensor:
        """Two rows of A."""
        return torch.from_numpy(self.problem.data[0][:2])

    def batches(self, split: str, seed: int, start: int = 0) -> Iterator[Batch]:
        """Rows (B, inputs) and targets (B, outputs): `train` and `calibration` without end, others the whole, once.

        ValueError for an unknown split, and for a batch larger than the problem.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
        if (size := self.recipe.batch) > self.problem.rows:
            raise ValueError(f"{self.name}: recipe.batch {size} is larger than the problem's {self.problem.rows} rows")
        a, y = (torch.from_numpy(x) for x in self.problem.data[:2])
        return self._endless(a, y, split, seed, start) if split in SPLITS[:2] else iter([(a, y)][start:])

    def loss(self, model: SparseModel, batch: Batch) -> Tensor:
        """The mean over rows of the loss, summed over outputs; with noisy targets, off by what the noise adds."""
        inputs, targets = batch
        z = model(inputs)
        if self.problem.kind == "least_squares":
            return (z - targets).square().sum() / (2 * len(z))
        return (nn.functional.softplus(z) - targets * z).sum() / len(z)

    @torch.no_grad()
    def evaluate(self, model: SparseModel, split: str, device: torch.device) -> float:
        """log10 of the mean suboptimality over outputs; the same for every split."""
        inputs, targets = next(iter(self.batches(split, seed=0)))
        gap = float(self.loss(model, (inputs.to(device), targets.to(device)))) - float(self.problem.optimum[1].sum())
        return math.log10(max(gap / self.problem.outputs, LEAST)) if math.isfinite(gap) else math.nan

    def describe(self) -> dict[str, Any]:
        """Everything but the recipe, for the record."""
        problem = {f.name: getattr(self.problem, f.name) for f in fields(self.problem)}
        return super().describe() | {"problem": problem, "noise": self.noise, "start": self.start, "synthetic": True}

    def _endless(self, a: Tensor, y: Tensor, split: str, seed: int, start: int) -> Iterator[Batch]:
        size, whole = self.recipe.batch, self.recipe.batch == len(a)
        for step in count(start):
            rng = generator(seed, split, step)
            index = slice(None) if whole else torch.randperm(len(a), generator=rng)[:size]
            inputs, targets = a[index], y[index]
            if self.noise:
                targets = targets + self.noise * torch.randn(targets.shape, generator=rng, dtype=targets.dtype)
            yield inputs, targets
