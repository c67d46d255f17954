"""The controls against NumPy: the prox without a memory, the schedule without a prox, what they share with theirs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dstbench.methods.bregman import LinBreg, MLLinBreg
from dstbench.methods.controls import MaskedSGD, ProximalGradient, ProxSGD
from dstbench.suite import registry
from dstbench.suite.model import SparseModel
from dstbench.suite.recipe import Recipe
from nets import STEPS, active, backward, begin, train
from quadratics import Array, Problem
from test_mirror import soft

MOMENTA = ("", "ema", "heavy_ball")
METHODS: dict[str, tuple[type[LinBreg], dict[str, Any]]] = {
    "prox_sgd": (ProxSGD, {}),
    "prox_sgd heavy ball": (ProxSGD, {"momentum": "heavy_ball"}),
    "prox_sgd fixed": (ProxSGD, {"control": "fixed", "lam": 0.01, "delta": 0.5}),
    "prox_sgd multiplicative": (ProxSGD, {"control": "multiplicative", "lam": 0.01}),
    "prox_sgd rows": (ProxSGD, {"regularizer": "row", "sparsity": 0.6}),
    "masked_sgd": (MaskedSGD, {"m": 4}),
    "masked_sgd fine first": (MaskedSGD, {"m": 4, "order": "fine_first"}),
    "masked_sgd hold": (MaskedSGD, {"m": 4, "momentum": "heavy_ball"}),
    "masked_sgd decay": (MaskedSGD, {"m": 4, "momentum": "ema", "off_support": "decay"}),
}


def make(name: str, **options: Any) -> LinBreg:
    kind, own = METHODS[name]
    return kind(**{**own, **options})


class Direction:
    """What a step takes off the weights before prox and decay, in NumPy; `off_support` as in ML LinBreg."""

    def __init__(self, momentum: str, n: int, off_support: str = "hold") -> None:
        self.momentum, self.off_support = momentum, off_support
        self.buffer, self.first = np.zeros((1, n)), True

    def __call__(self, g: Array, lr: float, on: Array | bool = True) -> Array:
        if not self.momentum:
            return lr * g
        ema = self.momentum == "ema"
        new = 0.9 * self.buffer + (0.1 * lr * g if ema else g)
        off = self.buffer * (0.9 if self.off_support == "decay" else 1.0)
        self.buffer = np.where(on, g if self.first and not ema else new, off)
        self.first = False
        return self.buffer if ema else lr * self.buffer


def attached(method: LinBreg, steps: int, decay: float = 0.0, **problem: Any) -> Problem:
    """The quadratic with the method on it, its weights those that the method starts from."""
    found = Problem(**problem)
    weight_decay = {"sgd": decay, "adam": decay}
    recipe = Recipe(steps=steps, batch=60, lr={"sgd": 0.01, "adam": 0.01}, weight_decay=weight_decay)
    method.attach(found.model, recipe, seed=0)
    method.setup(lambda batches=1, create_graph=False, temperature=1.0: [])
    return found


def step(method: LinBreg, problem: Problem, t: int) -> None:
    for group in method.optimizer.param_groups:
        group["lr"] = method.lr(t)
    method.begin(t)
    problem.model.zero_grad()
    residual = problem.model(torch.from_numpy(problem.a)) - torch.from_numpy(problem.b)
    (0.5 * residual.square().sum()).backward()
    method.step(t)


# ---- the optimiser ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("delta", "mu"), ((1.0, 0.0), (0.5, 0.1)))
def test_proximal_gradient_equals_its_formula(delta: float, mu: float) -> None:
    problem = Problem()
    optimizer = ProximalGradient(problem.model.groups(), problem.model.layers, lam=0.02, delta=delta, weight_decay=mu)
    problem.model.attach(optimizer, {})
    w = problem.start
    for t in range(200):
        lr = optimizer.param_groups[0]["lr"] = 0.1 / (1 + t // 50)
        problem.step(optimizer)
        w = soft(w - delta * lr * (problem.gradient(w) + mu * w), delta * 0.02)
        assert not optimizer.state[problem.layer.parameter], "no dual may last"
    assert 0 < np.count_nonzero(w) < w.size, "the test must see the threshold at work"
    np.testing.assert_allclose(problem.weight, w, rtol=0, atol=1e-13)


def test_without_a_threshold_it_is_sgd_on_all_parameters() -> None:
    ours, theirs = (nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = SparseModel(ours, x)
    pair = ProximalGradient(model.groups(), model.layers, lr=0.1), torch.optim.SGD(theirs.parameters(), lr=0.1)
    for _ in range(30):
        for net, optimizer in zip((model, theirs), pair, strict=True):
            net.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-15)


# ---- ProxSGD ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize(("delta", "decay"), ((1.0, 0.0), (0.5, 0.1)))
def test_fixed_lambda_is_thresholded_by_what_the_step_makes_of_a_gradient_of_one(
    momentum: str, delta: float, decay: float
) -> None:
    """The learning rate falls along the recipe's cosine, and the threshold with it."""
    method = ProxSGD(control="fixed", lam=0.5, delta=delta, momentum=momentum)
    problem = attached(method, 100, decay)
    w, direction = problem.weight, Direction(momentum, 50)
    lrs = np.array([method.lr(t) for t in range(100)])
    for t in range(100):
        past = 0.9 ** np.arange(t, -1, -1)
        size = {"": lrs[t], "ema": 0.1 * past @ lrs[: t + 1], "heavy_ball": lrs[t] * past.sum()}[momentum]
        w = delta * soft(w / delta - direction(problem.gradient(w), lrs[t]) - lrs[t] * decay * w, 0.5 * size)
        step(method, problem, t)
        np.testing.assert_allclose(problem.weight, w, rtol=0, atol=1e-13)
        assert np.array_equal(problem.layer.forward_mask.numpy(), problem.weight != 0)
    assert lrs[-1] < 0.01 * lrs[0] and 0 < np.count_nonzero(w) < w.size


