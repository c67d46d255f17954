"""Top-KAST against NumPy: what is read, what moves, what waits, and what it all costs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dstbench.methods.topkast import TopKAST
from dstbench.suite.export import values
from dstbench.suite.model import SparseModel
from dstbench.suite.train import Training
from pruning import POSITIONS, WEIGHTS, attached, read, same_after_resume, trained, with_recipe
from test_straight_through import KERNELS, OPTIMIZERS, Rule, follow, top


class Sets(Rule):
    """A of 12 and 6 of the 48 and 24 weights, B of 21 and 10 (rounded to even: 10.5), drawn anew every 5 steps."""

    def __init__(self, kind: str, init: str, penalty: float) -> None:
        super().__init__(kind)
        self.penalty = penalty
        for name, n in zip(WEIGHTS, (12, 6), strict=True) if init == "sparse" else ():
            squares = np.sort(self.values[name].ravel() ** 2)
            self.values[name] = self.values[name] * math.sqrt(squares.sum() / squares[-n:].sum())

    def select(self, t: int) -> None:
        if t % 5 == 0:
            size = {name: np.abs(self.values[name]) for name in WEIGHTS}
            self.masks = {name: top(size[name], n) for name, n in zip(WEIGHTS, (12, 6), strict=True)}
            self.wide = {name: top(size[name], n) for name, n in zip(WEIGHTS, (21, 10), strict=True)}
            for moments in (self.first, self.second):
                for name in moments.keys() & self.wide.keys():
                    moments[name] = moments[name] * self.wide[name]

    def pulled(self, grads: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name in WEIGHTS:
            rate = np.where(self.masks[name], self.penalty, self.penalty / 0.25)
            grads[name] = np.where(self.wide[name], grads[name] + rate * self.values[name], 0.0)
        return grads


@KERNELS
@OPTIMIZERS
@pytest.mark.parametrize("init", ["sparse", "dense"])
def test_every_step_of_a_run_equals_the_simulation(
    monkeypatch: pytest.MonkeyPatch, kernel: str, kind: str, init: str
) -> None:
    monkeypatch.setattr("pruning.DECAY", {"sgd": 0.0, "adam": 0.0})  # the recipe decays, the Layers do not
    rule, before = Sets(kind, init, 0.02), {}
    moved = {"in": 0, "out": 0}

    def watch(model: SparseModel, t: int) -> None:
        for layer in model.layers:
            wide = rule.wide[layer.key]
            assert np.array_equal(layer.grad_mask.numpy(), wide)
            np.testing.assert_allclose(layer.weight.numpy(), rule.values[layer.key], rtol=1e-9, atol=1e-12)
            moments = (rule.first, rule.second) if kind == "adam" else (rule.first,)
            for found, wanted in zip(layer.state.values(), moments, strict=True):
                np.testing.assert_allclose(found.numpy(), wanted[layer.key], rtol=1e-9, atol=1e-12)
            last = before.get(layer.key, wide)
            moved["in"] += int((wide & ~last).sum())
            moved["out"] += int((last & ~wide).sum())
            before[layer.key] = wide

    method = TopKAST(sparsity=0.75, allocation="uniform", init=init, extra=0.75, penalty=0.02, period=5)
    follow(method, rule, kernel, watch)
    assert moved["in"] == moved["out"] > 3


@KERNELS
@OPTIMIZERS
def test_weights_off_b_keep_their_values_bit_for_bit_and_come_back(images, kernel: str, kind: str) -> None:
    decay = {"sgd": 0.1, "adam": 0.1}
    task = with_recipe(images, optimizer=kind, steps=30, weight_decay=decay)
    training = Training(task, TopKAST(sparsity=0.8, allocation="uniform", period=3), kernel=kernel)
    training.setup()
    layers, back = training.model.layers, 0
    for t in range(30):
        held = [layer.weight.clone() for layer in layers]
        sets = [layer.grad_mask for layer in layers]
        training.run(until=t + 1)
        for layer, weight, earlier in zip(layers, held, sets, strict=True):
            off = ~layer.grad_mask
            assert torch.equal(layer.weight[off], weight[off]) and weight[off].any()
            assert not (layer.forward_mask & off).any()
            assert not any(state[off].any() for state in layer.state.values())
            back += int((layer.grad_mask & ~earlier).sum())
    assert back > 3


def test_a_weight_that_waited_is_read_with_its_value(blobs) -> None:
    method = attached(TopKAST(sparsity=0.9, period=4, init="dense"), blobs)
    layer = method.layers[0]
    wait = ~layer.grad_mask
    large = int(layer.weight.abs().masked_fill(~wait, 0).argmax())
    value = layer.weight.flatten()[large].clone()
    layer.assign(torch.where(wait, layer.weight, layer.weight * 1e-3))
    method.begin(3)
    assert not layer.forward_mask.flatten()[large]
    method.begin(4)
    assert layer.forward_mask.flatten()[large] and layer.weight.flatten()[large] == value


@KERNELS
def test_the_penalty_by_hand(blobs, kernel: str) -> None:
    """Without a loss SGD shrinks A by lr penalty, the rest of B by lr penalty over the density, and nothing else."""
    method = TopKAST(sparsity=0.75, allocation="uniform", penalty=0.1)
    model = SparseModel(blobs.build(0), blobs.example(), ("head",), kernel)
    method.attach(model, with_recipe(blobs, weight_decay={"sgd": 0.5, "adam": 0.5}).recipe, seed=0)
    method.setup(lambda batches=1, create_graph=False, temperature=1.0: [])
    before = [layer.weight.clone() for layer in model.layers]
    head, bias = model.net.head.weight, model.net.first.bias
    plain = head.detach().clone(), bias.detach().clone()
    for parameter in model.net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model.pack()
    method.step(0)
    for layer, weight in zip(model.layers, before, strict=True):
        rate = 0.1 * torch.where(layer.forward_mask, 1.0, 4.0) * layer.grad_mask
        torch.testing.assert_close(layer.weight, weight * (1 - 0.05 * rate))
    torch.testing.assert_close(head.detach(), plain[0] * (1 - 0.05 * 0.5))  # no Layer: the recipe's decay
    assert torch.equal(bias, plain[1])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sparsity=st.sampled_from([0.0, 0.3, 0.9, 0.999]),
    extra=st.sampled_from([0.0, 0.5, 1.0, 1e6]),
    allocation=st.sampled_from(["uniform", "erk"]),
    value=st.sampled_from([0.0, 1.0, math.nan]),
)
def test_sets_are_exact_and_nested_where_all_weights_are_equal(blobs, sparsity, extra, allocation, value) -> None:
    method = attached(TopKAST(sparsity=sparsity, extra=extra, allocation=allocation, period=1), blobs)
    first = [layer.nnz() for layer in method.layers]
    assert sum(first) == max(3, round((1 - sparsity) * 960))
    for t in range(1, 4):
        for layer in method.layers:
            layer.assign(torch.full(layer.shape, value))
        method.begin(t)
        for layer, n in zip(method.layers, first, strict=True):
            assert int(layer.forward_mask.sum()) == n
            assert abs(int(layer.grad_mask.sum()) - min(layer.numel, n * (1 + extra))) <= 0.5
            assert not (layer.forward_mask & ~layer.grad_mask).any()


@pytest.mark.parametrize(("sparsity", "extra", "ratio"), [(0.9, 1.0, 0.4 / 3), (0.8, 2.0, 1.0 / 3), (0.5, 9.0, 2 / 3)])
def test_the_papers_flops_of_a_run(images, sparsity: float, extra: float, ratio: float) -> None:
    """2 f_A + f_B: of dense (2 d + min(1, (1 + extra) d)) / 3 at the same density d everywhere."""
    task = with_recipe(images, steps=40)
    sets: list[tuple[float, float]] = []
    training = Training(task, TopKAST(sparsity=sparsity, extra=extra, allocation="uniform"))
    descend = training.method.descend

    def watched(batch: object) -> Tensor:
        wide = sum(2 * POSITIONS[y.name] * int(y.grad_mask.sum()) for y in training.model.layers)
        sets.append((read(training), wide))
        return descend(batch)

    training.method.descend = watched  # type: ignore[method-assign]
    training.setup()
    training.run()
    block = training.book.block(training.model.dense_passes, training.model.cost(), training.samples)
    assert training.book.papers / 16 == pytest.approx(sum(2 * a + b for a, b in sets), rel=5e-3)
    assert block["papers_ratio"] == pytest.approx(ratio, rel=0.02)  # whole weights


@KERNELS
def test_after_exploring_b_is_a_for_good(blobs, kernel: str) -> None:
    training = Training(with_recipe(blobs, steps=40), TopKAST(explore=0.5, period=4), kernel=kernel)
    training.setup()
    layers, sets = training.model.layers, []
    for t in range(40):
        training.run(until=t + 1)
        sets.append([y.forward_mask for y in layers])
        assert all((y.grad_mask is y.forward_mask) == (t >= 20) for y in layers)
    assert all(a is b for a, b in zip(sets[16], sets[39], strict=True)), "drawn last at step 16"
    assert not all(torch.equal(a, b) for a, b in zip(sets[0], sets[16], strict=True))


def test_never_exploring_keeps_the_first_sets(blobs) -> None:
    method = attached(TopKAST(explore=0.0), blobs)
    first = [layer.forward_mask for layer in method.layers]
    for t in range(60):
        method.begin(t)
    assert all(y.forward_mask is y.grad_mask is mask for y, mask in zip(method.layers, first, strict=True))


def test_sets_are_drawn_at_every_period_to_the_end(blobs) -> None:
    drawn: list[int] = []
    method = attached(TopKAST(), blobs)
    method.refresh = lambda: drawn.append(t)  # type: ignore[method-assign]
    for t in range(60):
        method.begin(t)
    assert drawn == list(range(4, 60, 4)), "the recipe's period is 4"


@KERNELS
def test_what_the_end_leaves_unread_is_no_part_of_the_model(blobs, kernel: str) -> None:
    training = trained(with_recipe(blobs, steps=40), TopKAST(), kernel)
    model, inputs = training.model, next(blobs.batches("valid", 0))[0]
    model.net.eval()
    masks, output = [y.forward_mask for y in model.layers], model(inputs)
    assert all(y.weight[~y.grad_mask].any() for y in model.layers)
    training.method.finish()
    assert torch.equal(model(inputs), output)
    for layer, mask in zip(model.layers, masks, strict=True):
        assert layer.forward_mask is layer.grad_mask is mask and not values(model)[layer.key][~mask].any()


def test_a_restart_forgets_momentum_but_not_what_waits(blobs) -> None:
    training = trained(with_recipe(blobs, steps=20), TopKAST())
    before = [layer.weight.clone() for layer in training.model.layers]
    training.method.restart()
    for layer, weight in zip(training.model.layers, before, strict=True):
        assert torch.equal(layer.weight, weight) and not layer.state


@pytest.mark.sampled(1)
@KERNELS
@OPTIMIZERS
@pytest.mark.parametrize("stop", [1, 15, 16])
def test_resuming_is_bit_exact(blobs, kernel: str, kind: str, stop: int) -> None:
    same_after_resume(with_recipe(blobs, steps=30, optimizer=kind), lambda: TopKAST(period=5), stop, kernel)


@OPTIMIZERS
def test_both_storages_train_alike(images, kind: str) -> None:
    task = with_recipe(images, optimizer=kind, steps=30)
    masked, compact = (trained(task, TopKAST(period=5), kernel).curve["loss"] for kernel in ("masked", "compact"))
    assert masked == pytest.approx(compact, rel=1e-4)


def test_it_learns(blobs) -> None:
    assert trained(with_recipe(blobs, steps=200), TopKAST()).evaluate("test") > 0.7


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"allocation": "erkk"}, "topkast: allocation is 'erkk'.*did you mean 'erk'"),
        ({"init": "spare"}, "topkast: init is 'spare'; choose one of sparse, dense"),
        ({"extra": -0.1}, "topkast: extra is -0.1; give a value from 0 to inf"),
        ({"penalty": -1.0}, "topkast: penalty is -1"),
        ({"period": -1}, "topkast: period is -1"),
        ({"explore": 1.5}, "topkast: explore is 1.5; give a value from 0 to 1"),
    ],
)
def test_bad_fields(fields, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        TopKAST(**fields)
