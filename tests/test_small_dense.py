"""SmallDense: the nearest width by closed forms and brute force, what a record says of it, and who cannot have it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from conftest import Blobs, Perceptron
from dstbench.methods.small_dense import SmallDense
from dstbench.suite.layer import Layer
from dstbench.suite.model import SparseModel
from dstbench.suite.task import Task
from dstbench.suite.train import Training
from dstbench.tasks.digits import MLP, RESNET, VIT


@dataclass(frozen=True)
class Widths(Blobs):
    """Blobs with a perceptron of round(40 width) hidden units, 12 inputs and 4 classes: h^2 + 16 h weights."""

    def build(self, seed: int, width: float = 1.0) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Perceptron(max(1, round(40 * width)))


def layers(task: Task, net: nn.Module) -> list[Layer]:
    return SparseModel(net, task.example(), task.dense).layers


def number(task: Task, net: nn.Module) -> int:
    return sum(layer.numel for layer in layers(task, net))


# ---- equal in weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sparsity", "hidden", "weights", "other"),
    (
        (0.5, 63, 8631, 8832),  # 8700 are asked for
        (0.8, 33, 3531, 3392),  # 3480
        (0.9, 19, 1767, 1656),  # 1740
        (0.95, 10, 840, 935),  # 870
        (0.98, 4, 312, 395),  # 348
    ),
)
def test_the_width_of_digits_mlp_by_hand(sparsity: float, hidden: int, weights: int, other: int) -> None:
    """64 h + h^2 + 10 h weights; `other` is the neighbour on the other side of what is asked for."""
    method = SmallDense(sparsity=sparsity)
    net = method.network(MLP, seed=0)
    found = [tuple(layer.shape) for layer in layers(MLP, net)]
    assert found == [(hidden, 64), (hidden, hidden), (10, hidden)]
    assert number(MLP, net) == weights and method.grain == abs(weights - other)


@settings(max_examples=12)
@given(st.floats(0.0, 0.999))
def test_no_other_width_is_nearer(sparsity: float) -> None:
    task = Widths()
    method = SmallDense(sparsity=sparsity)
    weights = number(task, method.network(task, 0))
    reachable = np.array([h * h + 16 * h for h in range(1, 41)])
    wanted = (1 - sparsity) * reachable[-1]
    assert abs(weights - wanted) == np.abs(reachable - wanted).min()
    below, above = reachable[reachable < wanted], reachable[reachable >= wanted]
    assert method.grain == (above[0] - below[-1] if len(below) else 1)


def test_without_sparsity_it_is_the_tasks_own_network() -> None:
    for match in ("parameters", "flops"):
        method = SmallDense(sparsity=0.0, match=match)
        net, own = method.network(MLP, 5), MLP.build(5)
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), own.parameters(), strict=True))
        assert method.grain == 17400 - (99 * 99 + 74 * 99)


def test_a_network_that_cannot_be_that_small_misses_and_says_so() -> None:
    method = SmallDense(sparsity=0.999)  # 17.4 weights; one unit in each hidden layer makes 75
    assert number(MLP, method.network(MLP, 0)) == 75 and method.grain == 1


def test_it_is_initialised_from_the_seed() -> None:
    first, again, other = (list(SmallDense().network(MLP, seed).parameters()) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_layers_that_the_task_keeps_dense_are_in_no_count() -> None:
    """Without the head, which narrows all the same, there are 64 h + h^2 weights: 1640 are asked for."""
    task = replace(MLP, dense=("fc3",))
    found = layers(task, SmallDense(sparsity=0.9).network(task, 0))
    assert [tuple(layer.shape) for layer in found] == [(20, 64), (20, 20)]


def test_widths_are_multiples_where_the_task_says_so() -> None:
    """digits/vit in embed_dim d: 16 d of the patches, 2 (3 + 1 + 4 + 4) d^2 of the blocks, 10 d of the head."""
    net = SmallDense(sparsity=0.9).network(VIT, 0)
    reachable = [26 * d + 24 * d * d for d in range(4, 49, 4)]
    assert number(VIT, net) == min(reachable, key=lambda n: abs(n - 0.1 * reachable[-1]))


# ---- equal in FLOPs --------------------------------------------------------------------------------------------------


def convolutions(channels: tuple[int, ...]) -> list[tuple[tuple[int, ...], int]]:
    """(shape, positions) of every weight of digits/resnet: 8x8 images, one basic block a stage, halved from the 2nd."""
    first, side, found = channels[0], 8, []
    found.append(((first, 1, 3, 3), side**2))
    for before, here in zip((first, *channels), channels, strict=False):
        narrower = len(found) > 1
        side = side // 2 if narrower else side
        found += [((here, before, 3, 3), side**2), ((here, here, 3, 3), side**2)]
        if narrower:
            found.append(((here, before, 1, 1), side**2))
    return [*found, ((10, channels[-1]), 1)]


def sizes(channels: tuple[int, ...]) -> tuple[int, int]:
    """Weights and FLOPs."""
    known = [(int(np.prod(shape)), positions) for shape, positions in convolutions(channels)]
    return sum(n for n, _ in known), sum(2 * n * positions for n, positions in known)


def erk_flops(channels: tuple[int, ...], density: float) -> float:
    """Forward FLOPs at min(1, e sum(dims) / prod(dims)) of each weight, e found by halving."""
    known = [(sum(s), int(np.prod(s)), positions) for s, positions in convolutions(channels)]
    low, high = 0.0, 1e6
    for _ in range(200):
        e = (low + high) / 2
        weights = sum(min(n, e * ratio) for ratio, n, _ in known)
        low, high = (e, high) if weights < density * sum(n for _, n, _ in known) else (low, e)
    return sum(2 * min(n, high * ratio) * positions for ratio, n, positions in known)


FULL = (8, 16, 32, 64)
NARROWER = {tuple(2 * max(1, round(k / 2000 * c / 2)) for c in FULL) for k in range(1, 2001)}


def test_the_oracle_knows_the_network() -> None:
    found = {tuple(y.shape): y.positions for y in layers(RESNET, RESNET.build(0))}
    assert found == dict(convolutions(FULL)) and len(NARROWER) > 40


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("match", "sparsity"), (("parameters", 0.9), ("flops", 0.9), ("flops", 0.98)))
def test_no_other_width_of_digits_resnet_is_nearer(match: str, sparsity: float) -> None:
    method = SmallDense(sparsity=sparsity, match=match)
    found = layers(RESNET, method.network(RESNET, 0))
    which = ("parameters", "flops").index(match)
    wanted = erk_flops(FULL, 1 - sparsity) if which else (1 - sparsity) * sizes(FULL)[0]
    nearest = min(NARROWER, key=lambda channels: abs(sizes(channels)[which] - wanted))
    assert [tuple(y.shape) for y in found] == [shape for shape, _ in convolutions(nearest)]
    ordered = sorted(map(sizes, NARROWER), key=lambda size: size[which])
    place = next(i for i, size in enumerate(ordered) if size[which] >= wanted)
    missed = abs(sizes(nearest)[0] - round((1 - sparsity) * sizes(FULL)[0])) if which else 0
    assert method.grain == max(ordered[place][0] - ordered[place - 1][0], missed)


def test_a_perceptron_has_the_same_width_by_both() -> None:
    """Every weight is used once, so that equal weights are equal FLOPs."""
    nets = [SmallDense(sparsity=0.8, match=match).network(MLP, 0) for match in ("parameters", "flops")]
    assert number(MLP, nets[0]) == number(MLP, nets[1]) == 3531


# ---- as a run --------------------------------------------------------------------------------------------------------


def trained(kernel: str = "masked", optimizer: str = "sgd") -> Training:
    task = replace(MLP, recipe=replace(MLP.recipe, steps=60, optimizer=optimizer))
    training = Training(task, SmallDense(sparsity=0.9), seed=1, kernel=kernel)
    training.setup()
    training.run()
    return training


@pytest.mark.parametrize("optimizer", ("sgd", "adam"))
def test_a_record_measures_it_against_the_tasks_network(optimizer: str) -> None:
    training = trained(optimizer=optimizer)
    model, loss = training.model, training.curve["loss"]
    assert (model.maskable, model.density) == (17400, 1767 / 17400)
    assert training.curve["density"][-1] == model.density == training.explored.share
    block = training.book.block(model.dense_passes, model.cost(), training.samples)
    assert block["papers_ratio"] == pytest.approx(1767 / 17400) and block["dense_gradient_steps"] == 60
    assert block["inference"] == 2 * 1767 and block["dense_inference"] == 2 * 17400
    assert np.mean(loss[-5:]) < np.mean(loss[:5])


def test_it_is_dense() -> None:
    for layer in trained().model.layers:
        assert layer.forward_mask is None and layer.grad_mask is None and layer.density == 1
        assert layer.state["momentum_buffer"].count_nonzero() > 0.5 * layer.numel


def test_both_storages_train_alike() -> None:
    masked, compact = trained(), trained("compact")
    assert masked.curve["loss"] == pytest.approx(compact.curve["loss"], rel=1e-4)


# ---- who cannot have it ----------------------------------------------------------------------------------------------


def test_a_task_of_one_width_is_skipped_with_its_reason() -> None:
    assert SmallDense().skip(MLP) is None and SmallDense(match="flops").skip(RESNET) is None
    reason = SmallDense().skip(replace(MLP, name="my/task", widths={}))
    assert reason is not None and "no narrower network: my/task: the network has one width" in reason


def test_bad_fields() -> None:
    with pytest.raises(ValueError, match=r"small_dense: match is 'flop'; .*did you mean 'flops'"):
        SmallDense(match="flop")


class Stuck(nn.Module):
    """Reads as many inputs as its layer had at full width."""

    def __init__(self, inner: int, least: int) -> None:
        super().__init__()
        assert inner >= least, f"{inner} is below {least}"
        self.a, self.b = nn.Linear(64, inner), nn.Linear(inner, 10)

    def forward(self, x):
        y = self.a(x.flatten(1))
        return self.b(y.view(-1, 32) if self.training or y.shape[1] == 16 else y)


@pytest.mark.parametrize(
    ("least", "text"), [(0, r"RuntimeError: .*\(width 0.5\)"), (20, "AssertionError: 16 is below 20")]
)
def test_a_task_whose_narrow_network_does_not_run_is_skipped_with_its_reason(least: int, text: str) -> None:
    task = replace(MLP, model=Stuck, arguments={"inner": 32, "least": least}, widths={"inner": 1})
    reason = SmallDense().skip(task)
    assert reason is not None and re.search(f"no narrower network: {text}", reason, re.DOTALL)


class Least(Perceptron):
    """Cannot be narrower than 4."""

    def __init__(self, inner: int) -> None:
        assert inner >= 4, f"{inner} is below 4"
        super().__init__(inner)


def test_widths_that_the_run_does_not_take_need_not_be_there() -> None:
    task = replace(Blobs(), name="my/least")
    build = lambda self, seed, width=1.0: Least(round(24 * width))  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Blobs, "build", build)
        method = SmallDense(sparsity=0.5)
        assert method.skip(task) is None and 4 <= method.network(task, 0).first.out_features < 24
        reason = SmallDense(sparsity=0.99).skip(task)
    assert reason is not None and re.search(r"is below 4.*\(width", reason, re.DOTALL)