@pytest.mark.parametrize("momentum", MOMENTA)
def test_it_solves_the_lasso_whatever_the_momentum(momentum: str) -> None:
    """Optimality of L + lambda |w|: g = -lambda sign(w) where w is not zero, |g| <= lambda elsewhere."""
    method = ProxSGD(control="fixed", lam=0.3, momentum=momentum, scale=3.0)
    problem = attached(method, 1500)
    for t in range(1500):
        step(method, problem, t)
    w = problem.weight
    g, on = problem.gradient(w), w != 0
    assert 5 < on.sum() < 45
    np.testing.assert_allclose(g[on], -0.3 * np.sign(w[on]), rtol=0, atol=1e-6)
    assert (np.abs(g) <= 0.3 + 1e-6).all()


@pytest.mark.parametrize("momentum", MOMENTA)
def test_the_quantile_is_the_threshold_itself(momentum: str) -> None:
    """The largest |w - step| that goes, as the density curve counts; off the support nothing is remembered."""
    method = ProxSGD(sparsity=0.7, momentum=momentum, ramp=0.5)
    problem = attached(method, 60)
    w, direction = problem.weight, Direction(momentum, 50)
    for t in range(60):
        v = w - direction(problem.gradient(w), method.lr(t))
        k = round(50 * min(0.3, 0.15 * 2 ** ((t + 1) / 30)))
        threshold = np.sort(np.abs(v).ravel())[::-1][k]
        w = soft(v, threshold)
        step(method, problem, t)
        np.testing.assert_allclose(problem.weight, w, rtol=0, atol=1e-13)
        assert np.count_nonzero(problem.weight) == k
        np.testing.assert_allclose(method.memory["lam"].numpy(), [threshold], rtol=1e-12)


def test_the_multiplicative_controller_moves_the_weight_of_the_regulariser() -> None:
    """`steps` 40 make a period of 4: lambda moves at steps 3, 7, ... and the threshold is lr times it at once."""
    method = make("prox_sgd multiplicative", sparsity=0.7)
    problem = attached(method, 40)
    w, lam = problem.weight, 0.01
    for t in range(12):
        v = w - method.lr(t) * problem.gradient(w)
        if t % 4 == 3:
            gap = np.count_nonzero(w) / 50 - 0.3
            lam = lam * (1 + gap) if gap > 0 else lam / (1 - gap)
        w = soft(v, method.lr(t) * lam)
        step(method, problem, t)
        np.testing.assert_allclose(problem.weight, w, rtol=0, atol=1e-13)
    assert lam > 0.01 and method.memory["lam"].tolist() == [pytest.approx(lam)]


