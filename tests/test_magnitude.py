"""Gradual magnitude pruning: counts by Zhu and Gupta's formula, in every window exactly on target."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dstbench.methods.magnitude import Magnitude
from dstbench.suite.model import SparseModel


def attached(task, kernel: str = "masked", **fields) -> Magnitude:
    method = Magnitude(**fields)
    method.attach(SparseModel(task.build(0), task.example(), kernel=kernel), task.recipe, seed=0)
    method.setup(lambda batches=1, create_graph=False: [])
    return method


def with_recipe(task, **changes):
    return replace(task, recipe=replace(task.recipe, **changes))


def train(method: Magnitude, task, steps: int, watch=lambda: None) -> list[float]:
    losses, batches = [], task.batches("train", seed=0)
    for t in range(steps):
        method.model.zero_grad()
        for group in method.optimizer.param_groups:
            group["lr"] = method.lr(t)
        method.begin(t)
        loss = task.loss(method.model, next(batches))
        loss.backward()
        method.step(t)
        losses.append(float(loss.detach()))
        del loss  # its graph would hold the parameter to its old length
        watch()
    return losses


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_counts_follow_the_formula(blobs, scope: str) -> None:
    task = with_recipe(blobs, steps=101)
    method = attached(task, scope=scope, sparsity=0.9, period=5)
    total, seen = method.model.maskable, []
    train(method, task, 101, lambda: seen.append(sum(layer.nnz() for layer in method.layers)))
    expected, now = [], total
    for t in range(101):
        if t in range(10, 76, 5):
            sparsity = 0.9 + (0.0 - 0.9) * (1 - (t - 10) / (13 * 5)) ** 3
            now = total * (1 - sparsity)
        expected.append(now)
    slack = 1 if scope == "global" else len(method.layers)
    assert np.abs(np.array(seen) - np.array(expected)).max() <= slack
    assert seen[-1] == round(0.1 * total)
    assert len(set(seen)) == 13  # dense, then 13 updates, of which the last two round to the same


@pytest.mark.parametrize("updates", [20, 40])
def test_as_many_updates_as_wanted_at_least(blobs, updates: int) -> None:
    method = attached(with_recipe(blobs, steps=480), updates=updates)
    pruned: list[float] = []
    method.prune = pruned.append  # type: ignore[method-assign]
    for t in range(480):
        method.begin(t)
    assert updates <= len(pruned) <= updates + 6 and pruned == sorted(pruned) and pruned[-1] == 1.0


def oracle(weights: list[np.ndarray], k: int) -> list[np.ndarray]:
    flat = np.concatenate([np.abs(w).ravel() for w in weights])
    mask = np.zeros(flat.size, dtype=bool)
    mask[np.argsort(-flat, kind="stable")[:k]] = True
    parts = np.split(mask, np.cumsum([w.size for w in weights])[:-1])
    return [part.reshape(w.shape) for part, w in zip(parts, weights, strict=True)]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_largest_weights_stay(images, scope: str) -> None:
    method = attached(images, scope=scope, sparsity=0.7)
    before = [layer.weight.numpy().copy() for layer in method.layers]
    method.prune(1.0)
    if scope == "global":
        expected = oracle(before, round(0.3 * method.model.maskable))
    else:
        expected = [oracle([w], layer.nnz())[0] for w, layer in zip(before, method.layers, strict=True)]
        assert all(abs(layer.nnz() - 0.3 * layer.numel) < 1 for layer in method.layers)
    for layer, mask, old in zip(method.layers, expected, before, strict=True):
        assert np.array_equal(layer.forward_mask.numpy(), mask) and layer.grad_mask is layer.forward_mask
        assert np.array_equal(layer.weight.numpy(), np.where(mask, old, 0))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.integers(1, 60),
    period=st.integers(0, 30),
    sparsity=st.sampled_from([0.0, 0.3, 0.9, 0.999]),
    scope=st.sampled_from(["global", "layer"]),
    window=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
)
def test_every_window_ends_on_target(blobs, steps, period, sparsity, scope, window) -> None:
    task = with_recipe(blobs, steps=steps)
    start, stop = window
    method = attached(task, sparsity=sparsity, period=period, scope=scope, start=start, stop=stop)
    for t in range(steps):
        method.begin(t)
    total = max(len(method.layers), round((1 - sparsity) * method.model.maskable))
    assert sum(layer.nnz() for layer in method.layers) == total
    assert all(layer.nnz() >= 1 for layer in method.layers)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_pruned_weights_stay_pruned_even_among_zeros(blobs, scope: str) -> None:
    method = attached(blobs, scope=scope, sparsity=0.9)
    for layer in method.layers:
        layer.assign(torch.zeros(layer.shape))
    alive = [torch.ones(layer.shape, dtype=torch.bool) for layer in method.layers]
    for progress in np.linspace(0, 1, 200):
        method.prune(float(progress))
        masks = [layer.forward_mask for layer in method.layers]
        assert all(not (m & ~a).any() for m, a in zip(masks, alive, strict=True))
        alive = masks
    assert sum(int(m.sum()) for m in alive) == round(0.1 * method.model.maskable)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_state_of_pruned_weights_is_zero(blobs, kind: str) -> None:
    task = with_recipe(blobs, optimizer=kind)
    method = attached(task)
    train(method, task, 60)
    for layer in method.layers:
        for tensor in (layer.weight, *layer.state.values()):
            assert not tensor[~layer.forward_mask].any() and tensor.any()


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_both_storages_train_alike(images, kind: str) -> None:
    task = with_recipe(images, optimizer=kind, steps=30)
    masked, compact = (train(attached(task, kernel), task, 30) for kernel in ("masked", "compact"))
    assert masked == pytest.approx(compact, rel=1e-4)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"scope": "row"}, "magnitude: scope is 'row'; choose one of global, layer"),
        ({"start": 0.8}, "magnitude: start is 0.8; give a value from 0 to 0.75"),
        ({"stop": 1.5}, "magnitude: stop is 1.5"),
        ({"period": -1}, "magnitude: period is -1"),
        ({"updates": 0}, "magnitude: updates is 0"),
    ],
)
def test_bad_fields(fields, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Magnitude(**fields)
