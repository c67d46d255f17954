"""GSE against NumPy, update by update; no gradient but on the mask and what was drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dstbench.methods.gse import GSE
from dstbench.suite.train import Training
from nets import STEPS, begin, train
from pruning import cosine, read, same_after_resume
from updates import largest, same, same_stream, steps, uniform, zeroed


def split(flat: np.ndarray, like: list[np.ndarray]) -> list[np.ndarray]:
    parts = np.split(flat, np.cumsum([x.size for x in like])[:-1])
    return [part.reshape(x.shape) for part, x in zip(parts, like, strict=True)]


@pytest.mark.parametrize("kernel", ["masked", "compact"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("subset", [1.0, 0.25])
def test_every_update_of_a_run_equals_the_simulation(kernel: str, optimizer: str, subset: float) -> None:
    method = GSE(sparsity=0.8, subset=subset)
    model = begin(method, kernel, optimizer=optimizer)
    total, rng, updates = sum(y.nnz() for y in model.layers), same_stream(method.rng), []
    for t, before, after in steps(method, model):
        if after:  # an ordinary step
            assert not any(y.grad[~y.mask].any() for y in before)
            continue
        updates.append(t)
        drawn = []
        for y in before:
            number = min(round(subset * int(y.mask.sum())), y.mask.size - int(y.mask.sum()))
            drawn.append(largest(np.where(y.mask, -1.0, uniform(rng, y.mask.shape)), number))
            assert not y.grad[~y.mask & ~drawn[-1]].any() and y.grad[drawn[-1]].any()
        moved = min(int(0.2 * cosine(t / (0.75 * STEPS)) * total), sum(int(d.sum()) for d in drawn))
        masks = [y.mask for y in before]
        growth = np.concatenate([np.where(d, np.abs(y.grad), -1.0).ravel() for d, y in zip(drawn, before, strict=True)])
        grown = split(largest(growth, moved), masks)
        size = [np.where(y.mask, np.abs(y.weight), -1.0) for y in before]
        best = [np.where(largest(s, 1), np.inf, s) for s in size]
        kept = split(largest(np.concatenate([s.ravel() for s in best]), total - moved), masks)
        for layer, y, k, g in zip(model.layers, before, kept, grown, strict=True):
            same(layer, k | g, np.where(k, y.weight, 0.0), zeroed(y.state, k))
        assert sum(y.nnz() for y in model.layers) == total
    assert updates == [*range(4, 30, 4)]


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 0.99), st.floats(0, 4), st.floats(0, 1), st.integers(1, 5))
def test_the_count_is_exact_and_no_layer_is_empty(sparsity: float, subset: float, alpha: float, period: int) -> None:
    method = GSE(sparsity=sparsity, subset=subset, alpha=alpha, period=period)
    model = begin(method)
    total = sum(y.nnz() for y in model.layers)
    for t in range(12):
        train(method, model, t, t + 1)
        assert sum(y.nnz() for y in model.layers) == total and min(y.nnz() for y in model.layers) >= 1


@pytest.mark.parametrize("subset", [1.0, 0.5])
def test_flops_of_an_update_are_those_of_what_was_drawn(images, subset: float) -> None:
    """3 f_S a step, 2 f_S + (1 + subset) f_S in that of an update: exact where every Layer is equally dense."""
    method = GSE(sparsity=0.8, subset=subset, period=2, allocation="uniform")
    training, spent = Training(images, method), [0]
    training.setup()
    sparse = read(training)
    training.run(until=1, after=lambda: spent.append(training.book.papers))
    training.run(until=3, after=lambda: spent.append(training.book.papers))
    update = (spent[3] - spent[2]) / images.recipe.batch
    assert (spent[2] - spent[1]) / images.recipe.batch == pytest.approx(3 * sparse, rel=1e-2)
    assert update == pytest.approx((3 + subset) * sparse, rel=2e-2)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kernel", ["masked", "compact"])
def test_resuming_is_bit_exact(images, kernel: str) -> None:
    same_after_resume(images, lambda: GSE(sparsity=0.8, period=2), 5, kernel)


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match="gse: subset is -1"):
        GSE(subset=-1.0)