def test_with_lambda_zero_it_is_linbreg() -> None:
    losses = []
    for kind in (LinBreg, ProxSGD):
        method = kind(control="fixed", lam=0.0, start_density=0.5)
        losses.append(train(method, begin(method)))
    np.testing.assert_allclose(*losses, rtol=0, atol=1e-12)


def test_a_weight_that_is_zero_forgets_what_linbreg_remembers() -> None:
    """One weight, gradient -1, learning rate 0.1: at lambda 0.55 LinBreg wakes it at step 6, ProxSGD at once; at 2.05
    LinBreg at step 21, ProxSGD never."""
    woken: dict[tuple[type[LinBreg], float], int] = {}
    for kind in (LinBreg, ProxSGD):
        for lam in (0.55, 2.05):
            method = kind(control="fixed", lam=lam)
            model = SparseModel(nn.Sequential(nn.Linear(1, 1, bias=False)).double(), torch.ones(1, 1).double())
            method.attach(model, Recipe(steps=30, batch=1, lr={"sgd": 0.1}, weight_decay={"sgd": 0.0}), seed=0)
            method.lr = lambda t: 0.1  # type: ignore[method-assign]
            method.setup(lambda batches=1, create_graph=False, temperature=1.0: [])
            (layer,) = model.layers
            layer.assign(torch.zeros(1, 1))
            for t in range(30):
                method.optimizer.param_groups[0]["lr"] = method.lr(t)
                method.begin(t)
                model.zero_grad()
                (-model(torch.ones(1, 1).double())).sum().backward()
                method.step(t)
                if layer.weight.any():
                    woken[kind, lam] = t + 1
                    break
    assert woken == {(LinBreg, 0.55): 6, (ProxSGD, 0.55): 1, (LinBreg, 2.05): 21}


@pytest.mark.parametrize("kernel", ("masked", "compact"))
@pytest.mark.parametrize("momentum", MOMENTA)
def test_nothing_but_momentum_lives_off_the_support(kernel: str, momentum: str) -> None:
    method = ProxSGD(momentum=momentum)
    model = begin(method, kernel)
    for t in range(12):
        train(method, model, t, t + 1)
        assert active(model) == round(method.density(t + 1) * model.maskable) == sum(y.nnz() for y in model.layers)
        for layer in model.layers:
            assert layer.grad_mask is None and set(layer.state) == ({"momentum"} if momentum else set())
            assert not layer.weight[~layer.forward_mask].any()


# ---- MaskedSGD -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("order", ("coarse_first", "fine_first"))
@pytest.mark.parametrize("off_support", ("hold", "decay"))
def test_five_cycles_equal_the_oracle(momentum: str, order: str, off_support: str) -> None:
    curve: dict[str, Any] = {"sparsity": 0.7, "start_density": 0.24, "ramp": 0.5}
    method = MaskedSGD(m=3, order=order, momentum=momentum, off_support=off_support, scale=2.0, **curve)
    problem, rng = attached(method, 20, decay=0.1), np.random.default_rng(0)
    w, on = problem.weight, problem.layer.forward_mask.numpy()
    direction, seen = Direction(momentum, 50, off_support), []
    for t in range(20):
        fine = t % 4 == (3 if order == "coarse_first" else 0) or t == 19
        problem.b = 20 * rng.standard_normal((60, 1))  # anew in each step, so that weights come and go
        lr, g = method.lr(t), problem.gradient(w)
        moved = w - direction(g, lr, True if fine else on) - lr * 0.1 * w
        if fine:
            k = round(50 * min(0.3, 0.24 * (0.3 / 0.24) ** ((t + 1) / 10)))
            on = np.abs(moved) >= np.sort(np.abs(moved).ravel())[-k]
            seen.append(on)
        w = np.where(on, moved, 0.0)
        step(method, problem, t)
        np.testing.assert_allclose(problem.weight, w, rtol=0, atol=1e-13)
        assert np.array_equal(problem.layer.forward_mask.numpy(), on)
        if momentum:
            np.testing.assert_allclose(
                problem.layer.state["momentum"].numpy(), direction.buffer, rtol=1e-13, atol=1e-13
            )
    pairs = list(pairwise(seen))
    assert len(seen) >= 5 and any((a & ~b).any() for a, b in pairs) and any((b & ~a).any() for a, b in pairs)


