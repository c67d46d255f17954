"""Chase against NumPy, update by update: channels that go, the soft bound, the exchange over all Layers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dstbench.methods.chase import Chase
from dstbench.suite.train import Training
from nets import STEPS, begin, train
from pruning import POSITIONS, cosine, read, same_after_resume, with_recipe
from updates import Held, largest, same, steps, zeroed

WEIGHTS, ROWS = 2108, (6, 20, 4)
LAST = int(130 / 160 * (STEPS - 1)) + 1  # the number of steps after which channels and the bound end


def split(flat: np.ndarray, like: list[Held]) -> list[np.ndarray]:
    parts = np.split(flat, np.cumsum([y.mask.size for y in like])[:-1])
    return [part.reshape(y.mask.shape) for part, y in zip(parts, like, strict=True)]


def joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([x.ravel() for x in arrays])


def mean_size(y: Held) -> np.ndarray:
    """The mean |w| of every row, zeros included."""
    return np.where(y.mask, np.abs(y.weight), 0.0).reshape(len(y.mask), -1).mean(1)


def without_weakest(alive: list[np.ndarray], held: list[Held], left: int, least: list[int]) -> list[np.ndarray]:
    """Remove one channel at a time, the weakest of all Layers that may lose one, until `left` are left."""
    alive = [rows.copy() for rows in alive]
    while sum(int(rows.sum()) for rows in alive[:2]) > left:
        able = [i for i in range(2) if alive[i].sum() > least[i]]
        if not able:
            break
        worst = {i: np.where(alive[i], mean_size(held[i]), np.inf) for i in able}
        i = min(able, key=lambda i: worst[i].min())
        alive[i][worst[i].argmin()] = False
    return alive


def spread(rows: np.ndarray, like: np.ndarray) -> np.ndarray:
    return np.broadcast_to(rows.reshape(-1, *[1] * (like.ndim - 1)), like.shape)


def simulated(before: list[Held], held: list[Held], alive: list[np.ndarray], keep: int, total: int):
    """Prune by magnitude to `keep`, grow by gradient to `total`, in the channels left, over all layers."""
    inside = [spread(rows, y.mask) for rows, y in zip(alive, held, strict=True)]
    size = [np.where(y.mask & a, np.abs(y.weight), -1.0) for y, a in zip(held, inside, strict=True)]
    best = joined([np.where(largest(s, 1), np.inf, s) for s in size])
    kept = split(largest(best, min(keep, int((joined(size) >= 0).sum()))), held)
    growth = [np.where(a & ~k, np.abs(y.grad), -1.0) for y, a, k in zip(before, inside, kept, strict=True)]
    grown = split(largest(joined(growth), total - int(joined(kept).sum())), held)
    return kept, [k | g for k, g in zip(kept, grown, strict=True)]


@pytest.mark.parametrize("kernel", ["masked", "compact"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("sparsity", [0.8, 0.95])
def test_every_update_of_a_run_equals_the_simulation(kernel: str, optimizer: str, sparsity: float) -> None:
    method = Chase(sparsity=sparsity)
    model = begin(method, kernel, optimizer=optimizer)
    target, alive = round((1 - sparsity) * WEIGHTS), [np.ones(n, dtype=bool) for n in ROWS]
    least = [max(1, int(n * 0.25)) for n in ROWS]
    updates = []
    for t, before, after in steps(method, model):
        assert after, "the optimiser steps at every step"
        now = t + 1
        if now not in (*range(4, STEPS, 4), LAST):
            assert not any(y.grad[~y.mask].any() for y in before)
            assert all(np.array_equal(y.forward_mask.numpy(), x.mask) for y, x in zip(model.layers, after, strict=True))
            continue
        updates.append(now)
        assert all(y.grad[~y.mask].any() for y in before)
        if now <= LAST:
            gone = round((1 - (1 - now / LAST) ** 3) * 13)
            alive = without_weakest(alive, after, 26 - gone, least)
            keep, total = target, target + round(0.05 * cosine(now / LAST) * WEIGHTS)
        else:
            share = 0.005 + 0.495 * cosine(now / STEPS)
            keep, total = target - int(share * target), target
        kept, masks = simulated(before, after, alive, keep, total)
        for layer, y, k, mask in zip(model.layers, after, kept, masks, strict=True):
            same(layer, mask, np.where(k, y.weight, 0.0), zeroed(y.state, k))
        assert sum(y.nnz() for y in model.layers) == total
    assert updates == sorted({*range(4, STEPS, 4), LAST})
    assert sum(int(rows.sum()) for rows in alive) == 30 - 13


@pytest.mark.parametrize(
    ("sparsity", "channels", "minimum", "left"),
    [(0.95, 0.5, 1.0, [3, 10]), (0.95, 0.9, 0.5, [1, 1]), (0.95, 0.0, 0.5, [6, 20]), (0.3, 1.0, 1.0, None)],
)
def test_removed_channels_stay_empty_and_each_layer_keeps_its_share(sparsity, channels, minimum, left) -> None:
    """What is left is (1 - channels) minimum of 6 and of 20, rounded down, or one, where all that may go can."""
    method = Chase(sparsity=sparsity, channels=channels, minimum=minimum, period=3)
    model = begin(method)
    gone: set[tuple[int, int]] = set()
    for t in range(STEPS):
        train(method, model, t, t + 1)
        rows = np.split(method.memory["rows"].numpy(), np.cumsum(ROWS)[:-1])
        now = {(i, j) for i, alive in enumerate(rows) for j in np.flatnonzero(~alive)}
        assert gone <= now and all(not model.layers[i].forward_mask[j].any() for i, j in now)
        gone = now
    found = [int(alive.sum()) for alive in rows]
    room = sum(int(alive.sum()) * n for alive, n in zip(rows, (18, 96, 20), strict=True))
    target = round((1 - sparsity) * WEIGHTS)
    assert found[2] == 4 and sum(found[:2]) >= 26 - round(channels * 26) and room >= target
    assert sum(y.nnz() for y in model.layers) == target
    if left and channels != 0.9:
        assert found[:2] == left
    elif left:
        assert sum(found[:2]) == 3 and min(found[:2]) >= 1


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 30),
    st.floats(0, 0.99),
    st.integers(0, 40),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_counts_are_exact_for_every_length_period_and_bound(
    length: int, sparsity: float, period: int, bound: float, until: float, channels: float, minimum: float
) -> None:
    method = Chase(sparsity=sparsity, period=period, bound=bound, until=until, channels=channels, minimum=minimum)
    model = begin(method, steps=length)
    target, last, now = max(3, round((1 - sparsity) * WEIGHTS)), int(until * (length - 1)), None
    for t in range(length):
        train(method, model, t, t + 1)
        if method.due(t):
            now = target if t >= last else min(WEIGHTS, target + round(bound * cosine((t + 1) / (last + 1)) * WEIGHTS))
        assert sum(y.nnz() for y in model.layers) == (now or target)
        assert min(y.nnz() for y in model.layers) >= 1
    assert sum(y.nnz() for y in model.layers) == target


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_channels_that_tie_go_by_fewest_weights(value: float) -> None:
    method = Chase(sparsity=0.9, alpha=0.005, bound=0.0)
    model = begin(method)
    for layer in model.layers:
        layer.assign(value * layer.forward_mask.double())
    method.channels = 5 / 26
    method.remove(1.0, 211)
    gone = ~method.memory["rows"].numpy()
    assert gone.sum() == 5
    for layer, rows in zip(model.layers[:2], np.split(gone, np.cumsum(ROWS)[:-1])[:2], strict=True):
        number = layer.forward_mask.flatten(1).sum(1).numpy()
        assert not rows.any() or number[rows].max() <= number[~rows].min()


@pytest.mark.parametrize(("density", "paper"), [(0.1, 0.24 - 0.21), (0.2, 0.37 - 0.34)])
def test_training_costs_what_the_bound_adds_to_inference(blobs, density: float, paper: float) -> None:
    """All weights of this task are used once a sample, so that f is the number that is read: 3 f_S at the density with
    the bound, whose mean is 0.05 / 2 over 80 of 100 epochs, and a dense gradient an update. That is the paper's
    difference of training and inference FLOPs on ImageNet, which it rounds twice to a hundredth."""
    task = with_recipe(blobs, steps=800)
    training = Training(task, Chase(sparsity=1 - density, period=20, until=0.8))
    training.setup()
    training.run()
    block = training.book.block(training.model.dense_passes, training.model.cost(), training.samples)
    updates = training.book.dense_gradient_steps
    dense = updates / 800 * (1 - density) / 3
    assert block["papers_ratio"] - dense == pytest.approx(density + 0.05 / 2 * 0.8, abs=2e-3)
    assert abs(paper - 0.05 / 2 * 0.8) < 0.0101
    assert updates == 39 and training.book.charged == 0


def test_flops_of_a_run_follow_its_masks(images) -> None:
    method = Chase(sparsity=0.8, period=5)
    training, forward = Training(images, method), []
    training.setup()
    descend = method.descend

    def watched(batch):
        grad = sum(math.prod(y.shape) * p for y, p in positions) if method.due(len(forward)) else read(training)
        forward.append(2 * read(training) + grad)
        return descend(batch)

    positions = [(y, 2 * POSITIONS[y.name]) for y in training.model.layers]
    method.descend = watched
    training.run()
    assert training.book.papers / images.recipe.batch == pytest.approx(sum(forward), rel=5e-3)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kernel", ["masked", "compact"])
def test_resuming_is_bit_exact(images, kernel: str) -> None:
    for stop in (5, 40):
        same_after_resume(images, lambda: Chase(sparsity=0.8, period=2), stop, kernel)


@pytest.mark.parametrize("field", ["bound", "until", "channels", "minimum"])
def test_bad_fields(field: str) -> None:
    with pytest.raises(ValueError, match=f"chase: {field} is 1.5; give a value from 0 to 1"):
        Chase(**{field: 1.5})
