"""SNFS against NumPy, step by step: dense momentum, sparse weights, growth shared out among Layers to the last one."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dstbench.methods.snfs import SNFS, limits, shares
from dstbench.suite.train import Training
from nets import STEPS, backward, begin, train

KERNELS = pytest.mark.parametrize("kernel", ["masked", "compact"])
OPTIMIZERS = pytest.mark.parametrize("optimizer", ["sgd", "adam"])
DECAY = {"sgd": 0.01, "adam": 0.05}


def moved(w, g, state, t: int, lr: float, optimizer: str):
    """One step of SGD with momentum 0.9 or of AdamW; `state` is changed."""
    if optimizer == "sgd":
        state["momentum_buffer"] = 0.9 * state.get("momentum_buffer", 0.0) + g + DECAY["sgd"] * w
        return w - lr * state["momentum_buffer"]
    state["exp_avg"] = 0.9 * state.get("exp_avg", 0.0) + 0.1 * g
    state["exp_avg_sq"] = 0.999 * state.get("exp_avg_sq", 0.0) + 0.001 * g * g
    first, second = state["exp_avg"] / (1 - 0.9 ** (t + 1)), state["exp_avg_sq"] / (1 - 0.999 ** (t + 1))
    return w * (1 - lr * DECAY["adam"]) - lr * first / (np.sqrt(second) + 1e-8)


def loop(total: float, variance, most) -> list[float]:
    """The authors' loop: what is beyond a layer's bound is added to every layer, until nothing is left over."""
    regrowth, mean = [total * v for v in variance], 0.0
    for _ in range(1000):
        wanted = [r + mean for r in regrowth]
        regrowth = [min(w, m) for w, m in zip(wanted, most, strict=True)]
        mean = sum(w - r for w, r in zip(wanted, regrowth, strict=True)) / len(most)
    return regrowth


def whole(parts, total: int, most) -> list[int]:
    """Parts in whole numbers that sum to `total`, by largest remainder."""
    count = [int(part + 1e-9) for part in parts]
    able = [i for i in range(len(parts)) if count[i] < most[i]]
    for i in sorted(able, key=lambda i: count[i] - parts[i])[: total - sum(count)]:
        count[i] += 1
    return count


def momentum(state):
    """`get_momentum_for_weight` of the authors' code."""
    if "exp_avg" in state:
        return state["exp_avg"] / (np.sqrt(state["exp_avg_sq"]) + 1e-8)
    return state["momentum_buffer"]


def rewired(masks, weights, states, rate: float):
    """The masks and weights after an update, in NumPy, as the authors' code makes them, but that counts are exact."""
    momenta = [momentum(state) for state in states]
    variance = np.array([np.abs(v)[m].mean() for m, v in zip(masks, momenta, strict=True)])
    variance /= variance.sum()
    keep = []
    for m, v in zip(masks, variance, strict=True):
        sparsity = (~m).sum() / m.size
        slow = sparsity < 0.2 and (1 / len(masks)) / v < 1  # adjust_prune_rate
        keep.append(int(m.sum()) - math.ceil((min(sparsity, rate) if slow else rate) * m.sum()))
    most = [int(0.99 * (m.size - k)) for m, k in zip(masks, keep, strict=True)]
    total = sum(int(m.sum()) for m in masks) - sum(keep)
    out = []
    growth = whole(loop(total, variance, most), total, most)
    for m, w, v, k, n in zip(masks, weights, momenta, keep, growth, strict=True):
        stay = np.zeros(m.size, dtype=bool)
        stay[np.argsort(-np.where(m, np.abs(w), -1.0).ravel(), kind="stable")[:k]] = True
        stay[np.argsort(-np.where(stay, -1.0, np.abs(v).ravel()), kind="stable")[:n]] = True
        out.append((stay.reshape(m.shape), np.where(stay.reshape(m.shape) & m, w, 0.0)))
    return zip(*out, strict=True)


