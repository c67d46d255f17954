"""SET and RigL against NumPy; counts exact for ever; what dies, grows and stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dstbench.methods.dynamic import SET, RigL
from dstbench.suite.model import SparseModel

BOTH = pytest.mark.parametrize("kind", [SET, RigL])


def attached(kind: type[SET], task, kernel: str = "masked", **fields) -> SET:
    method = kind(**fields)
    method.attach(SparseModel(task.build(0), task.example(), kernel=kernel), task.recipe, seed=0)
    method.setup(lambda batches=1, create_graph=False: [])
    return method


def with_recipe(task, **changes):
    return replace(task, recipe=replace(task.recipe, **changes))


def train(method: SET, task, steps: range, watch=lambda t: None) -> list[float]:
    losses, batches = [], task.batches("train", seed=0, start=steps.start)
    for t in steps:
        passed(method, task, t, next(batches), losses)
        method.step(t)
        watch(t)
    return losses


def passed(method: SET, task, t: int, batch, losses: list[float]) -> None:
    """All of step t before `method.step`."""
    method.model.zero_grad()
    for group in method.optimizer.param_groups:
        group["lr"] = method.lr(t)
    method.begin(t)
    loss = task.loss(method.model, batch)
    loss.backward()
    losses.append(float(loss.detach()))


def rewired(w, m, state, growth, fraction):
    """One update of one layer in NumPy: the new mask, weights and optimiser state."""
    n = int(m.sum())
    moved = int(fraction * n)
    order = np.argsort(-np.where(m, np.abs(w), -1.0).ravel(), kind="stable")
    keep = np.zeros(m.size, dtype=bool)
    keep[order[: n - moved]] = True
    grown = np.argsort(-np.where(keep, -np.inf, growth.ravel()), kind="stable")[:moved]
    new = keep.copy()
    new[grown] = True
    new = new.reshape(m.shape)
    return new, np.where(new & m, w, 0.0), {k: np.where(new & m, v, 0.0) for k, v in state.items()}


@BOTH
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_one_update_equals_the_oracle(images, kind: type[SET], optimizer: str) -> None:
    task = with_recipe(images, optimizer=optimizer, steps=40)
    method = attached(kind, task, sparsity=0.6, period=4, allocation="uniform")
    train(method, task, range(4))
    passed(method, task, 4, next(task.batches("train", 0, start=4)), [])
    rng = torch.Generator()
    rng.set_state(method.rng.get_state())
    fraction = 0.15 * (1 + np.cos(np.pi * 4 / 30))
    expected = []
    for layer in method.layers:
        growth = layer.grad.abs() if kind is RigL else torch.rand(layer.shape, generator=rng)
        state = {k: v.numpy().copy() for k, v in layer.state.items()}
        old = layer.weight.numpy().copy(), layer.forward_mask.numpy().copy()
        expected.append((*rewired(*old, state, growth.numpy(), fraction), old[1]))
    method.step(4)
    for layer, (mask, weight, state, before) in zip(method.layers, expected, strict=True):
        assert np.array_equal(layer.forward_mask.numpy(), mask) and layer.grad_mask is layer.forward_mask
        assert np.array_equal(layer.weight.numpy(), weight)
        assert state.keys() == layer.state.keys() and state
        assert all(np.array_equal(layer.state[k].numpy(), state[k]) for k in state)
        grown = mask & ~before
        assert not weight[grown].any()
    assert any((mask & ~before).any() for mask, _, _, before in expected)


@BOTH
def test_counts_stay_exact_over_a_thousand_updates_of_zeros(blobs, kind: type[SET]) -> None:
    task = with_recipe(blobs, steps=10**6)
    method = attached(kind, task, sparsity=0.9, period=1)
    counted = [layer.nnz() for layer in method.layers]
    for layer in method.layers:
        layer.assign(torch.zeros(layer.shape))
    seen = [layer.forward_mask.clone() for layer in method.layers]
    for t in range(1, 1001):
        method.model.zero_grad()
        method.begin(t)
        for layer in method.layers:
            layer.parameter.grad = torch.zeros(layer.shape)
        method.step(t)
        assert [int(layer.forward_mask.sum()) for layer in method.layers] == counted
        seen = [s | layer.forward_mask for s, layer in zip(seen, method.layers, strict=True)]
    if kind is SET:
        assert all(s.all() for s in seen)


@BOTH
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_state_lives_on_the_mask_alone(blobs, kind: type[SET], optimizer: str) -> None:
    decay = {"sgd": 0.1, "adam": 0.1}
    task = with_recipe(blobs, optimizer=optimizer, steps=60, weight_decay=decay)
    method = attached(kind, task, period=3)
    before = {layer.name: layer.forward_mask for layer in method.layers}

    def watch(t: int) -> None:
        for layer in method.layers:
            new = layer.forward_mask & ~before[layer.name]
            for tensor in (layer.weight, *layer.state.values()):
                assert not tensor[~layer.forward_mask].any() and not tensor[new].any()
            assert method.due(t) or not new.any()
            before[layer.name] = layer.forward_mask

    losses = train(method, task, range(60), watch)
    assert losses[-1] < losses[0]


@BOTH
@pytest.mark.parametrize("kernel", ["masked", "compact"])
def test_a_weight_dropped_and_grown_at_once_keeps_value_and_momentum(blobs, kind: type[SET], kernel: str) -> None:
    task = with_recipe(blobs, steps=400)
    method = attached(kind, task, kernel, sparsity=0.0, period=5, alpha=1.0)
    train(method, task, range(5))
    passed(method, task, 5, next(task.batches("train", 0, start=5)), [])
    before = [(layer.weight.clone(), layer.state["momentum_buffer"].clone()) for layer in method.layers]
    method.step(5)
    for layer, (weight, momentum) in zip(method.layers, before, strict=True):
        assert layer.nnz() == layer.numel and momentum.any()
        assert torch.equal(layer.weight, weight) and torch.equal(layer.state["momentum_buffer"], momentum)


@BOTH
def test_the_update_takes_the_place_of_the_step(blobs, kind: type[SET]) -> None:
    method = attached(kind, blobs, period=4)
    stepped, step = [], method.optimizer.step
    method.optimizer.step = lambda: (stepped.append(t), step())  # type: ignore[method-assign,assignment]
    for t in range(60):
        train(method, blobs, range(t, t + 1))
    assert sorted({*range(60)} - {*stepped}) == list(range(4, 45, 4))


def test_the_gradient_is_dense_only_where_rigl_needs_it(blobs) -> None:
    for kind in (SET, RigL):
        method, dense = attached(kind, blobs), []
        assert blobs.recipe.period == 4
        for t in range(60):
            method.begin(t)
            assert method.model.density == pytest.approx(0.1, abs=1 / method.model.maskable)
            if method.model.cost().dense_gradient:
                dense.append(t)
                assert all(layer.grad_mask is None for layer in method.layers)
            for layer in method.layers:
                layer.parameter.grad = torch.zeros(layer.shape)
            method.step(t)
            assert all(layer.grad_mask is layer.forward_mask for layer in method.layers)
        assert dense == ([] if kind is SET else list(range(4, 45, 4)))


def test_rigl_grows_where_the_gradient_of_an_inactive_weight_is_largest(blobs) -> None:
    method = attached(RigL, blobs, period=1, sparsity=0.9)
    method.begin(1)
    layer = method.layers[0]
    wanted = (~layer.forward_mask).nonzero()[7].tolist()
    for other in method.layers:
        other.parameter.grad = torch.zeros(other.shape)
    layer.parameter.grad[tuple(wanted)] = -5.0
    method.step(1)
    assert layer.forward_mask[tuple(wanted)] and layer.weight[tuple(wanted)] == 0


def test_the_drop_fraction_falls_to_nothing(images) -> None:
    task = with_recipe(images, steps=100)
    method = attached(SET, task, sparsity=0.5, period=1)
    moved = []
    for t in range(1, 100):
        for layer in method.layers:
            layer.parameter.grad = torch.zeros(layer.shape)
            layer.assign(torch.ones(layer.shape))
        before = [layer.forward_mask for layer in method.layers]
        method.step(t)
        changed = sum(int((y.forward_mask & ~b).sum()) for y, b in zip(method.layers, before, strict=True))
        moved.append(changed / sum(layer.nnz() for layer in method.layers))
    assert 0.1 < np.mean(moved[:10]) < 0.3 and np.mean(moved[60:74]) < 0.02 and not any(moved[74:])


@BOTH
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_both_storages_train_alike(images, kind: type[SET], optimizer: str) -> None:
    task = with_recipe(images, optimizer=optimizer, steps=40)
    methods = [attached(kind, task, kernel, sparsity=0.7, period=5) for kernel in ("masked", "compact")]
    masked, compact = (train(method, task, range(30)) for method in methods)
    assert masked == pytest.approx(compact, rel=1e-4)
    for a, b in zip(methods[0].layers, methods[1].layers, strict=True):
        assert torch.equal(a.forward_mask, b.forward_mask)


@pytest.mark.parametrize(
    ("fields", "text"),
    [({"alpha": 1.5}, "set: alpha is 1.5"), ({"stop": -1}, "set: stop is -1"), ({"period": -2}, "set: period is -2")],
)
def test_bad_fields(fields, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SET(**fields)
