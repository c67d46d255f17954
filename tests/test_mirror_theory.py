"""What theory proves of LinBreg, in float64: descent, rates, the limit, and when the first weight wakes."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from dstbench.methods.regularizers import Regularizer
from quadratics import Array, Problem


def mirror_map(w: Array, lam: float, delta: float, groups: str) -> float:
    """J_delta = lam J + ||w||^2 / (2 delta)."""
    size = 1 if groups == "l1" else w.shape[1]
    penalty = math.sqrt(size) * np.sqrt((w.reshape(-1, size) ** 2).sum(1)).sum()
    return lam * penalty + float((w**2).sum()) / (2 * delta)


@pytest.mark.parametrize("groups", ("l1", "row"))
@pytest.mark.parametrize("share", (1.0, 1.9))
@pytest.mark.parametrize("delta", (0.3, 2.0))
def test_loss_decreases_by_the_bregman_distances(groups: str, share: float, delta: float) -> None:
    problem, lam = Problem(n=20, outputs=1 if groups == "l1" else 6), 0.5
    tau = share / (delta * problem.smoothness)
    optimizer = problem.optimizer(regularizer=Regularizer(groups), lam=lam, delta=delta, lr=tau)

    def distance(v: Array, a: Array, b: Array) -> float:
        gap = mirror_map(a, lam, delta, groups) - mirror_map(b, lam, delta, groups)
        return gap - float((v * (a - b)).sum())

    problem.step(optimizer)
    for _ in range(100):
        w, v = problem.weight, problem.dual
        loss = problem.step(optimizer)
        new, moved = problem.weight, problem.dual
        bound = loss - distance(moved, w, new) / tau
        bound -= (1 / tau - delta * problem.smoothness) * distance(v, new, w)
        slack = 1e-10 * max(1.0, loss)
        assert problem.loss(new) <= min(bound, loss) + slack


def test_a_step_of_three_over_delta_times_smoothness_is_not_monotone() -> None:
    problem = Problem(n=20)
    optimizer = problem.optimizer(lam=0.05, lr=3 / problem.smoothness)
    tau, losses = 3 / problem.smoothness, []

    def distance(v: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
        gap = mirror_map(a, 0.05, 1.0, "l1") - mirror_map(b, 0.05, 1.0, "l1")
        return gap - float((v * (a - b)).sum())

    for step in range(30):
        w, v = problem.weight, problem.dual if step else None
        losses.append(loss := problem.step(optimizer))
        if v is not None:  # the inequality itself holds at any step size
            new = problem.weight
            bound = loss - distance(problem.dual, w, new) / tau
            bound -= (1 / tau - problem.smoothness) * distance(v, new, w)
            assert problem.loss(new) <= bound + 1e-9 * max(1.0, loss)
    assert max(b - a for a, b in pairwise(losses)) > 0.1


def test_rate_of_the_loss_is_one_over_the_number_of_steps() -> None:
    for seed in range(10):
        problem, lam, delta = Problem(seed=seed, n=30, rows=60), 0.3, 1.0
        best = np.linalg.lstsq(problem.a, problem.b, rcond=None)[0].T
        w, tau = problem.start, 1 / (delta * problem.smoothness)
        v = w / delta + lam * np.sign(w)
        gap = mirror_map(best, lam, delta, "l1") - mirror_map(w, lam, delta, "l1")
        distance = gap - float((v * (best - w)).sum())
        optimizer = problem.optimizer(lam=lam, delta=delta, lr=tau)
        for k in range(1, 101):
            problem.step(optimizer)
            assert problem.loss(problem.weight) - problem.loss(best) <= distance / (tau * k)


def test_on_its_support_it_is_gradient_descent() -> None:
    """Once the support stands, the loss falls by (1 - delta tau mu)^2 a step, mu of the actual support."""
    problem, tau = Problem(n=40, rows=80), 0.2
    problem.truth = np.sign(problem.truth) * (1 + np.abs(problem.truth))
    problem.b = problem.a @ problem.truth.T
    problem.layer.assign(torch.zeros(1, 40, dtype=torch.float64))
    optimizer = problem.optimizer(lam=2.0, lr=tau)
    for _ in range(150):
        problem.step(optimizer)
    on = problem.weight[0] != 0
    assert on.sum() < 40 and (on >= (problem.truth[0] != 0)).all()
    slowest = float(np.linalg.eigvalsh(problem.a[:, on].T @ problem.a[:, on])[0])
    first, second = problem.step(optimizer), problem.step(optimizer)
    assert second / first == pytest.approx((1 - tau * slowest) ** 2, rel=1e-3)


def test_underdetermined_least_squares_recovers_the_sparse_vector() -> None:
    """From zero, the limit interpolates with a dual in the range of A^T, so it has the least J_delta."""
    problem = Problem(n=200, rows=60, seed=3, noise=0.0)
    truth = np.zeros((1, 200))
    truth[0, np.random.default_rng(5).permutation(200)[:8]] = np.random.default_rng(6).standard_normal(8) + 2
    problem.b = problem.a @ truth.T
    problem.layer.assign(torch.zeros(1, 200, dtype=torch.float64))
    optimizer = problem.optimizer(lam=5.0, lr=1 / problem.smoothness)
    for _ in range(3000):
        problem.step(optimizer)
    coefficients = np.linalg.lstsq(problem.a.T, problem.dual[0], rcond=None)[0]
    assert np.abs(problem.a.T @ coefficients - problem.dual[0]).max() < 1e-9
    assert np.abs(problem.weight - truth).max() < 1e-6


@pytest.mark.parametrize("lam", (0.1, 0.5, 2.0))
def test_the_first_weight_wakes_when_the_clock_says(lam: float) -> None:
    problem, tau = Problem(), 0.05
    problem.layer.assign(torch.zeros(1, 50, dtype=torch.float64))
    clock = math.floor(lam / (tau * np.abs(problem.gradient(np.zeros((1, 50)))).max())) + 1
    optimizer = problem.optimizer(lam=lam, lr=tau)
    for k in range(1, clock + 1):
        assert not problem.weight.any(), f"awake before step {k}"
        problem.step(optimizer)
    assert problem.weight.any()
