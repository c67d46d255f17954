"""ML LinBreg: which steps are fine, what is frozen, and what theory proves across both levels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dstbench.methods.bregman import LinBreg, MLLinBreg
from dstbench.methods.mirror import MirrorDescent
from dstbench.suite.model import SparseModel
from dstbench.suite.recipe import Recipe
from nets import active, begin, recipe, train


def test_without_coarse_steps_it_is_linbreg() -> None:
    for momentum in ("", "ema", "heavy_ball"):
        one, other = LinBreg(momentum=momentum), MLLinBreg(m=0, momentum=momentum)
        models = begin(one), begin(other)
        assert train(one, models[0]) == train(other, models[1])
        for a, b in zip(models[0].layers, models[1].layers, strict=True):
            assert torch.equal(a.weight, b.weight) and torch.equal(a.state["dual"], b.state["dual"])


@pytest.mark.parametrize(
    ("order", "m", "steps", "fine"),
    (
        ("coarse_first", 3, 10, [3, 7, 9]),
        ("fine_first", 3, 10, [0, 4, 8, 9]),
        ("coarse_first", 4, 10, [4, 9]),
        ("coarse_first", 0, 4, [0, 1, 2, 3]),
        ("coarse_first", 99, 5, [4]),
    ),
)
def test_which_steps_are_fine(order: str, m: int, steps: int, fine: list[int]) -> None:
    method = MLLinBreg(m=m, order=order)
    begin(method, steps=steps)
    assert [t for t in range(steps) if method.fine(t)] == fine


def test_m_follows_the_period_of_topology_updates() -> None:
    for steps, expected in ((6000, 99), (480, 15), (29, 3)):
        method = MLLinBreg()
        begin(method, steps=steps)
        assert method.coarse_steps == expected


def test_what_each_level_declares() -> None:
    method = MLLinBreg(m=4, sparsity=0.8)
    model = begin(method)
    for t in range(10):
        train(method, model, t, t + 1)
        for layer in model.layers:
            assert layer.forward_mask is not None
            if method.fine(t):
                assert layer.grad_mask is None and torch.equal(layer.forward_mask, layer.weight != 0)
            else:
                assert layer.grad_mask is layer.forward_mask


@pytest.mark.parametrize("kernel", ("masked", "compact"))
@pytest.mark.parametrize("momentum", ("", "ema", "heavy_ball"))
def test_frozen_duals_and_momentum_do_not_move(kernel: str, momentum: str) -> None:
    method = MLLinBreg(m=9, scale=0.3, momentum=momentum)
    model = begin(method, kernel, weight_decay={"sgd": 0.1, "adam": 0.1})
    train(method, model, 0, 10)
    off = [layer.weight == 0 for layer in model.layers]
    before = [{k: v.clone() for k, v in layer.state.items()} for layer in model.layers]
    train(method, model, 10, 19)
    for layer, frozen, was in zip(model.layers, off, before, strict=True):
        assert not layer.weight[frozen].any() and set(was) == {"dual", "momentum"} - (
            {"momentum"} if not momentum else set()
        )
        for name, tensor in layer.state.items():
            assert torch.equal(tensor[frozen], was[name][frozen]), f"{layer.name}: {name} moved while frozen"
            assert not torch.equal(tensor[~frozen], was[name][~frozen])
        assert was["dual"][frozen].any()


def test_momentum_off_the_support_decays_if_asked() -> None:
    method = MLLinBreg(m=9, scale=0.3, momentum="heavy_ball", off_support="decay")
    model = begin(method)
    train(method, model, 0, 10)
    off = [layer.weight == 0 for layer in model.layers]
    before = [layer.state["momentum"].clone() for layer in model.layers]
    train(method, model, 10, 17)
    for layer, frozen, was in zip(model.layers, off, before, strict=True):
        torch.testing.assert_close(layer.state["momentum"][frozen], was[frozen] * 0.9**7, rtol=1e-13, atol=0)


def test_zeros_on_the_support_stay_active_or_not() -> None:
    """With a large lambda weights cross zero within the coarse steps."""
    for support in ("fixed", "shrinking"):
        method = MLLinBreg(m=30, support=support, control="fixed", lam=0.05, start_density=0.5)
        model = begin(method)
        counted = []
        for t in range(30):
            train(method, model, t, t + 1)
            counted.append(sum(layer.nnz() for layer in model.layers))
        if support == "fixed":
            assert len(set(counted)) == 1 and active(model) < counted[0]
        else:
            assert counted == sorted(counted, reverse=True) and counted[-1] < counted[0]
            assert counted[-1] == active(model)


def quadratic(
    kind: type[LinBreg], seed: int = 0, n: int = 40, **options: Any
) -> tuple[LinBreg, SparseModel, Tensor, Tensor]:
    """One linear layer (1, n) and least squares with 60 rows, lambda fixed."""
    rng = torch.Generator().manual_seed(seed)
    a = torch.randn(60, n, generator=rng, dtype=torch.float64) / 60**0.5
    b = torch.randn(60, 1, generator=rng, dtype=torch.float64) * 3
    method = kind(control="fixed", start_density=0.3, **options)
    model = SparseModel(nn.Sequential(nn.Linear(n, 1, bias=False)).double(), a)
    still = {"sgd": 0.0, "adam": 0.0}
    method.attach(model, Recipe(steps=401, batch=60, lr={"sgd": 0.1, "adam": 0.1}, weight_decay=still), seed)
    method.setup(lambda batches=1, create_graph=False: [])
    return method, model, a, b


def descend(method: LinBreg, model: SparseModel, a: Tensor, b: Tensor, t: int, tau: float) -> float:
    for group in method.optimizer.param_groups:
        group["lr"] = tau
    method.begin(t)
    model.zero_grad()
    loss = 0.5 * (model(a) - b).square().sum()
    loss.backward()
    method.step(t)
    return float(loss.detach())


def test_coarse_steps_are_linbreg_on_the_restricted_problem() -> None:
    method, model, a, b = quadratic(MLLinBreg, m=200, lam=0.2)
    (layer,) = model.layers
    on = layer.forward_mask[0]  # type: ignore[index]
    small = SparseModel(nn.Sequential(nn.Linear(int(on.sum()), 1, bias=False)).double(), a[:, on])
    small.layers[0].assign(layer.weight[:, on])
    twin = MirrorDescent(small.groups(), small.layers, lam=0.2, lr=0.1)
    for t in range(200):
        descend(method, model, a, b, t, 0.1)
        small.zero_grad()
        (0.5 * (small(a[:, on]) - b).square().sum()).backward()
        twin.step()
    torch.testing.assert_close(layer.weight[:, on], small.layers[0].weight, rtol=0, atol=1e-14)
    assert not layer.weight[:, ~on].any() and not layer.state["dual"][:, ~on].any()


@pytest.mark.parametrize("m", (1, 4, 9))
@pytest.mark.parametrize("order", ("coarse_first", "fine_first"))
def test_every_step_of_either_level_decreases_the_loss_and_keeps_the_subgradient(m: int, order: str) -> None:
    """By the Bregman distances, at 1.9 over the smoothness."""
    method, model, a, b = quadratic(MLLinBreg, m=m, lam=0.4, order=order, seed=m)
    (layer,) = model.layers
    tau = 1.9 / float(torch.linalg.matrix_norm(a.T @ a, 2))

    def distance(v: Tensor, x: Tensor, y: Tensor) -> float:
        def potential(w: Tensor) -> Tensor:
            return 0.4 * w.abs().sum() + w.square().sum() / 2

        return float(potential(x) - potential(y) - (v * (x - y)).sum())

    descend(method, model, a, b, 0, tau)
    losses = []
    for t in range(1, 80):
        w, v = layer.weight.clone(), layer.state["dual"].clone()
        loss = descend(method, model, a, b, t, tau)
        new, moved = layer.weight.clone(), layer.state["dual"].clone()
        after = 0.5 * float((a @ new.T - b).square().sum())
        bound = loss - distance(moved, w, new) / tau - (1 / tau - 1.9 / tau) * distance(v, new, w)
        assert after <= min(loss, bound) + 1e-10 * max(1.0, loss)
        assert (moved.abs()[new == 0] <= 0.4 + 1e-14).all()
        torch.testing.assert_close(new, moved - moved.clamp(-0.4, 0.4), rtol=0, atol=1e-14)
        losses.append(loss)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("m", (0, 3, 9))
def test_the_first_weight_wakes_at_the_same_fine_step(m: int) -> None:
    """From zero, at fine step floor(lambda / (tau max|g|)) + 1, whatever m."""
    method, model, a, b = quadratic(MLLinBreg, m=m, lam=0.5)
    (layer,) = model.layers
    layer.assign(torch.zeros_like(layer.weight))
    method.declare()
    clock = math.floor(0.5 / (0.05 * float((a.T @ b).abs().max()))) + 1
    awake = 0
    for t in range(clock * (m + 1)):
        descend(method, model, a, b, t, 0.05)
        awake += bool(layer.weight.any())
    assert clock > 1 and awake == 1


@pytest.mark.parametrize(
    ("s", "m", "ratio"),
    (
        (0.05, 0, 0.367),
        (0.05, 4, 0.113),
        (0.05, 99, 0.053),
        (0.1, 0, 0.4),
        (0.1, 9, 0.13),
        (0.2, 24, 0.211),
        (0.2, 4, 0.253),
    ),
)
def test_flops_of_a_cycle_are_the_papers(s: float, m: int, ratio: float) -> None:
    """(3 f_S m + 2 f_S + f_D) / (m + 1) over 3 f_D, and the figures of the table in docs/bregman.md."""
    net = nn.Sequential(nn.Linear(20, 40, bias=False), nn.Linear(40, 20, bias=False))
    model = SparseModel(net, torch.zeros(1, 20))
    dense = model.cost().papers
    method = MLLinBreg(m=m, sparsity=1 - s, start_density=s)
    method.attach(model, recipe(steps=1000), seed=0)
    method.setup(lambda batches=1, create_graph=False: [])
    spent = 0.0
    for t in range(m + 1):
        method.begin(t)
        spent += model.cost().papers
    assert spent / dense / (m + 1) == pytest.approx((3 * s * m + 2 * s + 1) / (3 * (m + 1)), rel=1e-12)
    assert spent / dense / (m + 1) == pytest.approx(ratio, abs=5.1e-4)
