"""Wanda against NumPy and the norms of what it saw; WoodFisher against the inverse of an explicit matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dstbench.methods.saliency import Wanda, WoodFisher, absorb, blocked, unblocked
from nets import STEPS, backward, batch, begin
from pruning import same_after_resume, spent
from updates import largest, steps

KERNELS = pytest.mark.parametrize("kernel", ["masked", "compact"])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.sampled_from([1e-3, 1.0]), st.integers(0, 99))
def test_the_inverse_is_that_of_the_explicit_matrix(block: int, samples: int, damp: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    grads = rng.standard_normal((samples, 3, block))
    inverse = torch.eye(block, dtype=torch.float64).div(damp).expand(3, -1, -1).clone()
    for grad in grads:
        absorb(inverse, torch.tensor(grad), samples)
    for b in range(3):
        fisher = damp * np.eye(block) + sum(np.outer(g[b], g[b]) for g in grads) / samples
        np.testing.assert_allclose(inverse[b].numpy(), np.linalg.inv(fisher), rtol=1e-6, atol=1e-8 / damp)


@KERNELS
@pytest.mark.parametrize("block", [1, 4, 7])
def test_the_cut_equals_the_simulation(kernel: str, block: int) -> None:
    method = WoodFisher(sparsity=0.7, block=block, samples=5, damp=1e-3, finetune="continue")
    model = begin(method, kernel)
    grads: list[list[np.ndarray]] = [[] for _ in model.layers]
    weights = []
    for t, before, after in steps(method, model, method.cut + 1):
        if t < method.cut:
            if t >= method.cut - 5:
                for kept, y in zip(grads, before, strict=True):
                    kept.append(y.grad.ravel())
            weights = [y.weight.ravel() for y in after]
            continue
        scores, moved = [], []
        for seen, w in zip(grads, weights, strict=True):
            score, step = np.zeros_like(w), []
            for start in range(0, w.size, block):
                part = slice(start, start + block)
                fisher = 1e-3 * np.eye(w[part].size) + sum(np.outer(g[part], g[part]) for g in seen) / 5
                inverse = np.linalg.inv(fisher)
                score[part] = w[part] ** 2 / (2 * np.diag(inverse))
                step.append((part, inverse))
            scores.append(score), moved.append(step)
        best = [np.where(largest(s, 1), np.inf, s) for s in scores]
        chosen = largest(np.concatenate(best), round(0.3 * sum(w.size for w in weights)))
        masks = np.split(chosen, np.cumsum([w.size for w in weights])[:-1])
        for y, w, mask, step in zip(before, weights, masks, moved, strict=True):
            expected = w.copy()
            for part, inverse in step:
                for q in np.flatnonzero(~mask[part]):
                    expected[part] -= w[part][q] * inverse[:, q] / inverse[q, q]
            assert np.array_equal(y.mask.ravel(), mask)
            np.testing.assert_allclose(y.weight.ravel(), np.where(mask, expected, 0), rtol=1e-6, atol=1e-9)


def test_without_curvature_it_is_the_cut_by_magnitude() -> None:
    method = WoodFisher(sparsity=0.7, damp=1e6, finetune="continue")
    model = begin(method)
    weights = []
    for t, before, after in steps(method, model, method.cut + 1):
        weights = [y.weight for y in after] if t < method.cut else weights
        masks = [y.mask for y in before]
    size = np.concatenate([np.where(largest(np.abs(w), 1), np.inf, np.abs(w)).ravel() for w in weights])
    kept = largest(size, round(0.3 * size.size))
    assert np.array_equal(np.concatenate([m.ravel() for m in masks]), kept)
    assert sum(y.nnz() for y in model.layers) == round(0.3 * size.size)


@given(st.integers(1, 40), st.integers(1, 9))
def test_blocks_come_back(size: int, block: int) -> None:
    class Flat:
        numel, shape = size, torch.Size([size])

    dense = torch.arange(1.0, size + 1)
    rows = blocked(dense, block)
    assert rows.shape == (-(-size // block), block) and rows.sum() == dense.sum()
    assert torch.equal(unblocked(rows, Flat), dense)


@KERNELS
def test_wanda_ranks_within_rows_by_the_inputs_it_saw(kernel: str) -> None:
    method = Wanda(sparsity=0.7, finetune="continue")
    model = begin(method, kernel)
    first, weight = model.layers[0], np.zeros(0)
    for t, _, after in steps(method, model, method.cut + 1):
        weight = after[0].weight if t == method.cut - 1 else weight
    norm = np.sqrt((batch(method.cut - 1)[0].numpy() ** 2).sum((0, 2, 3)))
    score = (np.abs(weight) * norm[None, :, None, None]).reshape(first.shape[0], -1)
    mask = first.forward_mask.numpy().reshape(score.shape)
    fan_in = mask.sum(1)
    assert (fan_in == fan_in[0]).all() and 0 < fan_in[0] < score.shape[1]
    for row, kept in zip(score, mask, strict=True):
        assert np.array_equal(kept, largest(row, fan_in[0]))
    assert not any(key.startswith("input.") for key in method.memory)
    assert abs(sum(y.nnz() for y in model.layers) - 0.3 * sum(y.numel for y in model.layers)) <= method.grain


def test_wanda_sees_the_inputs_of_every_layer() -> None:
    method = Wanda(sparsity=0.5, finetune="continue")
    model = begin(method)
    seen: dict[str, torch.Tensor] = {}
    for layer in model.layers:
        module = model.net.get_submodule(layer.key.rpartition(".")[0])
        module.register_forward_pre_hook(lambda m, x, n=layer.name: seen.__setitem__(n, x[0].detach()))
    for t in range(method.cut):
        method.begin(t)
        backward(model, t)
        if t == method.cut - 1:
            for layer in model.layers:
                x = seen[layer.name]
                over = [d for d in range(x.dim()) if d != 1]
                torch.testing.assert_close(method.memory[f"input.{layer.name}"], x.float().square().sum(over).double())
        method.step(t)


@pytest.mark.parametrize("method", [WoodFisher(sparsity=0.8, samples=3), WoodFisher(sparsity=0.8)])
def test_flops_are_dense_before_the_cut_and_sparse_after_it(images, method: WoodFisher) -> None:
    total, forward = spent(images, method)
    assert total == pytest.approx(sum(3 * f for f in forward), rel=5e-3) and len(set(forward)) == 2
    numel = sum(layer.numel for layer in method.layers)
    cut = 2 * method.block * sum(method.block * -(-layer.numel // method.block) for layer in method.layers)
    assert method.charged == min(method.samples, method.cut) * 6 * method.block * numel + cut


@pytest.mark.sampled(1)
@KERNELS
@pytest.mark.parametrize("kind", [Wanda, WoodFisher])
def test_resuming_is_bit_exact(images, kind: type, kernel: str) -> None:
    for stop in (1, images.recipe.steps // 2, images.recipe.steps // 2 + 1):
        same_after_resume(images, lambda: kind(sparsity=0.8), stop, kernel)


@pytest.mark.parametrize("field", ["block", "samples", "damp"])
def test_bad_values_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"woodfisher: {field} is 0"):
        WoodFisher(**{field: 0})


@pytest.mark.parametrize("kind", [Wanda, WoodFisher])
def test_a_cut_before_the_first_step_is_refused(kind: type) -> None:
    with pytest.raises(ValueError, match="which cuts before the first step"):
        begin(kind(at=0.0))
    assert STEPS > 1
