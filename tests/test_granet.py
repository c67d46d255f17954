"""GraNet against NumPy, update by update; the cubic curve to the last weight; what ties, zeros and short runs do."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dstbench.methods.granet import GraNet
from dstbench.suite import registry
from dstbench.suite.train import Training
from nets import STEPS, backward, begin, train

WEIGHTS = 108 + 1920 + 80
KERNELS = pytest.mark.parametrize("kernel", ["masked", "compact"])
OPTIMIZERS = pytest.mark.parametrize("optimizer", ["sgd", "adam"])


def curve(t: int, most: int, least: int, last: int, first: int = 0) -> int:
    """Active weights after the update that follows t steps."""
    way = min(max(t - first, 0) / (last - first), 1)
    return most - round((most - least) * (1 - (1 - way) ** 3))


def simulated(layers, left: int, fraction: float):
    """One update of all layers in NumPy: (mask, values, state) from (mask, values, gradient, state)."""
    score = np.concatenate([np.where(m, np.abs(w), -1.0).ravel() for m, w, _, _ in layers])
    kept = np.zeros(score.size, dtype=bool)
    kept[np.argsort(-score, kind="stable")[:left]] = True
    ends = np.cumsum([m.size for m, *_ in layers])[:-1]
    out = []
    for alive, (m, w, g, state) in zip(np.split(kept, ends), layers, strict=True):
        n = int(alive.sum())
        moved = math.ceil(fraction * n)
        best = np.argsort(-np.where(alive, np.abs(w).ravel(), -1.0), kind="stable")[: n - moved]
        stay = np.zeros(m.size, dtype=bool)
        stay[best] = True
        stay[np.argsort(-np.where(stay, -1.0, np.abs(g).ravel()), kind="stable")[:moved]] = True
        mask, had = stay.reshape(m.shape), alive.reshape(m.shape)
        out.append((mask, np.where(mask & had, w, 0.0), {k: np.where(mask & had, v, 0.0) for k, v in state.items()}))
    return out


@KERNELS
@OPTIMIZERS
@pytest.mark.parametrize("density", [0.5, 1.0])
def test_every_update_of_a_run_equals_the_simulation(kernel: str, optimizer: str, density: float) -> None:
    method = GraNet(sparsity=0.8, start_density=density)
    model = begin(method, kernel, optimizer=optimizer)
    after: list = []
    step = method.optimizer.step

    def stepped() -> None:
        step()
        state = [{k: v.numpy().copy() for k, v in y.state.items()} for y in model.layers]
        seen = [[x.numpy().copy() for x in (y.forward_mask, y.weight, y.grad)] for y in model.layers]
        after[:] = [(*arrays, held) for arrays, held in zip(seen, state, strict=True)]

    method.optimizer.step = stepped
    last, updates = int(0.6875 * 39), []
    for t in range(STEPS):
        train(method, model, t, t + 1)
        if not method.due(t):
            assert all(np.array_equal(y.weight.numpy(), w) for y, (_, w, *_) in zip(model.layers, after, strict=True))
            continue
        updates.append(t)
        left = curve(t + 1, round(density * WEIGHTS), 422, last + 1)
        fraction = 0.005 + 0.495 / 2 * (1 + np.cos(np.pi * (t + 1) / STEPS))
        for layer, (mask, weight, state) in zip(model.layers, simulated(after, left, fraction), strict=True):
            assert np.array_equal(layer.forward_mask.numpy(), mask) and layer.grad_mask is layer.forward_mask
            assert np.array_equal(layer.weight.numpy(), weight)
            assert state.keys() == layer.state.keys() and state
            assert all(np.array_equal(layer.state[k].numpy(), state[k]) for k in state)
    assert updates == sorted({*range(3, 39, 4), last}) and last == 26


@pytest.mark.parametrize(("start", "first"), [(0.0, 0), (0.3, 30)])
def test_the_number_of_weights_is_on_the_curve_at_every_step_and_on_target_from_its_end(start, first: int) -> None:
    method = GraNet(sparsity=0.9, start=start)
    model, now = begin(method, steps=100), round(0.5 * WEIGHTS)
    for t in range(100):
        if (t % 4 == 3 and t <= 68) or t == 68:
            now = curve(t + 1, round(0.5 * WEIGHTS), 211, 69, first)
        train(method, model, t, t + 1)
        assert sum(y.nnz() for y in model.layers) == now
    assert now == 211


@pytest.mark.parametrize("value", [0.0, 1.0, -2.0])
def test_counts_are_exact_where_all_weights_and_gradients_are_equal(value: float) -> None:
    method = GraNet(sparsity=0.95, period=1)
    model = begin(method)
    for t in range(STEPS):
        method.begin(t)
        backward(model, t)
        for layer in model.layers:
            layer.assign(torch.full(layer.shape, value).double())
            layer.parameter.grad.zero_()
        method.step(t)
        if t + 1 < STEPS:
            assert sum(y.nnz() for y in model.layers) == curve(t + 1, round(0.5 * WEIGHTS), 105, 27)
        assert all(y.nnz() for y in model.layers)


@settings(max_examples=20)
@given(st.integers(1, 30), st.floats(0, 0.99), st.floats(0, 1), st.integers(0, 40), st.floats(0, 1), st.floats(0.5, 1))
def test_the_end_is_on_target_for_every_length_period_and_window(
    steps: int, sparsity: float, density: float, period: int, alpha: float, stop: float
) -> None:
    method = GraNet(sparsity=sparsity, start_density=density, period=period, alpha=alpha, floor=0, prune_stop=stop)
    model = begin(method, steps=steps)
    train(method, model, 0, steps)
    assert sum(y.nnz() for y in model.layers) == max(3, round((1 - sparsity) * WEIGHTS))


def test_the_gradient_is_dense_in_the_pass_of_an_update_alone_and_steps_are_never_left_out() -> None:
    method, dense, steps = GraNet(), [], []
    model = begin(method)
    step = method.optimizer.step
    method.optimizer.step = lambda: (steps.append(1), step())
    for t in range(STEPS):
        method.begin(t)
        dense += [t] if model.cost().dense_gradient else []
        backward(model, t)
        method.step(t)
    assert dense == sorted({*range(3, 39, 4), 26}) and len(steps) == STEPS


def test_a_density_below_the_target_is_raised_to_it() -> None:
    model = begin(GraNet(sparsity=0.2, start_density=0.1))
    assert sum(y.nnz() for y in model.layers) == round(0.8 * WEIGHTS)


def test_the_preset_starts_dense() -> None:
    method = registry.method("granet:dense")
    assert isinstance(method, GraNet) and all(y.density == 1 for y in begin(method).layers)


@pytest.mark.slow
def test_the_average_density_is_that_of_the_integral(blobs) -> None:
    """0.5 to 0.1 over half the run is 0.150 on average: published arithmetic, and one dense gradient an update."""
    task = replace(blobs, recipe=replace(blobs.recipe, steps=1600))
    training = Training(task, GraNet(sparsity=0.9, prune_stop=0.5, period=4))
    training.setup()
    training.run()
    book, weights = training.book, 288 + 576 + 96
    dense = 3 * 2 * weights * 16 * 1600
    number, papers, updates = 480, 0, sorted({*range(3, 1599, 4), 799})
    for t in range(1600):
        papers += 2 * 16 * (2 * number + (weights if t in updates else number))
        number = curve(t + 1, 480, 96, 800) if t in updates else number
    assert book.papers == papers and book.dense_gradient_steps == len(updates)
    extra = 2 * 16 * sum(weights - 96 if t >= 800 else weights - curve(t - 1, 480, 96, 800) for t in updates)
    assert (book.papers - extra) / dense == pytest.approx(0.150, rel=5e-3)


@pytest.mark.sampled(1)
@KERNELS
@OPTIMIZERS
@pytest.mark.parametrize("stop", [8, 9, 27])
def test_resuming_is_bit_exact(blobs, kernel: str, optimizer: str, stop: int) -> None:
    task = replace(blobs, recipe=replace(blobs.recipe, steps=40, optimizer=optimizer))
    whole, first, second = (Training(task, GraNet(sparsity=0.8), seed=1, kernel=kernel) for _ in range(3))
    for training, until in ((whole, None), (first, stop)):
        training.setup()
        training.run(until=until)
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    second.load(torch.load(file, weights_only=True))
    second.run()
    assert second.curve == whole.curve and second.book == whole.book
    for a, b in zip(whole.model.layers, second.model.layers, strict=True):
        assert torch.equal(a.weight, b.weight) and torch.equal(a.forward_mask, b.forward_mask)
        assert all(torch.equal(v, b.state[k]) for k, v in a.state.items())


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"start_density": 1.5}, "granet: start_density is 1.5; give a value from 0 to 1"),
        ({"prune_stop": 0.9, "stop": 0.8}, "granet: prune_stop is 0.9; give a value from 0 to 0.8"),
        ({"start": 0.7}, "granet: start is 0.7; give a value from 0 to 0.6875"),
        ({"allocation": "erkk"}, "did you mean 'erk'"),
    ],
)
def test_bad_fields(fields, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        GraNet(**fields)
