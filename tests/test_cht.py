"""CHT: scores against loops over paths of three links, updates against NumPy, odds of sampling, density, charge."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from methods.cht import CHT, importance, paths, sample
from nets import STEPS, begin, train
from pruning import cosine, same_after_resume
from suite import registry
from updates import SIZES, largest, same, same_stream, steps, uniform, zeroed

KERNELS = pytest.mark.parametrize("kernel", ["masked", "compact"])


def by_loops(mask: np.ndarray, squared: bool) -> np.ndarray:
    """The score of every pair, path by path: output - input' - output' - input, and the other way round."""
    outputs, inputs = mask.shape
    score = np.zeros(mask.shape)

    def apart(a: np.ndarray, b: np.ndarray) -> int:
        """Links of b to what a has none to, less the one that leads on; not below zero."""
        return max(0, int(b.sum()) - int((a & b).sum()) - 1)

    for o, i in itertools.product(range(outputs), range(inputs)):
        for other in range(outputs):
            if mask[other, i] and (mask[o] & mask[other]).any():
                common = int((mask[o] & mask[other]).sum()) if squared else 1
                score[o, i] += common / (1 + apart(mask[o], mask[other]))
        for other in range(inputs):
            if mask[o, other] and (mask[:, i] & mask[:, other]).any():
                common = int((mask[:, i] & mask[:, other]).sum()) if squared else 1
                score[o, i] += common / (1 + apart(mask[:, i], mask[:, other]))
    return score


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.floats(0, 1), st.booleans(), st.integers(0, 99))
def test_scores_are_sums_over_paths(outputs: int, inputs: int, density: float, squared: bool, seed: int) -> None:
    mask = np.random.default_rng(seed).random((outputs, inputs)) < density
    np.testing.assert_allclose(paths(torch.tensor(mask), squared).numpy(), by_loops(mask, squared), rtol=1e-5)


def test_a_missing_link_of_a_square_scores_and_a_lonely_pair_does_not() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.bool)
    score = paths(mask, True)
    assert score[1, 1] > 0 and score[2, 0] == score[2, 1] == score[0, 2] == 0


@KERNELS
@pytest.mark.parametrize("score", ["ch2", "ch3"])
def test_every_update_of_a_run_equals_the_simulation(kernel: str, score: str) -> None:
    method = CHT(sparsity=0.8, score=score)
    model = begin(method, kernel, optimizer="adam")
    rng, updates = same_stream(method.rng), []
    for t, before, after in steps(method, model):
        if after:
            continue
        updates.append(t)
        for layer, y in zip(model.layers, before, strict=True):
            moved = int(0.3 * cosine(t / (0.75 * STEPS)) * int(y.mask.sum()))
            kept = largest(np.where(y.mask, np.abs(y.weight), -1.0), int(y.mask.sum()) - moved)
            found = paths(torch.tensor(kept.reshape(len(kept), -1)), score == "ch2").numpy().reshape(kept.shape)
            np.testing.assert_allclose(
                found, by_loops(kept.reshape(len(kept), -1), score == "ch2").reshape(kept.shape), rtol=1e-5
            )
            growth = np.where(found > 0, 1 + found, uniform(rng, kept.shape).astype(np.float32))
            new = kept | largest(np.where(kept, -1.0, growth), moved)
            same(layer, new, np.where(kept, y.weight, 0.0), zeroed(y.state, kept))
            assert not y.grad[~y.mask].any(), "no gradient off the mask"
    assert updates == [*range(4, 30, 4)]


def test_samples_are_drawn_in_proportion_without_replacement() -> None:
    weights, rng, seen = torch.tensor([1.0, 2.0, 4.0, 0.0]), torch.Generator().manual_seed(0), np.zeros(4)
    for _ in range(4000):
        mask = sample(weights, 1, rng)
        assert int(mask.sum()) == 1
        seen += mask.numpy()
    assert seen[3] == 0 and np.abs(seen[:3] / 4000 - np.array([1, 2, 4]) / 7).max() < 0.03
    assert sample(weights, 3, rng).tolist() == [True, True, True, False]
    pairs = sum(sample(weights, 2, rng).numpy() for _ in range(4000)) / 4000
    p = np.array([1, 2, 4]) / 7
    expected = [p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in range(3) if j != i) for i in range(3)]
    assert np.abs(pairs[:3] - expected).max() < 0.03


@pytest.mark.parametrize("name", ["cht", "chts", "chtss"])
@KERNELS
def test_counts_follow_the_density_and_end_on_target(name: str, kernel: str) -> None:
    method = registry.method(name, sparsity=0.8)
    model = begin(method, kernel)
    assert sum(y.nnz() for y in model.layers) == round((0.5 if name == "chtss" else 0.2) * sum(SIZES))
    for t in range(STEPS):
        train(method, model, t, t + 1)
        if method.due(t):
            assert {y.name: y.nnz() for y in model.layers} == method.number(t)
    assert sum(y.nnz() for y in model.layers) == round(0.2 * sum(SIZES))


def test_the_density_falls_along_a_sigmoid() -> None:
    begin(method := CHT(sparsity=0.9, start_density=0.5, period=1, stop=1.0), steps=101)
    assert method.density(0) == pytest.approx(0.5) and method.density(100) == pytest.approx(0.1)
    assert method.density(50) == pytest.approx(0.3), "half way in the middle"
    curve = [method.density(t) for t in range(101)]
    assert curve == sorted(curve, reverse=True)
    sigmoid = [1 / (1 + math.exp(-6 * (t / 100 - 0.5))) for t in range(101)]
    shares = [(s - sigmoid[0]) / (sigmoid[-1] - sigmoid[0]) for s in sigmoid]
    np.testing.assert_allclose(curve, [0.5 - 0.4 * s for s in shares], rtol=1e-9)


def test_importance_is_relative_to_row_and_column() -> None:
    model = begin(CHT(sparsity=0.5))
    layer = model.layers[1]
    size, mask = np.abs(layer.weight.numpy()), layer.forward_mask.numpy()
    expected = size / size.sum(0) + size / size.sum(1, keepdims=True)
    np.testing.assert_allclose(importance(layer).numpy()[mask], expected[mask], rtol=1e-12)
    assert (importance(layer).numpy()[~mask] == -np.inf).all()


def test_products_of_the_scores_are_charged() -> None:
    method = CHT(sparsity=0.8, period=4, stop=0.2)
    model = begin(method)
    train(method, model, 0, 8)
    counter = FlopCounterMode(display=False)
    with counter:
        for layer in model.layers:
            paths(layer.forward_mask.reshape(layer.shape[0], -1), True)
    assert method.charged == counter.get_total_flops() > 0


@pytest.mark.parametrize("name", ["cht", "chts", "chtss"])
@KERNELS
def test_resuming_is_bit_exact(images, name: str, kernel: str) -> None:
    same_after_resume(images, lambda: registry.method(name, sparsity=0.8, period=2), 5, kernel)


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match="cht: score is 'ch4'; choose one of ch2, ch3"):
        CHT(score="ch4")
    with pytest.raises(ValueError, match="cht: start_density is 2"):
        CHT(start_density=2.0)
