"""DSR against NumPy, update by update: the threshold, what it prunes, and where as many grow."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dstbench.methods.dsr import DSR
from nets import STEPS, begin, train
from pruning import same_after_resume, spent
from updates import SIZES, largest, same, same_stream, steps, uniform, zeroed


def shared(left: list[int], total: int) -> list[int]:
    """`total` in proportion to `left`, by largest remainder, where no Layer is full."""
    ideal = [n / sum(left) * total for n in left]
    found = [int(np.floor(x + 1e-9)) for x in ideal]
    order = sorted(range(len(left)), key=lambda i: found[i] - ideal[i])
    for i in order[: total - sum(found)]:
        found[i] += 1
    assert all(n <= size for n, size in zip(found, SIZES, strict=True))
    return found


@pytest.mark.parametrize("kernel", ["masked", "compact"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("threshold", [1e-3, 0.02, 0.1])
def test_every_update_of_a_run_equals_the_simulation(kernel: str, optimizer: str, threshold: float) -> None:
    method = DSR(sparsity=0.8, threshold=threshold, share=0.1)
    model = begin(method, kernel, optimizer=optimizer)
    total = sum(y.nnz() for y in model.layers)
    expected, seen, updates, rng = threshold, {threshold}, [], same_stream(method.rng)
    for t, before, after in steps(method, model):
        masks = [y.forward_mask for y in model.layers]
        if (t + 1) % 4 or t + 1 >= 0.95 * STEPS:
            assert all(np.array_equal(m.numpy(), b.mask) for m, b in zip(masks, before, strict=True))
            continue
        updates.append(t)
        kept = [
            y.mask & ((np.abs(y.weight) >= expected) | largest(np.where(y.mask, abs(y.weight), -1), 1)) for y in after
        ]
        left = [int(k.sum()) for k in kept]
        gone = total - sum(left)
        expected *= 2 if gone < 0.9 * 0.1 * total else 0.5 if gone > 1.1 * 0.1 * total else 1
        seen.add(expected)
        for layer, k, n, m, y in zip(model.layers, kept, shared(left, total), left, after, strict=True):
            new = k | largest(np.where(k, -1.0, uniform(rng, layer.shape)), n - m)
            same(layer, new, np.where(k, y.weight, 0.0), zeroed(y.state, k))
        assert sum(y.nnz() for y in model.layers) == total and method.memory["threshold"] == expected
    assert updates == [*range(3, 37, 4)] and len(seen) > 2


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 0.99), st.floats(0, 1), st.floats(0, 10), st.floats(0, 1), st.integers(1, 9))
def test_the_count_is_exact_whatever_the_threshold(
    sparsity: float, share: float, threshold: float, tolerance: float, period: int
) -> None:
    method = DSR(sparsity=sparsity, share=share, threshold=threshold, tolerance=tolerance, period=period)
    model = begin(method)
    total = sum(y.nnz() for y in model.layers)
    for t in range(12):
        train(method, model, t, t + 1)
        assert sum(y.nnz() for y in model.layers) == total and min(y.nnz() for y in model.layers) >= 1


def test_weights_move_between_layers() -> None:
    method = DSR(sparsity=0.8, threshold=0.1, share=0.2, allocation="uniform")
    model = begin(method)
    first = [y.nnz() for y in model.layers]
    train(method, model)
    assert sum(first) == sum(y.nnz() for y in model.layers) and first != [y.nnz() for y in model.layers]


def test_the_share_is_in_the_range_of_the_authors_runs() -> None:
    """20 000 of the weights of the convolutions of WRN-28-2 go; their SET, matched to that, drops these shares."""
    widths, convolutions = [16, 32, 64, 128], 3 * 9 * 16
    for before, after in pairwise(widths):
        convolutions += 9 * after * (before + 7 * after) + before * after  # four blocks of two and a shortcut
    shares = {0.9: 0.138, 0.8: 0.07, 0.7: 0.046, 0.6: 0.034, 0.5: 0.028}
    for sparsity, share in shares.items():
        assert 20_000 / ((1 - sparsity) * convolutions) == pytest.approx(share, rel=0.03)
    assert min(shares.values()) <= DSR().share <= max(shares.values())


def test_flops_are_three_sparse_passes_at_the_masks_of_each_step(images) -> None:
    total, forward = spent(images, DSR(sparsity=0.8, share=0.2, threshold=0.05))
    assert total == pytest.approx(sum(3 * f for f in forward), rel=5e-3) and len(set(forward)) > 1


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kernel", ["masked", "compact"])
def test_resuming_is_bit_exact(images, kernel: str) -> None:
    same_after_resume(images, lambda: DSR(sparsity=0.8, period=2), 5, kernel)


@pytest.mark.parametrize("field", ["period", "share", "threshold", "tolerance", "stop"])
def test_bad_values_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"dsr: {field} is -1"):
        DSR(**{field: -1})
