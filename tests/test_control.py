"""Controllers: the count is exact, ties and empty layers included; the multiplicative rule is the published one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dstbench.methods.control import multiplicative, quantile, rise, select
from dstbench.methods.mirror import MirrorDescent
from dstbench.methods.regularizers import Regularizer
from dstbench.suite.model import SparseModel


def make(duals: list[Tensor], name: str = "l1") -> tuple[MirrorDescent, SparseModel]:
    """An optimiser of a chain of linear layers, with these duals, (outputs, inputs) each."""
    net = nn.Sequential(*(nn.Linear(d.shape[1], d.shape[0], bias=False) for d in duals)).to(duals[0].dtype)
    model = SparseModel(net, torch.zeros(1, duals[0].shape[1], dtype=duals[0].dtype))
    optimizer = MirrorDescent(model.groups(), model.layers, regularizer=Regularizer(name), lr=1.0)
    model.attach(optimizer, {})
    for layer, dual in zip(model.layers, duals, strict=True):
        optimizer.state[layer.parameter]["dual"] = dual.clone()
    return optimizer, model


def control(optimizer: MirrorDescent, model: SparseModel, count: int) -> tuple[list[float], list[int]]:
    """Lambdas, and how many weights of each layer are not zero once read."""
    lams = quantile(optimizer, model.layers, count)
    optimizer.lam = dict(zip(model.layers, lams, strict=True))
    optimizer.read()
    return lams, [int(layer.weight.count_nonzero()) for layer in model.layers]


def draw(shapes: list[tuple[int, int]], seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng, dtype=dtype) for shape in shapes]


SHAPES = [(8, 5), (6, 8), (3, 6)]
TOTAL = 40 + 48 + 18


def test_lambda_is_the_largest_score_that_goes() -> None:
    duals = draw(SHAPES, 0, torch.float64)
    optimizer, model = make(duals)
    lams, numbers = control(optimizer, model, 20)
    ordered = np.sort(np.abs(np.concatenate([d.numpy().ravel() for d in duals])))[::-1]
    assert lams == [ordered[20]] * 3 and sum(numbers) == 20


@settings(max_examples=150, deadline=None)
@given(st.integers(1, TOTAL), st.integers(0, 999), st.sampled_from((0, 1, 2)), st.sampled_from((1e-3, 1.0)))
def test_the_count_is_exact_under_ties_and_starving_layers(count: int, seed: int, digits: int, squeeze: float) -> None:
    duals = draw(SHAPES, seed)
    if digits:
        duals = [(d * 10 ** (digits - 1)).round() / 10 ** (digits - 1) for d in duals]
    duals = [torch.where(d == 0, 0.1, d) for d in duals]
    duals[1] *= squeeze
    optimizer, model = make(duals)
    lams, numbers = control(optimizer, model, count)
    assert sum(numbers) == max(3, count) and min(numbers) >= 1
    for layer, lam, before in zip(model.layers, lams, duals, strict=True):
        dual = layer.state["dual"]
        torch.testing.assert_close(dual, before, rtol=1e-5, atol=0)  # a hair at most
        assert (dual.abs()[layer.weight == 0] <= lam).all(), "the dual stays a subgradient"
        torch.testing.assert_close(layer.weight, dual - dual.clamp(-lam, lam), rtol=0, atol=1e-6)


def test_all_duals_equal_still_meets_the_count() -> None:
    """AdaBreg's first step moves every dual by the same amount."""
    optimizer, model = make([torch.full(shape, 1e-3) for shape in SHAPES])
    _, numbers = control(optimizer, model, 11)
    assert sum(numbers) == 11 and min(numbers) >= 1


def test_a_layer_that_lambda_would_empty_keeps_its_best_weight_by_a_lambda_of_its_own() -> None:
    duals = draw(SHAPES, 4)
    duals[2] *= 1e-4
    optimizer, model = make(duals)
    lams, numbers = control(optimizer, model, 30)
    assert numbers[2] == 1 and sum(numbers) == 30
    assert lams[0] == lams[1] > lams[2]
    first, second = duals[2].abs().flatten().topk(2).values
    assert lams[2] == second and float(model.layers[2].weight.abs().max()) == pytest.approx(float(first - second))
    assert torch.equal(optimizer.state[model.layers[2].parameter]["dual"], duals[2]), "its duals are untouched"