@KERNELS
@OPTIMIZERS
@pytest.mark.parametrize("sparsity", [0.15, 0.9])
def test_every_step_of_a_run_equals_the_simulation(kernel: str, optimizer: str, sparsity: float) -> None:
    method = SNFS(sparsity=sparsity, allocation="uniform")
    model = begin(method, kernel, optimizer=optimizer, weight_decay=DECAY)
    masks = [y.forward_mask.numpy().copy() for y in model.layers]
    weights = [y.weight.numpy().copy() for y in model.layers]
    states, moves = [{} for _ in masks], []  # of weights into each layer, at each update
    for t in range(STEPS):
        lr = method.lr(t)
        for group in method.optimizer.param_groups:
            group["lr"] = lr
        method.begin(t)
        backward(model, t)
        gradients = [y.grad.numpy().copy() for y in model.layers]
        assert any(g[~m].any() for g, m in zip(gradients, masks, strict=True)), "dense in every pass"
        method.step(t)
        for i, (w, g, m) in enumerate(zip(weights, gradients, masks, strict=True)):
            weights[i] = np.where(m, moved(w, g, states[i], t, lr, optimizer), 0.0)
        if (t + 1) % 4 == 0 and t + 1 < STEPS:
            rate = 0.005 + 0.495 / 2 * (1 + np.cos(np.pi * (t + 1) / STEPS))
            before = np.array([m.sum() for m in masks])
            masks, weights = (list(x) for x in rewired(masks, weights, states, rate))
            moves.append([m.sum() for m in masks] - before)
        for layer, mask, weight, state in zip(model.layers, masks, weights, states, strict=True):
            assert np.array_equal(layer.forward_mask.numpy(), mask) and layer.grad_mask is None
            np.testing.assert_allclose(layer.weight.numpy(), weight, rtol=1e-9, atol=1e-12)
            assert state.keys() == layer.state.keys()
            for name, value in state.items():
                np.testing.assert_allclose(layer.state[name].numpy(), value, rtol=1e-9, atol=1e-12)
        assert any(v[~m].any() for m, s in zip(masks, states, strict=True) for v in s.values()), "outlives the mask"
    assert len(moves) == 9 and np.any(moves, axis=1).sum() > (4 if sparsity == 0.9 else 0), "weights change Layers"


