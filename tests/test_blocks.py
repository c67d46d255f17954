"""RigL in blocks against NumPy; groups of r outputs, and LinBreg over them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dstbench.methods.blocks import BlockRigL
from dstbench.methods.bregman import LinBreg, MLLinBreg
from dstbench.suite import groups
from dstbench.suite.model import SparseModel
from nets import STEPS, begin, train
from pruning import cosine, same_after_resume
from updates import largest, same, steps, zeroed

KERNELS = pytest.mark.parametrize("kernel", ["masked", "compact"])
HEIGHTS = {"blocks2": (2, 2, 2), "blocks4": (2, 4, 4), "blocks8": (2, 4, 4)}  # of 6, 20 and 4 outputs


def cut(array: np.ndarray, height: int) -> np.ndarray:
    """(blocks, entries): `height` rows of a matrix at a time, a column each."""
    matrix = array.reshape(array.shape[0], -1)
    found = [matrix[i : i + height, j] for i in range(0, len(matrix), height) for j in range(matrix.shape[1])]
    return np.array(found)


def pasted(values: np.ndarray, shape: tuple[int, ...], height: int) -> np.ndarray:
    """One value a block, back in the weight's shape."""
    matrix = np.zeros((shape[0], int(np.prod(shape[1:]))), dtype=values.dtype)
    places = iter(values)
    for i in range(0, len(matrix), height):
        for j in range(matrix.shape[1]):
            matrix[i : i + height, j] = next(places)
    return matrix.reshape(shape)


@KERNELS
@pytest.mark.parametrize("kind", HEIGHTS)
def test_blocks_are_outputs_that_follow_each_other(kernel: str, kind: str) -> None:
    model = begin(BlockRigL(sparsity=0.5), kernel)
    for layer, height in zip(model.layers, HEIGHTS[kind], strict=True):
        weight = layer.weight.numpy()
        assert groups.size(layer, kind) == height
        found = groups.norms(layer, layer.kernel.store(layer, layer.weight), kind)
        np.testing.assert_allclose(found.numpy(), np.sqrt((cut(weight, height) ** 2).sum(1)), rtol=1e-12)
        values = np.arange(float(weight.size // height))
        spread = groups.spread_dense(layer, torch.tensor(values), kind)
        assert np.array_equal(spread.numpy(), pasted(values, weight.shape, height))
        stored = groups.spread(layer, torch.tensor(values), kind)
        assert torch.equal(stored, layer.kernel.store(layer, spread))
        assert np.array_equal(groups.arranged(layer, layer.weight, kind).numpy(), cut(weight, height))


@pytest.mark.parametrize(("outputs", "expected"), [(8, 8), (12, 4), (6, 2), (5, 1), (16, 8)])
def test_where_outputs_are_no_multiple_blocks_are_halved(outputs: int, expected: int) -> None:
    layer = SparseModel(nn.Linear(3, outputs), torch.zeros(1, 3)).layers[0]
    assert groups.size(layer, "blocks8") == expected


@KERNELS
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("height", [2, 4, 8])
def test_every_update_of_a_run_equals_the_simulation(kernel: str, optimizer: str, height: int) -> None:
    method = BlockRigL(sparsity=0.7, height=height)
    model = begin(method, kernel, optimizer=optimizer)
    number, updates = [y.nnz() for y in model.layers], []
    for t, before, after in steps(method, model):
        if after:
            assert not any(y.grad[~y.mask].any() for y in before)
            continue
        updates.append(t)
        for layer, y, high in zip(model.layers, before, HEIGHTS[f"blocks{height}"], strict=True):
            active = cut(y.mask, high)
            assert (active.all(1) == active.any(1)).all(), "blocks are whole"
            active = active.any(1)
            moved = int(0.3 * cosine(t / (0.75 * STEPS)) * active.sum())
            size, slope = (np.sqrt((cut(x, high) ** 2).sum(1)) for x in (y.weight, y.grad))
            kept = largest(np.where(active, size, -1.0), int(active.sum()) - moved)
            new = kept | largest(np.where(kept, -1.0, slope), moved)
            mask = pasted(new, y.mask.shape, high)
            stay = pasted(new, y.mask.shape, high) & y.mask
            same(layer, mask, np.where(stay, y.weight, 0.0), zeroed(y.state, stay))
        assert [y.nnz() for y in model.layers] == number
    assert updates == [*range(4, 30, 4)]


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 0.99), st.sampled_from([2, 4, 8]), st.sampled_from(["erk", "uniform"]), st.integers(1, 5))
def test_counts_of_blocks_are_exact(sparsity: float, height: int, allocation: str, period: int) -> None:
    method = BlockRigL(sparsity=sparsity, height=height, allocation=allocation, period=period)
    model = begin(method)
    first = [y.nnz() for y in model.layers]
    total = sum(y.numel for y in model.layers)
    assert abs(sum(first) - (1 - sparsity) * total) <= sum(HEIGHTS[f"blocks{height}"])
    for t in range(10):
        train(method, model, t, t + 1)
        assert [y.nnz() for y in model.layers] == first


@pytest.mark.parametrize("kind", [LinBreg, MLLinBreg])
@pytest.mark.parametrize("height", [2, 4, 8])
def test_linbreg_keeps_whole_blocks_and_ends_on_target(kind: type[LinBreg], height: int) -> None:
    method = kind(sparsity=0.7, regularizer=f"block{height}")
    model = begin(method)
    train(method, model)
    for layer, high in zip(model.layers, HEIGHTS[f"blocks{height}"], strict=True):
        found = cut(layer.forward_mask.numpy(), high)
        assert (found.all(1) == found.any(1)).all()
    total = sum(y.numel for y in model.layers)
    assert abs(sum(y.nnz() for y in model.layers) - 0.3 * total) <= method.grain


def test_the_kernel_sees_the_blocks(images) -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
    model = SparseModel(net, torch.zeros(1, 64), kernel="sparse")
    if any(layer.fallback for layer in model.layers):
        pytest.skip("no compiler here")
    method = BlockRigL(sparsity=0.8)
    method.attach(model, images.recipe, seed=0)
    method.setup(lambda batches=1: [])
    assert {layer.kernel.route(layer) for layer in model.layers} == {"sparse 8x1"}


@KERNELS
def test_resuming_is_bit_exact(images, kernel: str) -> None:
    same_after_resume(images, lambda: BlockRigL(sparsity=0.7, period=2, height=2), 5, kernel)


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match="block_rigl: height is 3; give 2, 4 or 8"):
        BlockRigL(height=3)
