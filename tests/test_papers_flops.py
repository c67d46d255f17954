"""Training FLOPs in the papers' convention, integrated over whole cycles, against the papers' own formulas.

The formulas' f_S and f_D are counted here from masks and hand-written positions: how often a pass uses each weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from dstbench.suite import registry
from dstbench.suite.train import Training

POSITIONS = {"stem": 64, "grouped": 16, "dilated": 16, "twice": 3, "head": 1}  # of the fixture's ConvNet on 8x8 images
CYCLE = 10


class Watched:
    """A training that notes, before every pass, the forward FLOPs of what is read and of the gradient entries."""

    def __init__(self, task: Any, name: str, steps: int, **fields: Any) -> None:
        method = registry.method(name, **fields)
        recipe = {"steps": steps, "batch": 16, "lr": {"sgd": 0.05, "adam": 3e-3}}
        task = type(task)(name=task.name, image=True, recipe=type(task.recipe)(**recipe))
        self.training, self.read, self.grad, self.book = Training(task, method), [], [], [0]
        descend = method.descend

        def watched(batch: Any) -> Any:
            self.read.append(self.count("forward_mask"))
            self.grad.append(self.count("grad_mask"))
            return descend(batch)

        method.descend = watched  # type: ignore[method-assign]
        self.training.setup()
        self.training.run(after=lambda: self.book.append(self.training.book.papers))

    def count(self, which: str) -> float:
        masks = {y.name: getattr(y, which) for y in self.training.model.layers}
        sizes = {y.name: y.numel for y in self.training.model.layers}
        return sum(2 * POSITIONS[n] * (sizes[n] if m is None else int(m.sum())) for n, m in masks.items())

    @property
    def dense(self) -> float:
        return sum(2 * POSITIONS[y.name] * y.numel for y in self.training.model.layers)

    def spent(self, start: int, stop: int) -> float:
        """Papers' FLOPs a sample of the steps start .. stop - 1."""
        return (self.book[stop] - self.book[start]) / 16


def cycles(steps: int, first: int = 0) -> Iterator[int]:
    return iter(range(first, steps - CYCLE + 1, CYCLE))


def test_static_three_sparse_passes(images) -> None:
    run = Watched(images, "static", 20)
    assert run.spent(0, 20) == pytest.approx(20 * 3 * run.read[0], rel=5e-3)


def test_rigl_with_its_period_as_delta_t_plus_one(images) -> None:
    """(3 f_S ΔT + 2 f_S + f_D) / (ΔT + 1), ΔT + 1 = our period: an update takes the place of a step."""
    run = Watched(images, "rigl", 4 * CYCLE + 1, period=CYCLE, stop=1.0)
    sparse, delta = run.read[0], CYCLE - 1
    wanted = 4 * CYCLE * (3 * sparse * delta + 2 * sparse + run.dense) / (delta + 1)
    assert run.spent(1, 4 * CYCLE + 1) == pytest.approx(wanted, rel=5e-3)


@pytest.mark.parametrize("name", ["linbreg", "snfs"])
def test_a_dense_weight_gradient_in_every_step(images, name: str) -> None:
    run = Watched(images, name, 40)
    wanted = sum(2 * sparse + run.dense for sparse in run.read)
    assert run.spent(0, 40) == pytest.approx(wanted, rel=5e-3)
    assert set(run.grad) == {run.dense}


def test_ml_linbreg(images) -> None:
    """(3 f_S m + 2 f_S + f_D) / (m + 1), f_S that of the cycle: the support is frozen in it."""
    m = CYCLE - 1
    run = Watched(images, "ml_linbreg", 5 * CYCLE, m=m)
    for start in cycles(5 * CYCLE):
        sparse = run.read[start]
        wanted = CYCLE * (3 * m * sparse + 2 * sparse + run.dense) / (m + 1)
        assert run.spent(start, start + CYCLE) == pytest.approx(wanted, rel=5e-3)


def test_gradual_pruning_along_its_schedule(images) -> None:
    """The mean over t of 3 f_D (1 - s_t), s_t = 0.9 (1 - (1 - (t - t0) / (t1 - t0))³) between t0 and t1."""
    run = Watched(images, "magnitude", 101, scope="layer", period=1, start=0.2, stop=1.0)
    kept = [1 - 0.9 * (1 - (1 - max(0, t - 20) / 80) ** 3) for t in range(101)]
    assert run.spent(0, 101) == pytest.approx(3 * run.dense * math.fsum(kept), rel=5e-3)


def test_acdc_three_dense_or_three_sparse_passes(images) -> None:
    run = Watched(images, "acdc", 200)
    phases = {read == run.dense for read in run.read}
    assert phases == {True, False} and run.read == run.grad
    assert run.spent(0, 200) == pytest.approx(3 * math.fsum(run.read), rel=5e-3)
    sparse = run.read.count(run.dense)
    assert sparse == pytest.approx(0.5 * 200, abs=12)  # dense: 0-10, every other 5 until 75, 75-85 of 100


def test_topkast_forward_set_and_backward_set(images) -> None:
    run = Watched(images, "topkast", 40)
    assert all(a < b < run.dense for a, b in zip(run.read, run.grad, strict=True))
    wanted = sum(2 * a + b for a, b in zip(run.read, run.grad, strict=True))
    assert run.spent(0, 40) == pytest.approx(wanted, rel=5e-3)


def test_em_s_pays_for_the_soft_bound(images) -> None:
    """3 f at the inflated density: 1.5 times the target, 1.25 times, the target: steps at 90/160 and 120/160."""
    run = Watched(images, "mest:em_s", 160, period=1, allocation="uniform")
    level = [1.5 if t < 90 else 1.25 if t < 120 else 1.0 for t in range(160)]
    wanted = 3 * 0.1 * run.dense * math.fsum(level)
    assert run.spent(0, 160) == pytest.approx(wanted, rel=0.03)  # the schedule; weights are whole numbers
    assert run.spent(0, 160) == pytest.approx(3 * math.fsum(run.read), rel=5e-3)