@given(st.data())
def test_shares_are_whole_exact_and_proportional(data) -> None:
    room = [100 * n for n in data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=6))]
    most = [99 * n // 100 for n in room]
    total = data.draw(st.integers(0, sum(most)))
    value = st.one_of(st.just(0.0), st.integers(1, 64).map(lambda n: n / 8), st.floats(1e-30, 1e30))
    weights = data.draw(st.lists(value, min_size=len(room), max_size=len(room)))
    found = shares(total, weights, room)
    assert sum(found) == total and all(0 <= part <= m for part, m in zip(found, most, strict=True))
    variance = [w / (sum(weights) or 1) if sum(weights) else 1 / len(room) for w in weights]
    if 99 * len(room) < sum(most) - total:  # the authors' loop ends while there is room
        assert all(abs(a - b) <= 1 + 1e-6 for a, b in zip(found, loop(total, variance, most), strict=True))


def test_shares_that_never_fit_take_all_of_the_room() -> None:
    assert shares(300, [1, 2, 3], [100, 100, 100]) == [100, 100, 100]
    assert shares(298, [1, 0, 0], [100, 100, 100]) == [100, 99, 99]


@pytest.mark.parametrize(
    ("total", "weights", "room", "wanted"),
    [
        (10, [1, 1, 3], [9, 9, 9], [2, 2, 6]),
        (10, [1, 2, 2], [9, 9, 9], [2, 4, 4]),
        (11, [2, 1, 1], [9, 9, 9], [5, 3, 3]),
        (5, [5, 3, 2], [9, 9, 9], [3, 1, 1]),
        (10, [1, 1, 3], [9, 9, 4], [4, 3, 3]),
        (7, [1, 1, 5], [1, 9, 2], [0, 6, 1]),
        (1000, [5, 3, 2], [100, 1000, 1000], [99, 501, 400]),
        (3, [0, 0, 0], [1, 2, 2], [1, 1, 1]),
        (5, [1, 0, 0], [2, 9, 9], [1, 2, 2]),
        (4, [float("nan"), 1], [3, 3], [2, 2]),
        (0, [1, 2], [0, 0], [0, 0]),
    ],
)
def test_shares_by_hand(total: int, weights, room, wanted) -> None:
    assert shares(total, weights, room) == wanted


@pytest.mark.parametrize("fields", [{}, {"alpha": 1.0, "floor": 1.0}])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_counts_are_exact_where_all_weights_and_momenta_are_equal(fields, value: float) -> None:
    method = SNFS(sparsity=0.95, period=1, **fields)
    model = begin(method)
    for t in range(STEPS):
        method.begin(t)
        backward(model, t)
        for layer in model.layers:
            layer.assign(torch.full(layer.shape, value).double())
            layer.parameter.grad.zero_()
        method.step(t)
        assert sum(y.nnz() for y in model.layers) == 105 and all(y.nnz() for y in model.layers)
        for layer in model.layers:
            assert not layer.weight[~layer.forward_mask].any()


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_growth_goes_where_the_momentum_is(alpha: float) -> None:
    """All that is dropped goes to the one Layer that has momentum, at its largest; a weight stays in every other."""
    floor = 0.005 if alpha < 1 else 1.0
    method = SNFS(sparsity=0.9, period=1, allocation="uniform", alpha=alpha, floor=floor)
    model = begin(method)
    train(method, model, 0, 1)
    before = [y.nnz() for y in model.layers]
    for i, layer in enumerate(model.layers):
        buffer = layer.state["momentum_buffer"]
        buffer.copy_(torch.arange(layer.numel).view(layer.shape).double() * (i == 1))
    method.update(1)
    fraction = floor + (alpha - floor) / 2 * (1 + np.cos(np.pi * 2 / STEPS))
    gone = [min(n - 1, math.ceil(fraction * n)) for n in before]
    assert [y.nnz() for y in model.layers] == [before[0] - gone[0], before[1] + gone[0] + gone[2], before[2] - gone[2]]
    assert model.layers[1].forward_mask.flatten()[-sum(gone) :].all()


def test_a_layer_that_is_nearly_dense_and_still_growing_drops_no_more_than_its_sparsity() -> None:
    """By hand, `adjust_prune_rate`: under 20 % sparse and above the mean, else the rate as it is."""
    model = begin(SNFS(sparsity=0.1, allocation="uniform"))
    sparsity = [11 / 108, 192 / 1920, 8 / 80]
    assert [1 - y.density for y in model.layers] == pytest.approx(sparsity)
    assert limits(model.layers, [4.0, 1.0, 1.0]) == [pytest.approx(11 / 108), 1.0, 1.0]
    assert limits(model.layers, [1.0, 1.0, 1.0]) == [1.0, 1.0, 1.0]
    model = begin(SNFS(sparsity=0.2, allocation="uniform"))
    assert limits(model.layers[1:], [4.0, 1.0]) == [1.0, 1.0], "at 20 % no longer"


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_the_papers_flops_are_two_sparse_and_one_dense_every_step(blobs, sparsity: float) -> None:
    training = Training(blobs, SNFS(sparsity=sparsity))
    training.setup()
    training.run()
    block = training.book.block(training.model.dense_passes, training.model.cost(), training.samples)
    assert block["papers_ratio"] == pytest.approx((2 * (1 - sparsity) + 1) / 3, rel=5e-3)
    assert training.book.dense_gradient_steps == 60
    assert training.model.density == pytest.approx(1 - sparsity, abs=1e-12)


@pytest.mark.sampled(1)
@KERNELS
@OPTIMIZERS
@pytest.mark.parametrize("stop", [1, 8, 9])
def test_resuming_is_bit_exact(blobs, kernel: str, optimizer: str, stop: int) -> None:
    task = replace(blobs, recipe=replace(blobs.recipe, steps=40, optimizer=optimizer))
    whole, first, second = (Training(task, SNFS(sparsity=0.8), seed=1, kernel=kernel) for _ in range(3))
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


def test_it_learns(blobs) -> None:
    training = Training(replace(blobs, recipe=replace(blobs.recipe, steps=200)), SNFS(sparsity=0.9))
    training.setup()
    training.run()
    assert training.evaluate("test") > 0.7


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"alpha": 1.5}, "snfs: alpha is 1.5; give a value from 0 to 1"),
        ({"alpha": 0.001}, "snfs: floor is 0.005; give a value from 0 to 0.001"),
        ({"allocation": "erkk"}, "did you mean 'erk'"),
    ],
)
def test_bad_fields(fields, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SNFS(**fields)