def test_what_stays_is_ranked_over_all_layers() -> None:
    method = MaskedSGD(m=4, sparsity=0.8)
    model = begin(method)
    train(method, model, 0, 4)
    for group in method.optimizer.param_groups:
        group["lr"] = method.lr(4)
    method.begin(4)
    backward(model, 4)
    lr = method.lr(4)
    moved = [(y.weight * (1 - 5e-4 * lr) - lr * y.grad).numpy() for y in model.layers]
    method.step(4)
    k = round(method.density(5) * model.maskable)
    bound = np.sort(np.abs(np.concatenate([w.ravel() for w in moved])))[-k]
    assert all((np.abs(w) >= bound).any() for w in moved), "no layer needs the exception here"
    for layer, w in zip(model.layers, moved, strict=True):
        np.testing.assert_allclose(layer.weight.numpy(), np.where(np.abs(w) >= bound, w, 0), rtol=0, atol=1e-15)


def still(method: LinBreg, t: int, weights: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Step t without any gradient, from the weights that are made of each Layer's own."""
    method.begin(t)
    for layer in method.layers:
        layer.assign(weights(layer.weight))
    for parameter in method.model.net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    method.step(t)


def test_a_layer_of_small_weights_keeps_its_largest() -> None:
    method = MaskedSGD(m=0, sparsity=0.95)  # 105 weights, of 188 in the other two layers
    model = begin(method)
    drawn = {y.shape: torch.rand(y.shape, generator=method.rng, dtype=torch.float64) + 1 for y in model.layers}
    small = model.layers[1]
    still(method, 0, lambda w: drawn[w.shape] * (1e-9 if w.shape == small.shape else -1))
    assert small.forward_mask.nonzero().tolist() == [list(np.unravel_index(drawn[small.shape].argmax(), small.shape))]
    assert sum(y.nnz() for y in model.layers) == round(method.density(1) * model.maskable)


def test_a_weight_of_zero_counts_like_any_other() -> None:
    """No gradient, no weight: what is kept is zero, and the number is right."""
    method = MaskedSGD(m=2, sparsity=0.8)
    model = begin(method)
    for t in range(6):
        still(method, t, torch.zeros_like)
    assert active(model) == 0 and sum(y.nnz() for y in model.layers) == round(method.density(6) * model.maskable)


@pytest.mark.parametrize("kernel", ("masked", "compact"))
@pytest.mark.parametrize("momentum", ("", "heavy_ball"))
def test_coarse_steps_remove_nothing_and_move_nothing_that_is_frozen(kernel: str, momentum: str) -> None:
    method = MaskedSGD(m=9, momentum=momentum)
    model = begin(method, kernel)
    train(method, model, 0, 10)
    masks = [layer.forward_mask for layer in model.layers]
    before = [{k: v.clone() for k, v in layer.state.items()} for layer in model.layers]
    for t in range(10, 19):
        train(method, model, t, t + 1)
        for layer, mask, was in zip(model.layers, masks, before, strict=True):
            assert layer.forward_mask is layer.grad_mask is mask and not layer.weight[~mask].any()
            assert set(layer.state) == ({"momentum"} if momentum else set())
            for name, tensor in layer.state.items():
                assert torch.equal(tensor[~mask], was[name][~mask]) and tensor[~mask].any()


@settings(max_examples=20)
@given(st.floats(0.0, 0.99), st.integers(0, 6), st.floats(0.0, 0.9), st.sampled_from(("coarse_first", "fine_first")))
def test_the_count_is_that_of_the_curve_after_every_fine_step(sparsity: float, m: int, ramp: float, order: str) -> None:
    method = MaskedSGD(sparsity=sparsity, m=m, ramp=ramp, order=order)
    model = begin(method, steps=12)
    for t in range(12):
        before = [layer.nnz() for layer in model.layers]
        train(method, model, t, t + 1)
        now = [layer.nnz() for layer in model.layers]
        if method.fine(t):
            assert sum(now) == max(3, round(method.density(t + 1) * model.maskable)) and min(now) >= 1
        else:
            assert now == before
    assert sum(now) == max(3, round((1 - sparsity) * model.maskable))


# ---- what they share with theirs -------------------------------------------------------------------------------------


def perceptron(method: LinBreg) -> SparseModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Flatten(), nn.Linear(72, 20), nn.ReLU(), nn.Linear(20, 4)).double()
    model = SparseModel(net, torch.zeros(1, 2, 6, 6, dtype=torch.float64))
    method.attach(model, Recipe(steps=STEPS, batch=8, lr={"sgd": 0.05, "adam": 0.01}), seed=3)
    method.setup(lambda batches=1, create_graph=False, temperature=1.0: [])
    return model


