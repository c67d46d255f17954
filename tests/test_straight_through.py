"""Straight-through magnitude pruning against NumPy; what no pass reads learns on, and is no part of the model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from dstbench.methods.straight_through import STE
from dstbench.suite.export import values
from dstbench.suite.method import Method
from dstbench.suite.model import SparseModel
from dstbench.suite.recipe import Recipe
from dstbench.suite.train import Training
from pruning import WEIGHTS, Oracle, attached, perceptron, same_after_resume, samples, spent, trained, with_recipe

KERNELS = pytest.mark.parametrize("kernel", ["masked", "compact"])
OPTIMIZERS = pytest.mark.parametrize("kind", ["sgd", "adam"])
STEPS, RATE, DECAY = 40, {"sgd": 0.1, "adam": 0.05}, {"sgd": 0.01, "adam": 0.1}
SIZES = {"1.weight": 48, "3.weight": 24}


class Rule(Oracle):
    """The perceptron in NumPy under a rule by which a pass reads something else than what is stored."""

    def select(self, t: int) -> None:
        """Choose `masks` for the pass of step t."""

    def reading(self) -> dict[str, np.ndarray]:
        """The weights that a pass reads."""
        return {name: np.where(self.masks[name], self.values[name], 0.0) for name in WEIGHTS}

    def pulled(self, grads: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The gradients of what is stored, from those of what is read."""
        return grads

    def gradients(self, x: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        stored = {name: self.values[name] for name in WEIGHTS}
        self.values |= self.reading()
        grads = super().gradients(x, labels)
        self.values |= stored
        return self.pulled(grads)

    def project(self) -> None: ...


def follow(
    method: Method,
    rule: Rule,
    kernel: str,
    watch: Callable[[SparseModel, int], None] = lambda model, t: None,
    **recipe,
) -> SparseModel:
    """Train method and rule side by side: every pass reads the same weights; `watch` sees the model after each step."""
    model = SparseModel(perceptron(), samples(0)[0], kernel=kernel)
    options = {"steps": STEPS, "lr": RATE, "weight_decay": DECAY, "optimizer": rule.kind, **recipe}
    method.attach(model, Recipe(batch=8, **options), seed=0)
    method.setup(lambda batches=1, create_graph=False, temperature=1.0: [])
    for t in range(STEPS):
        for group in method.optimizer.param_groups:
            group["lr"] = method.lr(t)
        method.begin(t)
        rule.select(t)
        for layer in model.layers:
            read = layer.weight * layer.forward_mask
            np.testing.assert_array_equal(layer.forward_mask.numpy(), rule.masks[layer.key])
            np.testing.assert_allclose(read.numpy(), rule.reading()[layer.key], rtol=1e-9, atol=1e-12)
        model.zero_grad()
        inputs, labels = samples(t)
        nn.functional.cross_entropy(model(inputs), labels).backward()
        method.step(t)
        rule.step(t, method.lr(t))
        watch(model, t)
    return model


def top(score: np.ndarray, k: int) -> np.ndarray:
    """The k largest, among ties the first."""
    mask = np.zeros(score.size, dtype=bool)
    mask[np.argsort(-score.ravel(), kind="stable")[:k]] = True
    return mask.reshape(score.shape)


def top_of_all(scores: list[np.ndarray], k: int) -> list[np.ndarray]:
    """The k largest of several arrays, one of each at least."""
    ranked = np.concatenate([np.where(top(s, 1), np.inf, s).ravel() for s in scores])
    parts = np.split(top(ranked, k), np.cumsum([s.size for s in scores])[:-1])
    return [part.reshape(s.shape) for part, s in zip(parts, scores, strict=True)]


def left(size: int, target: int, t: int) -> int:
    """Zhu and Gupta's curve from step 3 to step 29: 0.1 and 0.75 of the last of 40 steps."""
    return size - round((size - target) * (1 - (1 - (min(max(t, 3), 29) - 3) / 26) ** 3))


class Straight(Rule):
    """72 weights to 18; by erk 10 and 8, as (8 + 6) e + (3 + 8) e = 18 at e = 0.72."""

    def __init__(self, kind: str, scope: str) -> None:
        super().__init__(kind)
        self.scope = scope

    def select(self, t: int) -> None:
        sizes = [np.abs(self.values[name]) for name in WEIGHTS]
        if self.scope == "global":
            masks = top_of_all(sizes, left(72, 18, t))
        else:
            masks = [top(s, left(s.size, n, t)) for s, n in zip(sizes, (10, 8), strict=True)]
        self.masks = dict(zip(WEIGHTS, masks, strict=True))


@KERNELS
@OPTIMIZERS
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_every_step_of_a_run_equals_the_simulation(
    monkeypatch: pytest.MonkeyPatch, kernel: str, kind: str, scope: str
) -> None:
    monkeypatch.setattr("pruning.DECAY", DECAY)
    rule, came, before = Straight(kind, scope), [], {name: np.ones(1, bool) for name in WEIGHTS}

    def watch(model: SparseModel, t: int) -> None:
        for layer in model.layers:
            np.testing.assert_allclose(layer.weight.numpy(), rule.values[layer.key], rtol=1e-9, atol=1e-12)
            assert layer.grad_mask is None
            largest = top(layer.weight.abs().numpy(), layer.nnz())
            assert np.array_equal(layer.forward_mask.numpy(), largest), "an evaluation reads them as they are"
            came.append(rule.values[layer.key][largest & ~before[layer.key]])
            before[layer.key] = largest

    model = follow(STE(sparsity=0.75, scope=scope), rule, kernel, watch)
    assert sum(y.nnz() for y in model.layers) == 18
    back = np.concatenate(came)
    assert len(back) > 3 and back.all(), "weights come back with the values they have meanwhile"


@KERNELS
def test_what_the_end_leaves_unread_is_no_part_of_the_model(blobs, kernel: str) -> None:
    training = trained(with_recipe(blobs, steps=40), STE(), kernel)
    model, inputs = training.model, next(blobs.batches("valid", 0))[0]
    model.net.eval()
    masks, output = [y.forward_mask for y in model.layers], model(inputs)
    assert any(y.weight[~mask].any() for y, mask in zip(model.layers, masks, strict=True))
    training.method.finish()
    assert torch.equal(model(inputs), output)
    for layer, mask in zip(model.layers, masks, strict=True):
        assert layer.forward_mask is mask and not values(model)[layer.key][~mask].any()
        assert layer.parameter.numel() == (layer.nnz() if kernel == "compact" else layer.numel)


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_on_target_from_the_first_pass_it_costs_two_sparse_and_one_dense(blobs, sparsity: float) -> None:
    training = trained(blobs, STE(sparsity=sparsity, start=0.0, stop=0.0))
    block = training.book.block(training.model.dense_passes, training.model.cost(), training.samples)
    assert set(training.curve["density"]) == {training.model.density}
    assert block["papers_ratio"] == pytest.approx((2 * (1 - sparsity) + 1) / 3, rel=5e-3)
    assert training.book.dense_gradient_steps == 60


def test_the_papers_flops_follow_the_curve(images) -> None:
    task = with_recipe(images, steps=40)
    total, forward = spent(task, STE())
    dense = forward[0]
    assert total == pytest.approx(2 * sum(forward) + 40 * dense, rel=5e-3)
    assert forward[3] == dense > forward[4] > forward[20] > forward[29] == forward[39]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sparsity=st.sampled_from([0.0, 0.3, 0.9, 0.999]),
    scope=st.sampled_from(["global", "layer"]),
    allocation=st.sampled_from(["erk", "erk_plus", "uniform"]),
    steps=st.integers(1, 30),
    window=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    value=st.sampled_from([0.0, 1.0]),
)
def test_counts_are_exact_where_all_weights_are_equal(blobs, sparsity, scope, allocation, steps, window, value) -> None:
    method = STE(sparsity=sparsity, scope=scope, allocation=allocation, start=window[0], stop=window[1])
    attached(method, with_recipe(blobs, steps=steps))
    seen = []
    for t in range(steps + 1):
        for layer in method.layers:
            layer.assign(torch.full(layer.shape, value))
        method.declare(t)
        seen.append(sum(int(y.forward_mask.sum()) for y in method.layers))
        assert all(y.forward_mask.any() for y in method.layers)
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == max(3, round((1 - sparsity) * 960)), "the target, one weight a Layer at least"


