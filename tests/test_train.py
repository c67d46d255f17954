"""The loop: equal to a plain PyTorch loop, bit-exact after a resume, the same on both storages, and its books."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from dstbench.suite.method import Method
from dstbench.suite.recipe import Recipe
from dstbench.suite.train import Diverged, Training


@dataclass
class Plain(Method):
    """Dense training."""

    name = "plain"
    sparse = False


@dataclass
class Half(Method):
    """Half of every Layer at random, re-drawn now and then; the gradient is dense on those steps."""

    name = "half"

    def draw(self) -> None:
        for layer in self.layers:
            layer.activate(torch.rand(layer.shape, generator=self.rng) < 0.5)

    def setup(self, gradients) -> None:
        self.draw()
        self.memory["redrawn"] = 0

    def begin(self, t: int) -> None:
        for layer in self.layers:
            layer.grad_mask = None if t % 10 == 5 else layer.forward_mask

    def step(self, t: int) -> None:
        if t % 10 == 5:
            self.memory["redrawn"] += 1
            return self.draw()
        super().step(t)


def with_recipe(task, **changes):
    return replace(task, recipe=replace(task.recipe, **changes))


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_dense_training_equals_a_plain_loop(blobs, kind: str) -> None:
    task = with_recipe(blobs, optimizer=kind, warmup=0.1, label_smoothing=0.1)
    training = Training(task, Plain(), seed=3)
    training.setup()
    training.run()
    net, r = task.build(3), task.recipe
    weights = [m.weight for m in net.modules() if isinstance(m, nn.Linear)]
    biases = [m.bias for m in net.modules() if isinstance(m, nn.Linear)]
    groups = [{"params": weights}, {"params": biases, "weight_decay": 0.0}]
    if kind == "sgd":
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=5e-4)
    else:
        optimizer = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.05)
    stream = task.batches("train", 3)
    for t in range(60):
        start = 1 / 6
        factor = start + (1 - start) * t / 6 if t < 6 else 0.5 * (1 + math.cos(math.pi * (t - 6) / 54))
        assert r.factor(t) == pytest.approx(factor)
        for group in optimizer.param_groups:
            group["lr"] = r.lr[kind] * factor
        x, y = next(stream)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y, label_smoothing=0.1).backward()
        optimizer.step()
    for ours, theirs in zip(training.model.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert training.evaluate("test") > 0.7


@pytest.mark.sampled(2)
@pytest.mark.parametrize("method", [Plain, Half])
@pytest.mark.parametrize("kernel", ["masked", "compact"])
@pytest.mark.parametrize("stop", [1, 25, 26])
def test_resuming_is_bit_exact(images, method, kernel: str, stop: int) -> None:
    task = with_recipe(images, steps=40)
    whole = Training(task, method(), seed=1, kernel=kernel)
    whole.setup()
    whole.run()
    first = Training(task, method(), seed=1, kernel=kernel)
    first.setup()
    first.run(until=stop)
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    torch.manual_seed(1234)
    second = Training(task, method(), seed=1, kernel=kernel)
    second.load(torch.load(file, weights_only=True))
    second.run()
    assert second.curve == whole.curve and second.book == whole.book
    assert second.method.memory == whole.method.memory
    for a, b in zip(whole.model.layers, second.model.layers, strict=True):
        assert torch.equal(a.weight, b.weight) and a.nnz() == b.nnz()
        for name, value in a.state.items():
            assert torch.equal(value, b.state[name]), name
    for a, b in zip(whole.model.net.buffers(), second.model.net.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_both_storages_train_to_the_same_losses(images, kind: str) -> None:
    losses = []
    for kernel in ("masked", "compact"):
        training = Training(with_recipe(images, optimizer=kind), Half(), kernel=kernel)
        training.setup()
        training.run()
        losses.append(training.curve["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_accumulation_gives_the_step_of_the_whole_batch(blobs) -> None:
    ends = []
    for accumulate in (1, 4):
        training = Training(with_recipe(blobs, accumulate=accumulate, steps=20), Half())
        training.setup()
        training.run()
        ends.append(training)
    for a, b in zip(ends[0].model.layers, ends[1].model.layers, strict=True):
        torch.testing.assert_close(a.weight, b.weight, rtol=1e-4, atol=1e-6)
    assert ends[0].book == ends[1].book


def test_clipping_counts_what_the_pass_reads_and_scales_everything(blobs) -> None:
    training = Training(blobs, Half())
    training.setup()
    for layer in training.model.layers:
        layer.grad_mask = None
    training.backward(next(blobs.batches("train", 0)))
    before = {layer.name: layer.grad.clone() for layer in training.model.layers}
    biases = [p.grad for p in training.model.net.parameters() if p.dim() == 1]
    counted = [before[y.name][y.forward_mask].square().sum() for y in training.model.layers]
    norm = math.sqrt(sum(float(c) for c in counted) + sum(float(b.square().sum()) for b in biases))
    training.clip(norm / 2)
    for layer in training.model.layers:
        torch.testing.assert_close(layer.grad, before[layer.name] / 2, rtol=1e-4, atol=1e-7)
    training.clip(norm)
    for layer in training.model.layers:
        torch.testing.assert_close(layer.grad, before[layer.name] / 2, rtol=1e-4, atol=1e-7)


def test_an_infinite_loss_ends_training(blobs) -> None:
    training = Training(with_recipe(blobs, lr={"sgd": 1e30, "adam": 1.0}), Plain())
    with pytest.raises(Diverged, match=r"the loss is (nan|inf) at step \d+ of 60"):
        training.run()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_trains(blobs, precision: str) -> None:
    training = Training(with_recipe(blobs, precision=precision), Plain())
    training.setup()
    training.run()
    assert training.evaluate("test") > 0.7


def test_an_fp16_overflow_halves_the_scale_and_repeats_the_pass_at_its_price(blobs) -> None:
    training = Training(with_recipe(blobs, precision="fp16", steps=1), Plain())
    training.scale = 2.0**40
    training.run()
    assert training.scale < 2.0**40
    passes = round(math.log2(2.0**40 / training.scale)) + 1
    assert training.book.samples == 16 * passes
    assert all(p.isfinite().all() for p in training.model.net.parameters())


def test_the_book_adds_up_by_hand(blobs) -> None:
    task = with_recipe(blobs, steps=20)
    training = Training(task, Half())
    training.setup()
    sizes = {y.name: y.numel for y in training.model.layers}
    expected = {"forward": 0, "inputs": 0, "weights": 0}
    dense_steps = 0

    class Spy(Half):
        def descend(self, batch):
            nonlocal dense_steps
            dense_steps += self.layers[0].grad_mask is None
            for layer in self.layers:
                read = int(layer.forward_mask.sum())
                expected["forward"] += 2 * read * 16
                expected["inputs"] += 2 * read * 16 * (layer.name != "first")
                expected["weights"] += 2 * 16 * (layer.numel if layer.grad_mask is None else int(layer.grad_mask.sum()))
            return super().descend(batch)

    training = Training(task, Spy())
    training.setup()
    training.run()
    assert sizes == {"first": 288, "second": 576, "head": 96}
    assert {k: getattr(training.book, k) for k in expected} == expected
    assert training.book.dense_gradient_steps == dense_steps == 2
    assert training.book.source == "self-reported", "descend is overridden"
    dense = training.model.dense_passes.dense * 16 * 20
    block = training.book.block(training.model.dense_passes, training.model.cost(), training.samples)
    assert block["dense_total"] == dense


def test_a_method_that_trains_longer_pays_for_it(blobs) -> None:
    ratios = []
    for factor in (1.0, 2.0):
        training = Training(blobs, Plain(budget=factor))
        training.run()
        block = training.book.block(training.model.dense_passes, training.model.cost(), training.samples)
        ratios.append((training.t, block["ratio"]))
    assert ratios == [(60, pytest.approx(1.0)), (120, pytest.approx(2.0))]


def test_setup_gradients_are_counted_by_the_operation_and_charges_are_booked(blobs) -> None:
    class Scored(Plain):
        def setup(self, gradients) -> None:
            self.grads = gradients(batches=2)
            self.charge(1000)

    training = Training(with_recipe(blobs, steps=1), Scored())
    training.setup()
    assert training.book.setup == 2 * 16 * training.model.dense_passes.dense
    total = [torch.zeros(y.shape) for y in training.model.layers]
    stream, net = blobs.batches("calibration", 0), blobs.build(0)
    for _ in range(2):
        x, y = next(stream)
        found = torch.autograd.grad(
            nn.functional.cross_entropy(net(x), y), [m.weight for m in net.modules() if isinstance(m, nn.Linear)]
        )
        total = [a + b for a, b in zip(total, found, strict=True)]
    for ours, theirs in zip(training.method.grads, total, strict=True):
        torch.testing.assert_close(ours, theirs)
    training.run()
    assert training.book.charged == 1000 and training.book.total > training.book.setup + 1000


def test_calibration_gradients_can_be_differentiated_again(images) -> None:
    class Second(Plain):
        def setup(self, gradients) -> None:
            parameters = [y.parameter for y in self.layers]
            grads = gradients(create_graph=True)
            self.second = torch.autograd.grad(sum(g.square().sum() for g in grads), parameters)

    training = Training(images, Second())
    training.setup()
    assert all(g.any() for g in training.method.second)
    assert training.book.setup > 2 * 16 * training.model.dense_passes.dense


def test_the_memory_meter_sees_the_dense_gradient_step(blobs) -> None:
    trainings = [Training(with_recipe(blobs, steps=20), method(), kernel="compact") for method in (Plain, Half)]
    for training in trainings:
        training.setup()
        training.run()
    dense, half = (training.memory.block()["training_state"] for training in trainings)
    parameters = sum(p.numel() for p in trainings[0].model.net.parameters())
    assert dense >= 3 * 4 * parameters, "values, gradients and momentum"
    assert half > 0.5 * dense


def test_recipes_say_what_is_wrong_with_them() -> None:
    with pytest.raises(ValueError, match=r"recipe.optimizer is 'sgdd'; choose one of sgd, adam"):
        Recipe(steps=1, batch=1, lr={}, optimizer="sgdd")
    with pytest.raises(ValueError, match=r"recipe.batch 10 does not split into 3 equal micro-batches"):
        Recipe(steps=1, batch=10, lr={}, accumulate=3)
    for field, value, wanted in (
        ("schedule", "cosin", "choose one of cosine"),
        ("momentum", 1.0, r"a factor in \[0, 1\)"),
        ("warmup", 2.0, "a share of the steps"),
        ("clip", -1.0, "a norm, or 0 for none"),
        ("plain_scale", 0.0, "a factor above 0"),
    ):
        with pytest.raises(ValueError, match=rf"recipe\.{field} is '?{value}'?; (give )?{wanted}"):
            Recipe(**{"steps": 1, "batch": 1, "lr": {}, field: value})
    for name, wrong, why in (
        ("lr", 0.1, r"recipe.lr is 0.1; give one for each kind: \{'sgd': ..., 'adam': ...\}"),
        ("weight_decay", None, r"recipe.weight_decay is None; give one for each kind"),
        ("lr", {"sgd": None}, r"recipe.lr\['sgd'\] is None; a number is expected"),
        ("lr", {"sgd": float("inf")}, r"recipe.lr\['sgd'\] is inf; give a finite number"),
    ):
        with pytest.raises(ValueError, match=why):
            Recipe(**{"steps": 1, "batch": 1, "lr": {"sgd": 0.1}, name: wrong})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"recipe.steps is 0; at least 1"):
        Recipe(steps=0, batch=1, lr={})


@pytest.mark.parametrize(("steps", "period"), [(480, 16), (75_000, 100), (3000, 100), (312, 10), (20, 4)])
def test_the_period_leaves_thirty_updates_where_it_can(steps: int, period: int) -> None:
    assert Recipe(steps=steps, batch=1, lr={}).period == period


def test_the_schedule_warms_up_and_ends_near_zero() -> None:
    recipe = Recipe(steps=100, batch=1, lr={}, warmup=0.1)
    factors = [recipe.factor(t) for t in range(100)]
    assert factors[0] < 0.2 and factors[10] == max(factors) == pytest.approx(1.0) and factors[-1] < 0.01
    assert factors[60] == recipe.factor(60), "a pure function of t"


@pytest.mark.slow
def test_compiled_networks_train_to_the_same_losses(blobs) -> None:
    losses = []
    for compiled in (False, True):
        training = Training(with_recipe(blobs, compile=compiled, steps=30), Half())
        training.setup()
        training.run()
        losses.append(training.curve["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
