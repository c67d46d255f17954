"""Layer: masks, what is kept, grown, forgotten and dropped, the same on every storage."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dstbench.suite import kernels
from dstbench.suite.layer import Layer

KERNELS = ("masked", "compact", "sparse")


def make(kernel: str = "masked", shape: tuple[int, ...] = (4, 5), seed: int = 0) -> Layer:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return Layer("fc", nn.Parameter(weight), positions=3, kernel=kernels.get(kernel))


def random_mask(layer: Layer, seed: int, share: float = 0.5) -> torch.Tensor:
    return torch.rand(layer.shape, generator=torch.Generator().manual_seed(seed)) < share


def train(layer: Layer, optimizer: torch.optim.Optimizer, steps: int = 3, seed: int = 0) -> None:
    """Steps on a quadratic that pulls every weight the pass reads to a fixed target."""
    goal = torch.randn(layer.shape, generator=torch.Generator().manual_seed(seed + 99))
    for _ in range(steps):
        layer.zero_grad()
        layer.pack()
        (layer.kernel.weight(layer) - goal).square().sum().backward()
        optimizer.step()
        layer.project()


def attach(layer: Layer, kind: type = torch.optim.Adam, **options: float) -> torch.optim.Optimizer:
    layer.optimizer = kind([layer.parameter], lr=0.1, **options)
    return layer.optimizer


@pytest.mark.parametrize("kernel", KERNELS)
def test_density_and_counts_follow_the_masks(kernel: str) -> None:
    layer = make(kernel)
    assert (layer.nnz("forward"), layer.nnz("grad"), layer.density) == (20, 20, 1.0)
    layer.forward_mask = mask = random_mask(layer, 1)
    assert layer.nnz("forward") == int(mask.sum()) and layer.nnz("grad") == 20
    layer.grad_mask = mask
    assert layer.nnz("grad") == int(mask.sum()) and layer.density == int(mask.sum()) / 20


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_leaves_the_union_is_zero_and_does_not_come_back(kernel: str) -> None:
    layer = make(kernel)
    before, mask = layer.weight.clone(), random_mask(layer, 2)
    layer.forward_mask = layer.grad_mask = mask
    assert torch.equal(layer.weight, before * mask)
    layer.forward_mask = layer.grad_mask = None
    assert torch.equal(layer.weight, before * mask), "a weight outside the union revived"


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_wide_gradient_mask_keeps_values_off_the_support(kernel: str) -> None:
    layer = make(kernel)
    before = layer.weight.clone()
    layer.forward_mask = random_mask(layer, 2)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_activate_keeps_kept_and_starts_grown_at_zero(kernel: str, optimizer: type) -> None:
    layer = make(kernel)
    attach(layer, optimizer, **({"momentum": 0.9} if optimizer is torch.optim.SGD else {}))
    old, new = random_mask(layer, 3), random_mask(layer, 4)
    layer.activate(old)
    train(layer, layer.optimizer)
    weight, state = layer.weight.clone(), {k: v.clone() for k, v in layer.state.items()}
    assert state, "the optimiser should have state of the weight's shape"
    layer.activate(new)
    assert torch.equal(layer.weight, weight * (old & new))
    for name, value in layer.state.items():
        assert torch.equal(value, state[name] * (old & new)), name
    assert layer.forward_mask is not None and torch.equal(layer.forward_mask, new)


@pytest.mark.parametrize("kernel", KERNELS)
def test_grown_entries_start_as_told(kernel: str) -> None:
    layer = make(kernel)
    old, new = random_mask(layer, 3), random_mask(layer, 4)
    layer.activate(old)
    kept = layer.weight.clone()
    layer.activate(new, grown=torch.full(layer.shape, 2.0))
    assert torch.equal(layer.weight, kept * new + 2.0 * (new & ~old))


@pytest.mark.parametrize("kernel", KERNELS)
def test_forget_zeroes_values_and_state_there_alone(kernel: str) -> None:
    layer = make(kernel)
    attach(layer)
    layer.activate(random_mask(layer, 3, 0.8))
    train(layer, layer.optimizer)
    weight, moments = layer.weight.clone(), layer.state["exp_avg_sq"].clone()
    where = random_mask(layer, 5)
    layer.forget(where)
    assert torch.equal(layer.weight, weight * ~where)
    assert torch.equal(layer.state["exp_avg_sq"], moments * ~where)


@pytest.mark.parametrize("kernel", KERNELS)
def test_assign_ignores_what_is_not_stored(kernel: str) -> None:
    layer = make(kernel)
    mask = random_mask(layer, 1)
    layer.activate(mask)
    layer.assign(torch.full(layer.shape, 7.0))
    assert torch.equal(layer.weight, 7.0 * mask)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradient_is_zero_outside_its_mask_even_where_it_is_infinite(kernel: str) -> None:
    layer = make(kernel)
    layer.forward_mask, layer.grad_mask = random_mask(layer, 1), random_mask(layer, 2)
    layer.pack()
    upstream = torch.where(layer.grad_mask, 1.0, torch.inf)
    (layer.kernel.weight(layer) * upstream).sum().backward()
    assert torch.equal(layer.grad, layer.grad_mask.float())


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradient_survives_a_change_of_masks_within_the_step(kernel: str) -> None:
    layer = make(kernel)
    layer.forward_mask = random_mask(layer, 1)
    layer.pack()
    layer.kernel.weight(layer).square().sum().backward()
    dense = layer.grad.clone()
    layer.activate(random_mask(layer, 2))
    assert torch.equal(layer.grad, dense)


def test_kept_state_waits_off_the_support_and_returns() -> None:
    for kernel in KERNELS:
        layer = make(kernel)
        layer.keeps = {"exp_avg": "held"}
        attach(layer)
        train(layer, layer.optimizer)
        held, lost = layer.state["exp_avg"].clone(), layer.state["exp_avg_sq"].clone()
        mask = random_mask(layer, 6)
        layer.forward_mask = layer.grad_mask = mask
        assert torch.equal(layer.state["exp_avg"], held)
        layer.forward_mask = layer.grad_mask = None
        assert torch.equal(layer.state["exp_avg"], held)
        assert torch.equal(layer.state["exp_avg_sq"], lost * mask)


@pytest.mark.parametrize("kernel", ["compact", "sparse"])
def test_parameter_keeps_identity_and_compact_kernels_store_the_union_alone(kernel: str) -> None:
    layer = make(kernel)
    parameter, union = layer.parameter, random_mask(layer, 1) | random_mask(layer, 2)
    layer.forward_mask, layer.grad_mask = random_mask(layer, 1), random_mask(layer, 2)
    layer.pack()
    assert layer.parameter is parameter and parameter.numel() == int(union.sum())


@pytest.mark.parametrize("kernel", KERNELS)
def test_snapshot_restores_values_masks_and_what_is_kept(kernel: str) -> None:
    layer = make(kernel)
    layer.keeps = {"weight": "reservoir"}
    before = layer.weight.clone()
    layer.forward_mask = layer.grad_mask = random_mask(layer, 1)
    saved = layer.snapshot()
    other = make(kernel, seed=1)
    other.keeps = layer.keeps
    other.restore(saved)
    assert torch.equal(other.weight, layer.weight) and torch.equal(other.weight, before)
    assert torch.equal(other.forward_mask, layer.forward_mask)


@pytest.mark.parametrize("mask", [torch.ones(4, 5), torch.ones(5, 4, dtype=torch.bool)])
def test_a_wrong_mask_is_named_with_what_was_expected(mask: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"layer 'fc': forward_mask is .*give a torch.bool tensor of shape \(4, 5\)"):
        make().forward_mask = mask


def test_reading_a_gradient_before_any_pass_says_when_to_read_it() -> None:
    with pytest.raises(RuntimeError, match=r"'fc' has no gradient.*step\(t\)"):
        _ = make().grad


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["both", "forward", "grad", "all", "activate", "forget", "train"]), st.integers(0, 9))
    )
)
def test_any_sequence_of_changes_leaves_all_storages_equal(moves: list[tuple[str, int]]) -> None:
    """Values, state and counts do not depend on the storage, whatever masks a method publishes."""
    trio = [make(kernel, (3, 4)) for kernel in KERNELS]
    for layer in trio:
        layer.keeps = {"exp_avg": "held"}
        attach(layer)
    for move, seed in moves:
        for layer in trio:
            mask = random_mask(layer, seed)
            if move == "both":
                layer.forward_mask = layer.grad_mask = mask
            elif move == "forward":
                layer.forward_mask = mask
            elif move == "grad":
                layer.grad_mask = mask
            elif move == "all":
                layer.forward_mask = layer.grad_mask = None
            elif move == "activate":
                layer.activate(mask, grown=0.5)
            elif move == "forget":
                layer.forget(mask)
            else:
                train(layer, layer.optimizer, 1, seed)
        dense, *others = trio
        for layer in others:
            assert torch.equal(dense.weight, layer.weight)
            assert dense.nnz() == layer.nnz()
            for name, value in dense.state.items():
                assert torch.equal(value, layer.state[name]), name


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("which", ["forward", "grad"])
def test_a_mask_edited_in_place_is_an_error_until_it_is_declared_anew(kernel: str, which: str) -> None:
    layer = make(kernel)
    masks = {"forward": random_mask(layer, 1), "grad": random_mask(layer, 2)}
    layer.forward_mask, layer.grad_mask = masks["forward"], masks["grad"]
    layer.pack()
    masks[which].fill_(False)
    with pytest.raises(RuntimeError, match=rf"layer 'fc': {which}_mask was edited in place.*layer.{which}_mask = new"):
        layer.pack()
    layer.forward_mask, layer.grad_mask = masks["forward"], masks["grad"]
    layer.pack()
    assert layer.nnz(which) == 0


def test_one_tensor_may_be_both_declarations_but_not_be_edited() -> None:
    layer = make()
    layer.forward_mask = layer.grad_mask = mask = random_mask(layer, 1)
    layer.pack()
    with torch.inference_mode():
        other = random_mask(layer, 3)
    layer.activate(other)
    layer.restore(layer.snapshot())
    layer.pack()
    layer.forward_mask = layer.grad_mask = mask
    mask.logical_not_()
    layer.forward_mask = mask
    with pytest.raises(RuntimeError, match="grad_mask was edited in place"):
        layer.pack()