def test_densities_by_layer_are_those_of_the_allocation(blobs) -> None:
    found = {}
    for allocation in ("uniform", "erk"):
        method = attached(STE(sparsity=0.9, scope="layer", allocation=allocation, stop=0.0, start=0.0), blobs)
        found[allocation] = [layer.nnz() for layer in method.layers]
    assert found == {"uniform": [29, 57, 10], "erk": [31, 41, 24]}  # 96 / (36 + 48 + 28) of each sum of dimensions


@pytest.mark.sampled(1)
@KERNELS
@OPTIMIZERS
@pytest.mark.parametrize("stop", [1, 20])
def test_resuming_is_bit_exact(images, kernel: str, kind: str, stop: int) -> None:
    same_after_resume(with_recipe(images, steps=30, optimizer=kind), STE, stop, kernel)


@OPTIMIZERS
def test_both_storages_train_alike(images, kind: str) -> None:
    task = with_recipe(images, optimizer=kind, steps=30)
    masked, compact = (trained(task, STE(), kernel).curve["loss"] for kernel in ("masked", "compact"))
    assert masked == pytest.approx(compact, rel=1e-4)


@pytest.mark.parametrize("fields", [{}, {"scope": "global"}, {"start": 0.0, "stop": 0.0}])
def test_it_learns(blobs, fields) -> None:
    training: Training = trained(with_recipe(blobs, steps=200), STE(**fields))
    assert training.evaluate("test") > 0.7


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"scope": "row"}, "ste: scope is 'row'; choose one of global, layer"),
        ({"allocation": "erkk"}, "ste: allocation is 'erkk'.*did you mean 'erk'"),
        ({"start": 0.8}, "ste: start is 0.8; give a value from 0 to 0.75"),
        ({"stop": 1.5}, "ste: stop is 1.5; give a value from 0 to 1"),
    ],
)
def test_bad_fields(fields, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        STE(**fields)
