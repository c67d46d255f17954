"""The optimisers of the Bregman family against NumPy, against SGD and Adam, and against what theory proves of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dstbench.methods.mirror import MirrorDescent, adam, ema, heavy_ball, plain
from dstbench.methods.regularizers import Regularizer
from dstbench.suite.model import SparseModel
from quadratics import Array, Problem

ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}


def soft(v: Array, lam: float) -> Array:
    return np.sign(v) * np.maximum(np.abs(v) - lam, 0)


# ---- 200 steps against the rules written down once more --------------------------------------------------------------


def oracle(problem: Problem, rule: str, lam: float, delta: float, tau: Callable[[int], float], mu: float) -> Array:
    w = problem.start
    v, m1, m2 = w / delta + lam * np.sign(w), np.zeros_like(w), np.zeros_like(w)
    for k in range(1, 201):
        g, lr = problem.gradient(w), tau(k - 1)
        if rule == "plain":
            v = v - lr * g
        elif rule == "ema":
            m1 = 0.9 * m1 + 0.1 * lr * g
            v = v - m1
        elif rule == "heavy_ball":
            m1 = g if k == 1 else 0.9 * m1 + g
            v = v - lr * m1
        else:
            m1, m2 = 0.9 * m1 + 0.1 * g, 0.999 * m2 + 0.001 * g**2
            factor = lr / (1 - 0.9**k) if rule == "adam" else lr
            v = v - factor * m1 / (np.sqrt(m2) / np.sqrt(1 - 0.999**k) + 1e-8)
        v = v - lr * mu * w
        w = delta * soft(v, lam)
    return w


RULES = {
    "plain": (plain, 0.1),
    "ema": (partial(ema, beta=0.9), 0.1),
    "heavy_ball": (partial(heavy_ball, beta=0.9), 0.02),
    "adam": (partial(adam, **ADAM), 0.01),
    "uncorrected": (partial(adam, corrected=False, **ADAM), 0.01),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("lam", "delta", "mu"), ((0.2, 1.0, 0.0), (0.5, 0.5, 0.1)))
def test_200_steps_equal_the_oracle(rule: str, lam: float, delta: float, mu: float) -> None:
    problem = Problem()
    direction, tau = RULES[rule]
    schedule = lambda t: tau * (0.3 if t >= 100 else 1.0)  # noqa: E731
    optimizer = problem.optimizer(direction=direction, lam=lam, delta=delta, weight_decay=mu)
    for t in range(200):
        optimizer.param_groups[0]["lr"] = schedule(t)
        problem.step(optimizer)
    expected = oracle(problem, rule, lam, delta, schedule, mu)
    assert 0 < np.count_nonzero(expected) < expected.size, "the test must see the threshold at work"
    np.testing.assert_allclose(problem.weight, expected, rtol=0, atol=1e-11)


def test_the_two_forms_of_adabreg_and_of_momentum_differ() -> None:
    found = {}
    for rule, (direction, _) in RULES.items():
        problem = Problem()
        optimizer = problem.optimizer(direction=direction, lam=0.05, lr=0.01)
        for _ in range(50):
            problem.step(optimizer)
        found[rule] = problem.weight
    assert np.abs(found["adam"] - found["uncorrected"]).max() > 1e-3
    assert np.abs(found["ema"] - found["heavy_ball"]).max() > 1e-3


# ---- lambda = 0, delta = 1: what is left is SGD and Adam -------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "twin", "tolerance"),
    (
        ("plain", torch.optim.SGD, 1e-15),
        ("heavy_ball", partial(torch.optim.SGD, momentum=0.9), 1e-14),
        ("adam", partial(torch.optim.Adam, betas=(0.9, 0.999)), 1e-13),
    ),
)
def test_without_regulariser_it_is_sgd_and_adam(rule: str, twin: Callable, tolerance: float) -> None:
    ours, theirs = Problem(), Problem()
    optimizer = ours.optimizer(direction=RULES[rule][0], lr=0.01)
    other = twin([theirs.layer.parameter], lr=0.01)
    for _ in range(200):
        ours.step(optimizer)
        theirs.step(other)
        np.testing.assert_allclose(ours.weight, theirs.weight, rtol=0, atol=tolerance)


def test_without_regulariser_the_ema_is_sgd_with_an_averaged_buffer_from_zero() -> None:
    ours, theirs = Problem(), Problem()
    optimizer = ours.optimizer(direction=RULES["ema"][0], lr=0.01)
    weight, buffer = theirs.weight.copy(), np.zeros_like(theirs.weight)
    for _ in range(200):
        ours.step(optimizer)
        gradient = theirs.gradient(weight)
        buffer = 0.9 * buffer + 0.1 * gradient
        weight = weight - 0.01 * buffer
        np.testing.assert_allclose(ours.weight, weight, rtol=0, atol=1e-14)


def test_decay_without_regulariser_is_adamws() -> None:
    ours, theirs = Problem(), Problem()
    optimizer = ours.optimizer(direction=RULES["adam"][0], lr=0.01, weight_decay=0.1)
    other = torch.optim.AdamW([theirs.layer.parameter], lr=0.01, weight_decay=0.1)
    for _ in range(200):
        ours.step(optimizer)
        theirs.step(other)
    np.testing.assert_allclose(ours.weight, theirs.weight, rtol=0, atol=1e-12)


def test_ema_is_no_sgd_with_dampening_whose_first_gradient_is_undamped() -> None:
    ours, theirs = Problem(), Problem()
    optimizer = ours.optimizer(direction=RULES["ema"][0], lr=0.1)
    other = torch.optim.SGD([theirs.layer.parameter], lr=0.1, momentum=0.9, dampening=0.1)
    for _ in range(100):
        ours.step(optimizer)
        theirs.step(other)
    assert np.abs(ours.weight - theirs.weight).max() > 1e-5


@pytest.mark.parametrize("rule", RULES)
def test_biases_and_norms_have_no_regulariser_and_no_dual(rule: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 1)).double()
    model = SparseModel(net, torch.zeros(2, 6, dtype=torch.float64))
    with torch.no_grad():
        net[0].bias.zero_()  # zero at the start, and no less active for it
    optimizer = MirrorDescent(model.groups(), model.layers, direction=RULES[rule][0], lam=10.0, lr=0.1)
    model.attach(optimizer, {})
    x = torch.randn(8, 6, dtype=torch.float64)
    before = {n: p.detach().clone() for n, p in net.named_parameters() if p.dim() == 1}
    for _ in range(3):
        model.zero_grad()
        (model(x) - x[:, :1]).square().mean().backward()
        optimizer.step()
    for name, parameter in net.named_parameters():
        if name in before:
            assert (parameter != before[name]).all(), name
            assert "dual" not in optimizer.state[parameter]


# ---- the dual ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", ("l1", "row"))
@pytest.mark.parametrize("rule", RULES)
def test_the_dual_is_a_subgradient_after_every_step(groups: str, rule: str) -> None:
    problem, lam, delta = Problem(n=12, outputs=1 if groups == "l1" else 8), 0.3, 0.7
    if groups == "row":
        problem.layer.assign(torch.from_numpy(problem.start * (np.arange(8) % 2)[:, None]))
    optimizer = problem.optimizer(
        direction=RULES[rule][0], regularizer=Regularizer(groups), lam=lam, delta=delta, lr=0.03
    )
    size = 1 if groups == "l1" else 12
    seen = set()
    for _ in range(60):
        problem.step(optimizer)
        w, v = problem.weight.reshape(-1, size), problem.dual.reshape(-1, size)
        norm = np.linalg.norm(w, axis=1)
        zero, bound = norm == 0, lam * math.sqrt(size)
        seen |= set(zero.tolist())
        assert (np.linalg.norm(v[zero], axis=1) <= bound * (1 + 1e-14)).all()
        expected = delta * (v[~zero] - bound * w[~zero] / norm[~zero, None])
        np.testing.assert_allclose(w[~zero], expected, rtol=0, atol=1e-14)
    assert seen == {True, False}


def test_adabreg_wakes_all_weights_at_once_whatever_their_gradients() -> None:
    net = nn.Sequential(nn.Linear(4, 1, bias=False)).double()
    model = SparseModel(net, torch.zeros(1, 4, dtype=torch.float64))
    (layer,) = model.layers
    layer.assign(torch.zeros(1, 4, dtype=torch.float64))
    optimizer = MirrorDescent(model.groups(), model.layers, direction=RULES["adam"][0], lam=0.5, lr=1e-3)
    model.attach(optimizer, {})
    slope = torch.tensor([[1.0, -3.0, 0.2, 50.0]], dtype=torch.float64)
    awake = []
    for _ in range(501):
        model.zero_grad()
        model(slope).sum().backward()
        optimizer.step()
        awake.append(int(layer.weight.count_nonzero()))
    assert awake[:500] == [0] * 500 and awake[500] == 4


# ---- moving lambda ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", ("l1", "row"))
@pytest.mark.parametrize("new", (0.1, 0.3, 0.6))
def test_repaired_duals_read_as_the_same_weights(groups: str, new: float) -> None:
    problem = Problem(n=12, outputs=1 if groups == "l1" else 8)
    if groups == "row":
        problem.layer.assign(torch.from_numpy(problem.start * (np.arange(8) % 2)[:, None]))
    optimizer = problem.optimizer(regularizer=Regularizer(groups), lam=0.3, lr=0.03)
    for _ in range(20):
        problem.step(optimizer)
    before: Tensor = problem.layer.weight.clone()
    optimizer.repair({problem.layer: new})
    optimizer.lam = {problem.layer: new}
    optimizer.read()
    torch.testing.assert_close(problem.layer.weight, before, rtol=0, atol=1e-14)
    assert torch.equal(problem.layer.weight != 0, before != 0)
