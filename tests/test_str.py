"""STR against NumPy and autograd: thresholds, what is pulled back through them, and counts that are exact."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from dstbench.methods.str import STR
from dstbench.suite.export import values
from dstbench.suite.meters.memory import training_state
from dstbench.suite.model import SparseModel
from dstbench.suite.recipe import Recipe
from dstbench.suite.train import Training
from pruning import WEIGHTS, attached, perceptron, same_after_resume, samples, spent, trained, with_recipe
from test_straight_through import DECAY, KERNELS, OPTIMIZERS, Rule, follow, left, top_of_all


class Soft(Rule):
    """`values` holds raw weights and, as "s", one number a Layer; 72 weights go to 18 where `control` is "quantile"."""

    def __init__(self, kind: str, control: str, start: float) -> None:
        super().__init__(kind)
        self.control = control
        self.values["s"] = np.full(2, start)

    def select(self, t: int) -> None:
        self.sigmoid = 1 / (1 + np.exp(-self.values["s"]))
        scores = [np.abs(self.values[name]) / s for name, s in zip(WEIGHTS, self.sigmoid, strict=True)]
        masks = [score > 1 for score in scores]
        self.c = 1.0
        if self.control == "quantile":
            masks = top_of_all(scores, left(72, 18, t))
            out = np.concatenate([score[~mask] for score, mask in zip(scores, masks, strict=True)])
            self.c = out.max(initial=0.0)
        self.masks = dict(zip(WEIGHTS, masks, strict=True))

    def reading(self) -> dict[str, np.ndarray]:
        soft = {}
        for name, s in zip(WEIGHTS, self.sigmoid, strict=True):
            w = self.values[name]
            soft[name] = np.where(self.masks[name], np.sign(w) * np.maximum(np.abs(w) - self.c * s, 0.0), 0.0)
        return soft

    def pulled(self, grads: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        on = [grads[name] * self.masks[name] for name in WEIGHTS]
        sums = [(g * np.sign(self.values[name])).sum() for g, name in zip(on, WEIGHTS, strict=True)]
        pulled = {**grads, **dict(zip(WEIGHTS, on, strict=True))}
        pulled["s"] = -np.array(sums) * self.c * self.sigmoid * (1 - self.sigmoid)
        if self.kind == "sgd":
            pulled["s"] = pulled["s"] + DECAY["sgd"] * self.values["s"]
        return pulled

    def step(self, t: int, lr: float) -> None:
        before = self.values["s"]
        super().step(t, lr)
        if self.kind == "adam":
            self.values["s"] = self.values["s"] - lr * DECAY["adam"] * before


@KERNELS
@OPTIMIZERS
@pytest.mark.parametrize(("control", "start"), [("quantile", -5.0), ("quantile", -40.0), ("free", -1.5)])
def test_every_step_of_a_run_equals_the_simulation(
    monkeypatch: pytest.MonkeyPatch, kernel: str, kind: str, control: str, start: float
) -> None:
    monkeypatch.setattr("pruning.DECAY", DECAY)
    rule, seen = Soft(kind, control, start), []
    method = STR(sparsity=0.75, control=control, s_init=start)

    def watch(model: SparseModel, t: int) -> None:
        rule.select(t + 1)
        for layer in model.layers:
            np.testing.assert_allclose(layer.weight.numpy(), rule.reading()[layer.key], rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(method.memory[f"raw.{layer.name}"], rule.values[layer.key], rtol=1e-9)
            assert layer.grad_mask is layer.forward_mask
        np.testing.assert_allclose(method.memory["s"], rule.values["s"], rtol=1e-9)
        seen.append([mask.copy() for mask in rule.masks.values()])

    follow(method, rule, kernel, watch)
    assert np.ptp(rule.values["s"]) > 1e-3, "Layers learn thresholds of their own"
    came = sum((b & ~a).sum() for one, two in pairwise(seen) for a, b in zip(one, two, strict=True))
    assert came > 0, "weights come back"
    assert control == "free" or sum(int(mask.sum()) for mask in seen[-1]) == 18


@pytest.mark.parametrize("control", ["quantile", "free"])
def test_the_pullback_is_autograd_of_the_formula(control: str) -> None:
    method = STR(sparsity=0.6, control=control, s_init=-1.5, start=0.0, stop=0.0)
    model = SparseModel(perceptron(), samples(0)[0])
    recipe = Recipe(steps=10, batch=8, lr={"sgd": 0.0, "adam": 0.0}, weight_decay={"sgd": 0.0, "adam": 0.0})
    method.attach(model, recipe, seed=0)
    with torch.no_grad():
        method.s += torch.tensor([0.4, -0.3])
    method.setup(lambda batches=1, create_graph=False, temperature=1.0: [])
    net = perceptron()
    raw = {key: net.state_dict()[key].clone().requires_grad_() for key in WEIGHTS}
    s = method.s.detach().clone().requires_grad_()
    scores = torch.cat([(raw[k].abs() / v).flatten() for k, v in zip(WEIGHTS, s.sigmoid(), strict=True)])
    c = 1.0 if control == "free" else float(scores.detach().sort(descending=True).values[29])  # 0.4 of 72 stay
    soft = {k: raw[k].sign() * (raw[k].abs() - c * v).relu() for k, v in zip(WEIGHTS, s.sigmoid(), strict=True)}
    inputs, labels = samples(3)
    nn.functional.cross_entropy(torch.func.functional_call(net, soft, (inputs,)), labels).backward()
    nn.functional.cross_entropy(model(inputs), labels).backward()
    method.step(0)
    torch.testing.assert_close(method.s.grad, s.grad)
    assert s.grad.abs().min() > 1e-4
    for layer, w in zip(model.layers, method.raw, strict=True):
        torch.testing.assert_close(layer.weight, soft[layer.key].detach())
        torch.testing.assert_close(w.grad, raw[layer.key].grad)
        assert 0 < layer.nnz() < layer.numel and not w.grad[~layer.forward_mask].any() and w.grad.any()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sparsity=st.sampled_from([0.0, 0.3, 0.9, 0.999]),
    weights=st.sampled_from(["as they are", "equal", "zero", "two values", "one Layer far smaller", "large"]),
    s=st.lists(st.sampled_from([-3200.0, -90.0, -5.0, 0.0, 30.0]), min_size=3, max_size=3),
    window=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
)
def test_the_controller_counts_exactly_at_every_step(blobs, sparsity, weights, s, window) -> None:
    method = attached(STR(sparsity=sparsity, start=window[0], stop=window[1]), with_recipe(blobs, steps=6))
    method.s.copy_(torch.tensor(s))
    for w in method.raw:
        change = {"equal": 0 * w + 0.1, "zero": 0 * w, "two values": w.sign() * 0.1 * (w > 0), "large": 1e5 * w}
        w.copy_(change.get(weights, w))
    if weights == "one Layer far smaller":
        method.raw[1].mul_(1e-20)
    first, last = (int(share * 5) for share in window)
    final = max(3, round((1 - sparsity) * 960))
    for t in range(7):
        method.read(t)
        progress = float(t >= last) if t <= first or t >= last else 1 - (1 - (t - first) / (last - first)) ** 3
        assert sum(int(layer.forward_mask.sum()) for layer in method.layers) == 960 - round(progress * (960 - final))
        for layer, w in zip(method.layers, method.raw, strict=True):
            assert layer.nnz() and layer.weight.isfinite().all() and not layer.weight[~layer.forward_mask].any()
            assert not (layer.weight * w < 0).any() and (layer.weight.abs() <= w.abs()).all()


def test_a_dense_start_reads_the_raw_weights(blobs) -> None:
    method = attached(STR(), blobs)
    assert method.memory["c"] == 0 and method.model.density == 1
    assert all(torch.equal(layer.weight, w) for layer, w in zip(method.layers, method.raw, strict=True))


def test_a_weight_that_is_read_as_zero_is_active_in_both_gradients(blobs) -> None:
    method = attached(STR(start=0.0, stop=0.0), blobs)
    method.raw[1].mul_(1e-3)
    method.read(1)
    layer, w = method.layers[1], method.raw[1].clone()
    largest = w.abs().argmax()
    assert layer.nnz() == 1 and layer.forward_mask.flatten()[largest] and not layer.weight.any()
    threshold = min(
        float(y.abs()[m.forward_mask].min()) for y, m in zip(method.raw[::2], method.layers[::2], strict=True)
    )
    for y in method.layers:
        y.parameter.grad = torch.zeros(y.shape)
    layer.parameter.grad = layer.forward_mask.float()
    method.step(0)
    assert torch.equal(method.raw[1].grad, layer.forward_mask.float()) and not method.raw[0].grad.any()
    wanted = -float(w.flatten()[largest].sign()) * threshold / (1 + math.exp(-5))  # 1 - sigmoid(-5)
    torch.testing.assert_close(method.s.grad, torch.tensor([0.0, wanted, 0.0]), rtol=0.05, atol=0)


def test_only_differences_between_layers_matter_to_the_quantile(blobs) -> None:
    method = attached(STR(start=0.0, stop=0.0), blobs)
    method.s.copy_(torch.tensor([-30.0, -30.2, -29.9]))
    method.read(1)
    masks, weights = [y.forward_mask for y in method.layers], [y.weight.clone() for y in method.layers]
    method.s.sub_(500)
    method.read(1)
    for layer, mask, weight in zip(method.layers, masks, weights, strict=True):
        assert torch.equal(layer.forward_mask, mask) and mask.any() and not mask.all()
        torch.testing.assert_close(layer.weight, weight, rtol=0, atol=1e-4)
    before = method.layers[0].nnz()
    method.s[0] += 0.5
    method.read(1)
    assert method.layers[0].nnz() < before, "a higher threshold leaves fewer"


def test_the_optimiser_steps_raw_weights_in_place_of_the_layers(blobs) -> None:
    method = STR()
    model = SparseModel(blobs.build(0), blobs.example(), ("head",))
    method.attach(model, blobs.recipe, seed=0)
    first, others, own = method.optimizer.param_groups
    head, biases = model.net.head.weight, [model.net.first.bias, model.net.second.bias, model.net.head.bias]
    assert [id(p) for p in first["params"]] == [id(p) for p in (*method.raw, head)]
    assert [id(p) for p in others["params"]] == [id(p) for p in biases]
    assert len(own["params"]) == 1 and own["params"][0] is method.s and method.s.tolist() == [-5.0, -5.0]
    assert [group["weight_decay"] for group in (first, others, own)] == [5e-4, 0.0, 5e-4]


@KERNELS
def test_memory_counts_the_raw_weights(blobs, kernel: str) -> None:
    training = trained(with_recipe(blobs, steps=40), STR(), kernel)
    raw = sum(w.numel() for w in training.method.raw)
    assert raw == 960 and training_state(training.model, training.method.optimizer) >= 3 * 4 * raw  # w, gradient, state
    for layer in training.model.layers:
        assert layer.parameter not in training.method.optimizer.state
        assert layer.parameter.numel() == (layer.nnz() if kernel == "compact" else layer.numel)
        assert torch.equal(values(training.model)[layer.key] != 0, layer.forward_mask), "the model is what passes read"


def test_raw_weights_off_the_mask_decay_and_nothing_else(blobs) -> None:
    task = with_recipe(blobs, steps=200, weight_decay={"sgd": 0.1, "adam": 0.1}, momentum=0.0)
    training = Training(task, STR(sparsity=0.5, start=0.0, stop=0.0))
    training.setup()
    moved = 0
    for t in range(5):
        before = [w.clone() for w in training.method.raw]
        masks = [layer.forward_mask for layer in training.model.layers]
        training.run(until=t + 1)
        rate = 0.1 * 0.05 * 0.5 * (1 + math.cos(math.pi * t / 200))
        for w, old, mask in zip(training.method.raw, before, masks, strict=True):
            torch.testing.assert_close(w[~mask], old[~mask] * (1 - rate))
            moved += int((w[mask] != old[mask] * (1 - rate)).sum())
    assert moved > 5 * 50


@pytest.mark.parametrize("start", [-1e6, -3200.0, -2.0, 20.0])
def test_free_thresholds_are_sigmoid_of_s(blobs, start: float) -> None:
    method = attached(STR(control="free", s_init=start), blobs)
    threshold = 1 / (1 + math.exp(min(-start, 700)))
    for layer, w in zip(method.layers, method.raw, strict=True):
        assert torch.equal(layer.forward_mask, w.abs() > threshold)
        torch.testing.assert_close(layer.weight, w.sign() * (w.abs() - threshold).clamp(min=0))
    assert (method.model.density == 1) == (start < -100) and (method.model.density == 0) == (start > 0)


def test_the_papers_flops_are_three_sparse_passes(images) -> None:
    task = with_recipe(images, steps=40)
    total, forward = spent(task, STR())
    assert total == pytest.approx(3 * sum(forward), rel=5e-3)
    assert forward[0] > forward[10] > forward[29] and len({*forward}) > 20


@pytest.mark.sampled(1)
@KERNELS
@OPTIMIZERS
@pytest.mark.parametrize("stop", [1, 20])
def test_resuming_is_bit_exact(images, kernel: str, kind: str, stop: int) -> None:
    same_after_resume(with_recipe(images, steps=30, optimizer=kind), STR, stop, kernel)


@OPTIMIZERS
def test_both_storages_train_alike(images, kind: str) -> None:
    task = with_recipe(images, optimizer=kind, steps=30)
    masked, compact = (trained(task, STR(), kernel).curve["loss"] for kernel in ("masked", "compact"))
    assert masked == pytest.approx(compact, rel=1e-4)


@pytest.mark.parametrize("control", ["quantile", "free"])
def test_it_learns(blobs, control: str) -> None:
    training = trained(with_recipe(blobs, steps=200), STR(control=control))
    assert training.evaluate("test") > 0.7


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"control": "fre"}, "str: control is 'fre'; choose one of quantile, free; did you mean 'free'"),
        ({"start": 0.8}, "str: start is 0.8; give a value from 0 to 0.75"),
        ({"stop": 1.5}, "str: stop is 1.5; give a value from 0 to 1"),
    ],
)
def test_bad_fields(fields, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        STR(**fields)