@pytest.mark.parametrize("options", ({}, {"order": "fine_first"}, {"m": 3, "ramp": 0.6}, {"allocation": "uniform"}))
def test_masked_sgd_costs_what_ml_linbreg_costs_in_every_step(options: dict[str, Any]) -> None:
    traces = []
    for kind in (MLLinBreg, MaskedSGD):
        method = kind(**{"m": 4, "sparsity": 0.8, **options})
        model, trace = perceptron(method), []
        masks = [layer.forward_mask.clone() for layer in model.layers]
        for t in range(STEPS):
            method.begin(t)
            cost = model.cost()
            trace.append((sum(y.nnz() for y in model.layers), round(cost.papers, 9), cost.dense_gradient, method.lr(t)))
            train(method, model, t, t + 1)
        traces.append((masks, trace))
    (first, ours), (other, theirs) = traces
    assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert ours == theirs and len({nnz for nnz, *_ in ours}) > 2


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", METHODS)
def test_the_same_losses_on_both_storages(name: str) -> None:
    losses = []
    for kernel in ("masked", "compact"):
        method = make(name)
        losses.append(train(method, begin(method, kernel)))
    np.testing.assert_allclose(*losses, rtol=0, atol=1e-9 if "rows" in name else 1e-12)
    assert np.mean(losses[0][-5:]) < np.mean(losses[0][:5]), "it must learn for this to mean something"


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", METHODS)
def test_resuming_is_bit_exact(name: str) -> None:
    whole = make(name)
    model = begin(whole)
    train(whole, model, stop=18)
    saved = copy.deepcopy((model.state(), whole.optimizer.state_dict(), whole.memory))
    expected = train(whole, model, start=18)
    again = make(name)
    fresh = begin(again, setup=False)
    fresh.load(saved[0])
    again.optimizer.load_state_dict(saved[1])
    again.memory.update(saved[2])
    assert train(again, fresh, start=18) == expected
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(model.layers, fresh.layers, strict=True))


# ---- hyper-parameters ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "gone"),
    ((ProxSGD, {"repair"}), (MaskedSGD, {"control", "lam", "regularizer", "delta", "repair", "scope", "support"})),
)
def test_what_makes_no_sense_is_no_hyper_parameter(kind: type[LinBreg], gone: set[str]) -> None:
    parent = kind.__mro__[1]
    assert {*parent().hyperparameters()} - {*kind().hyperparameters()} == gone
    for name in gone:
        value = getattr(parent(), name)
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            kind(**{name: value})
        with pytest.raises(registry.RegistryError, match=f"{kind.name} has no field '{name}'"):
            registry.method(kind.name, **{name: value})


@pytest.mark.parametrize(
    ("make", "text"),
    (
        (lambda: ProxSGD(lam=-1.0), "prox_sgd: lam is -1.0"),
        (lambda: ProxSGD(control="quantil"), "prox_sgd: control is 'quantil'.*did you mean 'quantile'"),
        (lambda: MaskedSGD(m=-2), "m is -2"),
        (lambda: MaskedSGD(momentum="nag"), "masked_sgd: momentum is 'nag'"),
        (lambda: replace(MaskedSGD(), order="fine"), "order is 'fine'"),
    ),
)
def test_bad_fields(make: Callable[[], LinBreg], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()
