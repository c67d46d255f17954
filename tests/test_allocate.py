"""Allocation: RigL's own arithmetic in NumPy, published FLOPs, and exact counts under everything that breaks them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dstbench.methods.allocate import (
    ALLOCATIONS,
    allocate,
    begin_sparse,
    counts,
    erk,
    fitted,
    global_top,
    kth_largest,
    random_mask,
    start,
    top,
    uniform,
    uniform_rigl,
)
from dstbench.suite.model import SparseModel


@dataclass
class Fake:
    name: str
    shape: tuple[int, ...]
    positions: int = 1

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


shapes = st.lists(st.lists(st.integers(1, 40), min_size=2, max_size=4).map(tuple), min_size=1, max_size=8)
nets = shapes.map(lambda found: [Fake(f"layer{i}", shape) for i, shape in enumerate(found)])
densities = st.floats(0.01, 1.0)
quick = settings(deadline=None, max_examples=50)


def rigl_erk(layers: list[Fake], sparsity: float) -> dict[str, float]:
    """get_mask_random's density solve as RigL's code has it, floors included, in NumPy."""
    sizes = np.array([np.prod(layer.shape) for layer in layers], dtype=np.float64)
    raw = np.array([np.sum(layer.shape) / np.prod(layer.shape) for layer in layers])
    dense = np.zeros(len(layers), dtype=bool)
    while not dense.all():
        zeros = np.floor(sparsity * sizes)
        right = (sizes - zeros)[~dense].sum() - zeros[dense].sum()
        factor = right / (raw * sizes)[~dense].sum()
        over = ~dense & (raw == raw[~dense].max())
        if factor * raw[~dense].max() <= 1:
            break
        dense |= over
    return {y.name: 1.0 if d else float(factor * r) for y, d, r in zip(layers, dense, raw, strict=True)}


def resnet18() -> SparseModel:
    """ResNet-18 for small images: 3x3 stem, no pooling after it."""
    import timm

    with torch.device("meta"):
        net = timm.create_model("resnet18", num_classes=10)
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return SparseModel(net, torch.zeros(1, 3, 32, 32, device="meta"))


def wide_resnet() -> list[Fake]:
    """WRN-22-2: three groups of three blocks, widths 32, 64, 128."""
    layers, wide, side = [Fake("conv1", (16, 3, 3, 3), 32 * 32)], 16, 32
    for group, width in enumerate((32, 64, 128)):
        side = 32 >> group
        for block in range(3):
            layers += [Fake(f"{group}.{block}.a", (width, wide, 3, 3), side**2)]
            layers += [Fake(f"{group}.{block}.b", (width, width, 3, 3), side**2)]
            layers += [Fake(f"{group}.skip", (width, wide, 1, 1), side**2)] if block == 0 else []
            wide = width
    return [*layers, Fake("fc", (10, 128))]


def share(forward: dict[str, int], density: dict[str, float]) -> float:
    """Forward FLOPs of weighted products over dense."""
    return sum(forward[name] * density[name] for name in forward) / sum(forward.values())


@pytest.mark.parametrize(
    ("sparsity", "capped", "of_erk", "of_uniform"),
    [(0.80, 9, 0.5078, 0.2025), (0.90, 4, 0.2482, 0.1029), (0.95, 3, 0.1250, 0.0530), (0.98, 2, 0.0514, 0.0231)],
)
def test_resnet18_table(sparsity: float, capped: int, of_erk: float, of_uniform: float) -> None:
    model = resnet18()
    forward = {layer.name: model.dense_passes.forward[layer.key] for layer in model.layers}
    assert model.maskable == 11_164_352 and round(sum(forward.values()) / 2e5) == 5554
    found = erk(model.layers, 1 - sparsity)
    assert share(forward, found) == pytest.approx(of_erk, abs=5e-4)
    assert sum(d == 1 for d in found.values()) == capped
    assert share(forward, uniform_rigl(model.layers, 1 - sparsity)) == pytest.approx(of_uniform, abs=5e-4)
    assert found == pytest.approx(rigl_erk(model.layers, sparsity), rel=1e-3)


@pytest.mark.parametrize(("sparsity", "published", "rigl"), [(0.8, 0.41, 0.42), (0.9, 0.24, 0.24)])
def test_resnet50_costs_what_rigl_published(sparsity: float, published: float, rigl: float) -> None:
    import timm

    with torch.device("meta"):
        net = timm.create_model("resnet50")
    model = SparseModel(net, torch.zeros(1, 3, 224, 224, device="meta"))
    forward = {layer.name: model.dense_passes.forward[layer.key] for layer in model.layers}
    found = erk(model.layers, 1 - sparsity)
    assert share(forward, found) == pytest.approx(published, abs=0.01)
    assert share(forward, found) == pytest.approx(rigl, abs=0.01)
    assert sum(counts(model.layers, found).values()) == round((1 - sparsity) * model.maskable)
    if sparsity == 0.8:
        realised = sum(counts(model.layers, uniform_rigl(model.layers, 0.2)).values()) / model.maskable
        assert realised == pytest.approx(0.2003, abs=5e-5)


@pytest.mark.parametrize(("sparsity", "of_uniform", "of_erk"), [(0.8, 0.20, 0.35), (0.9, 0.11, 0.17)])
def test_wide_resnet_costs_what_the_reproduction_published(sparsity: float, of_uniform: float, of_erk: float) -> None:
    layers = wide_resnet()
    forward = {layer.name: 2 * layer.numel * layer.positions for layer in layers}
    assert sum(forward.values()) == pytest.approx(3.15e8, rel=0.01)
    assert share(forward, erk(layers, 1 - sparsity)) == pytest.approx(of_erk, abs=0.01)
    assert share(forward, uniform_rigl(layers, 1 - sparsity)) == pytest.approx(of_uniform, abs=0.01)


@quick
@given(nets, densities)
def test_erk_meets_the_budget_and_is_proportional_below_one(layers: list[Fake], density: float) -> None:
    found = erk(layers, density)
    assert all(0 < d <= 1 for d in found.values())
    total = sum(layer.numel for layer in layers)
    assert sum(found[y.name] * y.numel for y in layers) == pytest.approx(density * total, rel=1e-9)
    ratios = {y.name: sum(y.shape) / y.numel for y in layers}
    factors = [found[n] / ratios[n] for n in found if found[n] < 1]
    assert not factors or max(factors) == pytest.approx(min(factors))
    dense = [ratios[n] for n in found if found[n] == 1]
    assert not dense or not factors or min(dense) >= max(ratios[n] for n in found if found[n] < 1)


def test_uniform_and_its_first_layer() -> None:
    layers = [Fake("a", (4, 4)), Fake("b", (8, 8)), Fake("c", (2, 8))]
    assert uniform(layers, 0.25) == {"a": 0.25, "b": 0.25, "c": 0.25}
    assert uniform_rigl(layers, 0.25) == {"a": 1.0, "b": 0.25, "c": 0.25}
    assert uniform_rigl(layers[:1], 0.25) == {"a": 0.25}


def test_unknown_allocation_and_init_name_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'ekr'; choose one of .*erk_plus; did you mean 'erk'"):
        allocate("ekr", [Fake("a", (2, 2))], 0.5)
    with pytest.raises(ValueError, match="choose one of sparse, dense"):
        start([], {}, torch.Generator(), "sprase")


@quick
@given(nets, densities, st.sampled_from(list(ALLOCATIONS)))
def test_counts_meet_the_budget_exactly(layers: list[Fake], density: float, allocation: str) -> None:
    wanted = allocate(allocation, layers, density)
    found = counts(layers, wanted)
    ideal = sum(wanted[y.name] * y.numel for y in layers)
    assert all(type(n) is int and 1 <= n <= y.numel for n, y in zip(found.values(), layers, strict=True))
    assert abs(sum(found.values()) - max(len(layers), ideal)) <= 0.5 + 1e-6
    if all(wanted[y.name] * y.numel >= 1 for y in layers):
        assert all(abs(found[y.name] - wanted[y.name] * y.numel) < 1 + 1e-6 for y in layers)


@quick
@given(nets, densities, st.data())
def test_counts_meet_any_total(layers: list[Fake], density: float, data: st.DataObject) -> None:
    total = data.draw(st.integers(len(layers), sum(y.numel for y in layers)))
    assert sum(counts(layers, uniform(layers, density), total).values()) == total


@quick
@given(nets, densities, st.data())
def test_what_has_no_room_goes_to_others_in_proportion(layers: list[Fake], density: float, data: st.DataObject) -> None:
    room = {y.name: data.draw(st.integers(1, y.numel)) for y in layers}
    found, wanted = fitted(layers, erk(layers, density), room), erk(layers, density)
    number = {y.name: found[y.name] * y.numel for y in layers}
    ideal = {y.name: wanted[y.name] * y.numel for y in layers}
    assert sum(number.values()) == pytest.approx(min(sum(ideal.values()), sum(room.values())))
    assert all(number[name] <= most * (1 + 1e-9) for name, most in room.items())
    open_ = [number[name] / ideal[name] for name in room if number[name] < room[name] * (1 - 1e-6)]
    assert open_ == pytest.approx([max(open_, default=1.0)] * len(open_)) and min(open_, default=1.0) > 1 - 1e-9
    full = [number[name] / ideal[name] for name in room if number[name] >= room[name] * (1 - 1e-6)]
    assert not open_ or not full or max(full) <= max(open_) * (1 + 1e-6)
    assert all(1 <= n <= room[name] for name, n in counts(layers, found).items())


def test_densities_for_which_there_is_room_stay_as_they_are() -> None:
    layers = [Fake("a", (1, 10)), Fake("b", (1, 10)), Fake("c", (1, 40))]
    wanted = {"a": 0.22, "b": 0.27, "c": 0.21}
    assert fitted(layers, wanted, {"a": 10, "b": 3, "c": 40}) == pytest.approx(wanted)
    assert fitted(layers, wanted, {"a": 10, "b": 1, "c": 40}) == pytest.approx(
        {"a": 0.22 * 12.3 / 10.6, "b": 0.1, "c": 0.21 * 12.3 / 10.6}
    )


def test_counts_go_by_largest_remainder() -> None:
    layers = [Fake("a", (1, 10)), Fake("b", (1, 10)), Fake("c", (1, 10))]
    assert counts(layers, {"a": 0.22, "b": 0.27, "c": 0.21}) == {"a": 2, "b": 3, "c": 2}
    assert counts(layers, uniform(layers, 0.0)) == {"a": 1, "b": 1, "c": 1}
    with pytest.raises(ValueError, match="total is 31; the layers have 30"):
        counts(layers, uniform(layers, 0.5), 31)


@quick
@given(st.lists(st.integers(1, 7), min_size=1, max_size=3), st.data())
def test_random_masks_are_exact_and_seeded(shape: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, math.prod(shape)))
    first, again = (random_mask(shape, count, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first.shape == tuple(shape) and first.dtype == torch.bool
    assert int(first.sum()) == count and torch.equal(first, again)


def test_random_masks_are_uniform_over_positions() -> None:
    rng = torch.Generator().manual_seed(0)
    seen = sum(random_mask((4, 5), 6, rng).float() for _ in range(2000)) / 2000
    assert (seen - 0.3).abs().max() < 5 * math.sqrt(0.3 * 0.7 / 2000)


scores = st.lists(
    st.sampled_from([0.0, -0.0, 1.0, 2.0, -3.0, math.nan, -math.inf, math.inf]) | st.floats(-2, 2, width=32),
    min_size=1,
    max_size=50,
)


@quick
@given(scores, st.data())
def test_top_equals_a_stable_sort(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(values)))
    ranks = sorted(range(len(values)), key=lambda i: -math.inf if math.isnan(values[i]) else values[i], reverse=True)
    found = top(torch.tensor(values), k)
    assert found.nonzero().flatten().tolist() == sorted(ranks[:k])


def test_top_is_exact_among_equals_and_refuses_too_many() -> None:
    assert top(torch.zeros(3, 4), 5).flatten().tolist() == [True] * 5 + [False] * 7
    with pytest.raises(ValueError, match="top k is 13; give a count between 0 and 12"):
        top(torch.zeros(3, 4), 13)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 2000),
    st.floats(0.0, 1.0),
    st.sampled_from(["continuous", "few", "runs", "mostly none"]),
    st.integers(0, 99),
)
def test_the_kth_largest_of_many_is_that_of_a_sort(scale: int, share: float, kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    flat = torch.randn(100 * scale)
    if kind == "few":
        flat = flat.round()
    elif kind == "runs":  # in step with the sample
        flat = flat.sort().values
    elif kind == "mostly none":
        flat[torch.rand(flat.numel()) < 0.9] = -math.inf
    k = max(1, round(share * flat.numel()))
    assert kth_largest(flat, k) == flat.sort(descending=True).values[k - 1]


@quick
@given(st.lists(st.lists(st.floats(-5, 5, width=16), min_size=1, max_size=9), min_size=1, max_size=5), st.data())
def test_global_top_takes_the_best_but_leaves_no_layer_empty(values: list[list[float]], data: st.DataObject) -> None:
    tensors = [torch.tensor(row) for row in values]
    k = data.draw(st.integers(0, sum(map(len, values))))
    masks = global_top(tensors, k)
    assert sum(int(m.sum()) for m in masks) == max(k, len(tensors))
    assert all(m.any() and t[m].max() == t.max() for t, m in zip(tensors, masks, strict=True))
    if all(top(torch.cat(tensors), k).split([len(t) for t in tensors])[i].any() for i in range(len(tensors))):
        kept = torch.cat([t[m] for t, m in zip(tensors, masks, strict=True)]).sort().values
        assert torch.equal(kept, torch.cat(tensors).sort().values[-len(kept) :])


@pytest.mark.parametrize("kernel", ["masked", "compact"])
@pytest.mark.parametrize("init", ["sparse", "dense"])
def test_start_scales_kept_weights_and_nothing_else(init: str, kernel: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 30), nn.ReLU(), nn.Linear(30, 5))
    before = [net[0].weight.detach().clone(), net[2].weight.detach().clone()]
    model = SparseModel(net, torch.zeros(1, 12), kernel=kernel)
    wanted = erk(model.layers, 0.2)
    start(model.layers, wanted, torch.Generator().manual_seed(1), init)
    assert sum(layer.nnz() for layer in model.layers) == round(0.2 * model.maskable)
    for layer, old in zip(model.layers, before, strict=True):
        assert layer.forward_mask is layer.grad_mask and layer.nnz() == counts(model.layers, wanted)[layer.name]
        scale = 1 / math.sqrt(layer.nnz() / layer.numel) if init == "sparse" else 1.0
        torch.testing.assert_close(layer.weight, torch.where(layer.forward_mask, old * scale, 0.0))


@pytest.mark.parametrize("kernel", ["masked", "compact"])
def test_what_was_chosen_by_size_is_scaled_by_the_squares_it_holds(kernel: str) -> None:
    """Of (3, 4, 0, 12), whose squares sum to 13^2, the 12 becomes 13; a random mask would make it 24."""
    for values, kept, init, wanted in (
        ([3.0, 4.0, 0.0, 12.0], 3, "sparse", 13.0),
        ([3.0, 4.0, 0.0, 12.0], 3, "dense", 12.0),
        ([3.0, 4.0, 0.0, -12.0], 1, "sparse", 13.0),
        ([3.0, 4.0, 0.0, 12.0], 2, "sparse", 0.0),
        ([0.0, 0.0, 0.0, 0.0], 2, "sparse", 0.0),
    ):
        net = nn.Linear(4, 1)
        with torch.no_grad():
            net.weight.copy_(torch.tensor([values]))
        model = SparseModel(net, torch.zeros(1, 4), kernel=kernel)
        mask = torch.arange(4) == kept
        begin_sparse(model.layers, [mask[None]], init)
        torch.testing.assert_close(model.layers[0].weight, torch.where(mask, wanted, 0.0)[None])
        begin_sparse(model.layers, [mask[None]], "dense", random=True)
        begin_sparse(model.layers, [mask[None]], "sparse", random=True)
        torch.testing.assert_close(model.layers[0].weight, torch.where(mask, 2 * wanted, 0.0)[None])
