"""Norms of rows, kernels and entries: the same numbers on dense and on compact storage."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dstbench.suite import groups, kernels, registry
from dstbench.suite.layer import Layer
from dstbench.suite.model import SparseModel

SHAPES = ((4, 6), (3, 2, 3, 3), (5, 1, 2, 4))
AXES = {"rows": lambda a: a.reshape(a.shape[0], -1), "kernels": lambda a: a.reshape(*a.shape[:2], -1)}


def make(kernel: str, shape: tuple[int, ...], share: float = 0.5, seed: int = 0) -> tuple[Layer, Tensor]:
    """A layer that stores a random share of its weights, and their dense values."""
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=rng, dtype=torch.float64)
    layer = Layer("fc", nn.Parameter(weight.clone()), positions=1, kernel=kernels.get(kernel))
    layer.forward_mask = layer.grad_mask = torch.rand(shape, generator=rng) < share
    layer.pack()
    return layer, layer.weight.clone()


def oracle(dense: np.ndarray, kind: str) -> np.ndarray:
    if kind == "entries":
        return np.abs(dense).ravel()
    return np.sqrt((AXES[kind](dense) ** 2).sum(-1)).ravel()


@pytest.mark.parametrize("kernel", ("masked", "compact"))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", groups.LEADING)
def test_norms_equal_numpy(kernel: str, shape: tuple[int, ...], kind: str) -> None:
    layer, dense = make(kernel, shape)
    found = groups.norms(layer, layer.parameter.detach(), kind)
    np.testing.assert_allclose(found.numpy(), oracle(dense.numpy(), kind), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("kernel", ("masked", "compact"))
@pytest.mark.parametrize("kind", groups.LEADING)
def test_spread_hands_the_value_of_its_group_to_every_stored_entry(kernel: str, kind: str) -> None:
    layer, _ = make(kernel, (3, 2, 3, 3))
    number = layer.numel // groups.size(layer, kind)
    spread = groups.spread(layer, torch.arange(number, dtype=torch.float64), kind)
    assert spread.shape == layer.parameter.shape
    expected = np.arange(number).repeat(layer.numel // number).reshape(layer.shape)
    assert layer.stored is not None
    np.testing.assert_array_equal(layer.kernel.dense(layer, spread)[layer.stored], expected[layer.stored.numpy()])


def test_sizes() -> None:
    conv, _ = make("masked", (3, 2, 3, 5))
    linear, _ = make("masked", (4, 6))
    assert [groups.size(conv, k) for k in ("entries", "rows", "kernels")] == [1, 30, 15]
    assert [groups.size(linear, k) for k in ("entries", "rows", "kernels")] == [1, 6, 1]


def test_heads_are_rows_of_queries_keys_and_values_or_columns_of_the_output() -> None:
    """With 4 heads of 12 entries: rows 12 h to 12 h + 11 of each third, and columns."""
    model = SparseModel(registry.task("digits/vit").build(0), torch.zeros(1, 1, 8, 8))
    qkv, proj, fc = (model[f"blocks.0.{name}"] for name in ("attn.qkv", "attn.proj", "mlp.fc1"))
    q, out = qkv.weight.numpy(), proj.weight.numpy()
    expected = {
        qkv: [[q[48 * part + 12 * h :][:12] for part in range(3)] for h in range(4)],
        proj: [[out[:, 12 * h :][:, :12]] for h in range(4)],
    }
    for layer, parts in expected.items():
        wanted = np.array([np.concatenate([p.ravel() for p in head]) for head in parts])
        np.testing.assert_array_equal(groups.arranged(layer, layer.weight, "heads"), wanted)
        np.testing.assert_allclose(groups.norms(layer, layer.weight, "heads"), np.linalg.norm(wanted, axis=1), 1e-5)
        number = groups.spread_dense(layer, torch.arange(4), "heads")
        assert groups.arranged(layer, number, "heads").tolist() == [[h] * wanted.shape[1] for h in range(4)]
    assert groups.size(fc, "heads") == groups.size(fc, "rows") == 48


def test_an_unknown_kind_names_the_choices() -> None:
    layer, _ = make("masked", (4, 6))
    with pytest.raises(ValueError, match="unknown groups 'columns'; choose one of entries, rows, kernels"):
        groups.size(layer, "columns")


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.floats(0, 1), st.integers(0, 99), st.sampled_from(list(groups.LEADING)))
def test_both_storages_agree(rows: int, columns: int, share: float, seed: int, kind: str) -> None:
    found = []
    for kernel in ("masked", "compact"):
        layer, _ = make(kernel, (rows, columns, 2, 2), share, seed)
        norms = groups.norms(layer, layer.parameter.detach(), kind)
        found.append((norms, layer.kernel.dense(layer, groups.spread(layer, norms, kind) * layer.parameter.detach())))
    for masked, compact in zip(*found, strict=True):
        torch.testing.assert_close(masked, compact, rtol=1e-14, atol=1e-14)
