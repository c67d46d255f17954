"""Proximal maps against their closed forms and their optimality; starts by whole groups."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dstbench.methods.regularizers import REGULARIZERS, Regularizer, sparse_start
from dstbench.suite import kernels
from dstbench.suite.layer import Layer

SHAPE = (4, 3, 2, 2)
HEADS = (2, 2, 12)  # two of them, each with a row of the upper half and one of the lower
SIZES = {"l1": 1, "row": 12, "kernel": 4, "head": 24, "block2": 2, "block4": 4, "block8": 4}


def make(shape: tuple[int, ...] = SHAPE, kernel: str = "masked", seed: int = 0, name: str = "conv") -> Layer:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Layer(
        name, nn.Parameter(weight), positions=1, kernel=kernels.get(kernel), heads=HEADS if shape == SHAPE else None
    )


def blocks(values: np.ndarray, name: str, size: int = 0) -> np.ndarray:
    """(groups, entries of each): what lies together, for heads rows, for blocks as many outputs of one column."""
    size = size or SIZES[name]
    if name == "head" and values.shape == SHAPE:
        return np.array([values[head::2].ravel() for head in (0, 1)])
    if not name.startswith("block"):
        return values.reshape(-1, size)
    columns = values.reshape(len(values), -1)
    return np.array([columns[i : i + size, j] for i in range(0, len(columns), size) for j in range(columns.shape[1])])


def joined(groups: np.ndarray, name: str) -> np.ndarray:
    """`blocks` the other way round, for the shape of these tests."""
    order = blocks(np.arange(math.prod(SHAPE)).reshape(SHAPE), name).ravel()
    out = np.zeros(math.prod(SHAPE), dtype=groups.dtype)
    out[order] = groups.ravel()
    return out.reshape(SHAPE)


def penalty(values: np.ndarray, name: str) -> float:
    """J: the weight of a group of n entries is sqrt(n)."""
    return math.sqrt(SIZES[name]) * np.sqrt((blocks(values, name) ** 2).sum(1)).sum()


def prox(values: np.ndarray, name: str, lam: float) -> np.ndarray:
    """Block soft thresholding at lam sqrt(n), one block at a time."""
    out = np.zeros_like(blocks(values, name))
    for i, block in enumerate(blocks(values, name)):
        norm, threshold = math.sqrt((block**2).sum()), lam * math.sqrt(SIZES[name])
        if norm > threshold:
            out[i] = block * (1 - threshold / norm)
    return joined(out, name)


@pytest.mark.parametrize("name", REGULARIZERS)
@pytest.mark.parametrize("lam", (0.0, 0.3, 0.9, 30.0))
def test_prox_is_block_soft_thresholding(name: str, lam: float) -> None:
    layer = make()
    values = layer.weight.clone()
    found = Regularizer(name).prox(layer, values, lam)
    np.testing.assert_allclose(found.numpy(), prox(values.numpy(), name, lam), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", REGULARIZERS)
def test_prox_minimises_its_objective(name: str) -> None:
    layer, lam, rng = make(), 0.4, np.random.default_rng(1)
    values = layer.weight.numpy().copy()
    best = Regularizer(name).prox(layer, torch.from_numpy(values), lam).numpy()

    def objective(x: np.ndarray) -> float:
        return 0.5 * ((x - values) ** 2).sum() + lam * penalty(x, name)

    for size in (1e-3, 1e-1, 1.0):
        for _ in range(50):
            assert objective(best) <= objective(best + size * rng.standard_normal(SHAPE))


@pytest.mark.parametrize("name", REGULARIZERS)
def test_subgradient_supports_the_penalty_and_is_zero_where_the_weight_is(name: str) -> None:
    layer, rng = make(), np.random.default_rng(2)
    weight = torch.from_numpy(prox(layer.weight.numpy(), name, 0.9))
    slope = Regularizer(name).subgradient(layer, weight)
    assert torch.equal(slope == 0, weight == 0) and (weight == 0).any() and (weight != 0).any()
    for _ in range(100):
        other = rng.standard_normal(SHAPE)
        gap = penalty(other, name) - penalty(weight.numpy(), name) - (slope.numpy() * (other - weight.numpy())).sum()
        assert gap >= -1e-12


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(REGULARIZERS)), st.floats(0, 2), st.integers(0, 99))
def test_a_group_is_zero_exactly_where_its_score_is_at_most_lambda(name: str, lam: float, seed: int) -> None:
    layer = make(seed=seed)
    rule = Regularizer(name)
    score = rule.score(layer, layer.weight)
    alive = blocks(rule.prox(layer, layer.weight, lam).numpy(), name).any(1)
    assert np.array_equal(alive, score.numpy() > lam)
    at = float(score[seed % len(score)])
    alive = blocks(rule.prox(layer, layer.weight, at).numpy(), name).any(1)
    assert np.array_equal(alive, score.numpy() > at), "lambda equal to a score must zero that group"


@pytest.mark.parametrize("name", REGULARIZERS)
def test_compact_storage_of_whole_groups_gives_the_same_prox(name: str) -> None:
    found: list[Tensor] = []
    for kernel in ("masked", "compact"):
        layer = make(kernel=kernel)
        keep = torch.rand(layer.numel // SIZES[name], generator=torch.Generator().manual_seed(5)) < 0.6
        whole = joined(np.repeat(keep.numpy(), SIZES[name]), name)
        layer.forward_mask = layer.grad_mask = torch.from_numpy(whole)
        layer.pack()
        found.append(layer.kernel.dense(layer, Regularizer(name).prox(layer, layer.parameter.detach(), 0.5)))
    torch.testing.assert_close(*found, rtol=1e-14, atol=1e-15)


def test_lambda_zero_changes_no_bit_of_an_entry() -> None:
    layer = make()
    assert torch.equal(Regularizer("l1").prox(layer, layer.weight, 0.0), layer.weight)


@pytest.mark.parametrize(("name", "expected"), (("l1", 47), ("kernel", 48), ("row", 48), ("block2", 48)))
def test_support_holds_whole_groups(name: str, expected: int) -> None:
    layer = make()
    weight = layer.weight.clone()
    weight[0, 0, 0, 0] = 0.0
    layer.assign(weight)
    assert int(Regularizer(name).support(layer, layer.weight).sum()) == expected
    weight[1] = 0.0
    layer.assign(weight)
    # Of blocks of two one is gone: the neighbours of the row keep its other places alive.
    gone = 2 if name == "block2" else 12
    assert int(Regularizer(name).support(layer, layer.weight).sum()) == expected - gone


@pytest.mark.parametrize("name", REGULARIZERS)
def test_start_draws_whole_groups_in_exact_number_and_keeps_the_variance(name: str) -> None:
    layers = [make((30, 20, 2, 3), seed=1, name="a"), make((60, 40), seed=2, name="b")]
    dense = [layer.weight.clone() for layer in layers]
    sparse_start(layers, {"a": 0.1, "b": 0.1}, torch.Generator().manual_seed(0), "sparse", Regularizer(name))
    for layer, before in zip(layers, dense, strict=True):
        mask = layer.forward_mask
        assert mask is not None and layer.grad_mask is mask
        assert layer.nnz() == round(0.1 * layer.numel), "exact, never a coin for each group"
        size = Regularizer(name).size(layer)
        assert set(blocks(mask.numpy(), name, size).sum(1).tolist()) == {0, size}
        torch.testing.assert_close(layer.weight, before * mask / math.sqrt(0.1))


@pytest.mark.parametrize("name", REGULARIZERS)
def test_start_leaves_something_in_every_layer_and_can_leave_values_alone(name: str) -> None:
    layers = [make(seed=1, name="a"), make((2, 3), seed=2, name="b")]
    dense = [layer.weight.clone() for layer in layers]
    sparse_start(layers, {"a": 1e-6, "b": 1e-6}, torch.Generator().manual_seed(0), "dense", Regularizer(name))
    for layer, before in zip(layers, dense, strict=True):
        assert layer.nnz() == Regularizer(name).size(layer)
        assert torch.equal(layer.weight, torch.where(layer.forward_mask, before, 0.0))