def test_zero_duals_cannot_be_woken() -> None:
    duals = [torch.zeros(shape) for shape in SHAPES]
    for dual in duals:
        dual[0, 0] = 1.0
    optimizer, model = make(duals)
    lams, numbers = control(optimizer, model, 50)
    assert (lams, numbers) == ([0.0] * 3, [1, 1, 1])


def test_everything_may_stay() -> None:
    optimizer, model = make(draw(SHAPES, 1))
    lams, numbers = control(optimizer, model, TOTAL)
    assert lams == [0.0] * 3 and sum(numbers) == TOTAL


def test_a_dual_that_is_no_number_reaches_the_weights_and_does_not_stop_the_controller() -> None:
    duals = draw(SHAPES, 1)
    duals[0][0, 0] = math.nan
    optimizer, model = make(duals)
    lams, _ = control(optimizer, model, 20)
    assert all(math.isfinite(lam) for lam in lams)
    assert model.layers[0].weight[0, 0].isnan()


@pytest.mark.parametrize("count", (1, 24, 30, 33, 60, 106))
def test_rows_stay_as_wholes_in_the_number_that_comes_nearest(count: int) -> None:
    optimizer, model = make(draw(SHAPES, 2), "row")
    scores = [layer.state["dual"].norm(dim=1) / math.sqrt(layer.shape[1]) for layer in model.layers]
    _, numbers = control(optimizer, model, count)
    # Best row of each layer first, then by score: the sizes one can reach.
    first = sum(size for _, size in SHAPES)
    rest = sorted(((float(s), size) for x, (_, size) in zip(scores, SHAPES, strict=True) for s in x.sort().values[:-1]))
    reachable = np.cumsum([first, *(size for _, size in rest[::-1])])
    assert sum(numbers) == min(reachable, key=lambda n: abs(n - count))
    for layer, number in zip(model.layers, numbers, strict=True):
        assert number % layer.shape[1] == 0 and set((layer.weight != 0).sum(1).tolist()) <= {0, layer.shape[1]}


@settings(max_examples=50, deadline=None)
@given(st.integers(1, TOTAL), st.integers(0, 99))
def test_select_takes_the_best(count: int, seed: int) -> None:
    scores = [d.abs().flatten() for d in draw(SHAPES, seed)]
    masks = select(scores, [1, 1, 1], count)
    assert sum(int(m.sum()) for m in masks) == max(3, count) and all(m.any() for m in masks)
    out = max((float(s[~m].max()) for s, m in zip(scores, masks, strict=True) if not m.all()), default=0.0)
    for score, mask in zip(scores, masks, strict=True):
        assert int(mask.sum()) == 1 or float(score[mask].min()) >= out


@given(st.floats(0.001, 1), st.floats(0.001, 1), st.floats(0, 2), st.floats(0, 2))
def test_rise_is_monotone_between_its_ends(a: float, b: float, x: float, y: float) -> None:
    start, target = sorted((a, b))
    low, high = sorted((x, y))
    assert rise(0.0, start, target) == pytest.approx(start) and rise(1.0, start, target) == target
    assert start <= rise(low, start, target) * (1 + 1e-9) <= rise(high, start, target) * (1 + 3e-9)
    assert rise(high, start, target) <= target * (1 + 1e-9)


def test_rise_stays_below_the_straight_line() -> None:
    assert rise(0.5, 0.01, 0.1) == pytest.approx(math.sqrt(0.001)) and rise(0.5, 0.01, 0.1) < 0.055


def test_the_multiplicative_rule() -> None:
    """lambda (1 + alpha |gap|) if too dense, over it if too sparse, alpha = 0.95^max(C - 1, 0), C sign changes."""
    memory: dict[str, Any] = {}
    lam, lam_by_hand, crossings, side = 0.5, 0.5, 0, 0
    for density in (0.5, 0.3, 0.05, 0.2, 0.1, 0.08, 0.4, 0.02):
        gap = density - 0.1
        now = int(np.sign(gap))
        crossings += now * side == -1
        side = now or side
        alpha = 0.95 ** max(crossings - 1, 0)
        lam_by_hand = lam_by_hand * (1 + alpha * gap) if gap > 0 else lam_by_hand / (1 + alpha * -gap)
        lam = multiplicative(lam, density, 0.1, memory)
        assert lam == pytest.approx(lam_by_hand, rel=1e-14)
    assert memory == {"crossings": crossings, "side": side} and crossings == 5
