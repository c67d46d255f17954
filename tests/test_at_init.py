"""SNIP, GraSP and SynFlow: scores against hand computations, NumPy and finite differences; counts exact under ties."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dstbench.methods.at_init import SNIP, AtInit, GraSP, SynFlow, synaptic_flow
from dstbench.suite.recipe import Recipe
from dstbench.suite.task import Task
from dstbench.suite.train import Training

ALL = pytest.mark.parametrize("kind", [SNIP, GraSP, SynFlow])


@dataclass(frozen=True)
class Given(Task):
    """A network and calibration batches handed in; half the squared error if `squared`."""

    name: str = "test/given"
    recipe: Recipe = field(default_factory=lambda: Recipe(steps=1, batch=6, lr={"sgd": 0.1, "adam": 0.1}))
    net: nn.Module = field(default_factory=nn.Module)
    data: tuple[tuple[Tensor, Tensor], ...] = ()
    squared: bool = False

    def build(self, seed: int) -> nn.Module:
        return copy.deepcopy(self.net)

    def example(self) -> Tensor:
        return self.data[0][0]

    def batches(self, split: str, seed: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        assert split == "calibration"
        yield from self.data

    def loss(self, model: Any, batch: Any) -> Tensor:
        return 0.5 * (model(batch[0]) - batch[1]).square().sum() if self.squared else super().loss(model, batch)


def seeded(*layers: nn.Module) -> nn.Module:
    rng = torch.Generator().manual_seed(5)
    net = nn.Sequential(*layers).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng, dtype=torch.float64))
    return net


def points(inputs: int, classes: int, n: int = 6) -> tuple[tuple[Tensor, Tensor], ...]:
    rng = torch.Generator().manual_seed(6)
    x = torch.randn(2, n, inputs, generator=rng, dtype=torch.float64)
    return tuple(zip(x, torch.randint(classes, (2, n), generator=rng), strict=True))


def arrays(training: Training) -> list[np.ndarray]:
    return [layer.weight.numpy().copy() for layer in training.model.layers]


def masks(training: Training) -> list[np.ndarray]:
    return [layer.forward_mask.numpy().copy() for layer in training.model.layers]


# ---- two weights, by hand ----


def two_weights(y: float) -> Given:
    """L(w) = (w x - y)^2 / 2 at x = (1, 3), w = (9, -1): r = 6 - y, g = r x, H = x x', H g = 10 r x."""
    net = nn.Sequential(nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[9.0, -1.0]]))
    batch = torch.tensor([[1.0, 3.0]], dtype=torch.float64), torch.tensor([[y]], dtype=torch.float64)
    return Given(net=net, data=(batch,), squared=True)


@pytest.mark.parametrize(
    ("method", "y", "score", "kept"),
    [
        (SNIP(sparsity=0.5, batches=1), 1.0, [45.0, 15.0], 0),  # |g| = (5, 15) would keep the other
        (SNIP(sparsity=0.5, batches=1), 11.0, [45.0, 15.0], 0),
        (GraSP(sparsity=0.5, batches=1, temperature=1), 1.0, [450.0, -150.0], 0),
        (GraSP(sparsity=0.5, batches=1, temperature=1), 11.0, [-450.0, 150.0], 1),  # its absolute value: the other
    ],
)
def test_two_weights_by_hand(method: SNIP, y: float, score: list[float], kept: int) -> None:
    training = Training(two_weights(y), method)
    assert method.scores(training.gradients)[0].flatten().tolist() == pytest.approx(score)
    training.setup()
    assert training.model.layers[0].forward_mask.flatten().tolist() == [kept == 0, kept == 1]
    if isinstance(method, GraSP):  # what is kept leaves the gradient largest, here exactly and not to first order
        norms = [10 * (r - y) ** 2 for r in (9.0 * 1, -1.0 * 3)]
        assert norms[kept] == max(norms)


def test_two_weights_of_synflow_by_hand() -> None:
    training = Training(two_weights(1.0), SynFlow(sparsity=0.5, iterations=1))
    (score,) = synaptic_flow(training.model, [torch.tensor([[9.0, 1.0]], dtype=torch.float64)])
    assert score.flatten().tolist() == [9.0, 1.0]
    training.method.setup(None)  # type: ignore[arg-type]  # SynFlow asks for no data
    assert training.model.layers[0].forward_mask.flatten().tolist() == [True, False]


# ---- scores against independent oracles ----


def test_snip_is_the_derivative_to_a_multiplier_of_each_weight() -> None:
    net, h = seeded(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), 1e-5
    task = Given(net=net, data=points(5, 3))
    training = Training(task, SNIP(batches=2))
    scores = training.method.scores(training.gradients)
    for name, score in zip(("0.weight", "2.weight"), scores, strict=True):
        for at in np.ndindex(*score.shape):
            losses = []
            for factor in (1 + h, 1 - h):
                moved = task.build(0).requires_grad_(False)
                moved.get_parameter(name)[at] *= factor
                losses.append(sum(float(nn.functional.cross_entropy(moved(x), y)) for x, y in task.data))
            assert float(score[at]) == pytest.approx(abs(losses[0] - losses[1]) / (2 * h), rel=1e-5, abs=1e-9)


def normed() -> Given:
    """Batch norm that changes what is scored: the second input is ten times the first, and far off zero."""
    net = seeded(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
    return Given(net=net, data=tuple((x * torch.tensor([1.0, 10.0, 1.0, 0.1]) + 2, y) for x, y in points(4, 3)))


@pytest.mark.parametrize(("method", "default"), [(SNIP, "eval"), (GraSP, "train")])
@pytest.mark.parametrize("mode", ["eval", "train", None])
def test_scores_are_those_of_the_mode_in_plain_torch(method: type[SNIP], default: str, mode: str | None) -> None:
    task, made = normed(), method(**({"mode": mode} if mode else {}))
    net = copy.deepcopy(task.net).train((mode or default) == "train")
    weights = [net[0].weight, net[3].weight]
    temperature, grads = (made.temperature if isinstance(made, GraSP) else 1.0), []
    for x, y in task.data:
        loss = nn.functional.cross_entropy(net(x) / temperature, y)
        grads.append(torch.autograd.grad(loss, weights, create_graph=True))
    total = [a + b for a, b in zip(*grads, strict=True)]
    if method is SNIP:
        wanted = [(w * g).abs() for w, g in zip(weights, total, strict=True)]
    else:
        inner = sum((g.detach() * g).sum() for g in total)
        wanted = [w * h for w, h in zip(weights, torch.autograd.grad(inner, weights), strict=True)]
    training = Training(task, made)
    before = copy.deepcopy(training.model.net[1].state_dict())
    for found, score in zip(made.scores(training.gradients), wanted, strict=True):
        torch.testing.assert_close(found, score.detach(), rtol=1e-9, atol=1e-15)
    assert all(module.training for module in training.model.net.modules()), "training goes on in train mode"
    moved = training.model.net[1].running_mean - before["running_mean"]
    assert bool(moved.any()) == ((mode or default) == "train"), "only training mode moves the statistics"


def test_the_modes_of_snip_keep_different_weights() -> None:
    found = []
    for mode in ("eval", "train"):
        training = Training(normed(), SNIP(sparsity=0.7, mode=mode))
        training.setup()
        found.append(np.concatenate([m.ravel() for m in masks(training)]))
    assert found[0].sum() == found[1].sum() == 13 and 3 < (found[0] & found[1]).sum() < 12


@pytest.mark.parametrize("kernel", ["masked", "compact"])
@pytest.mark.parametrize("temperature", [1.0, 200.0])
def test_grasp_against_a_finite_difference_hessian_in_numpy(kernel: str, temperature: float) -> None:
    net = seeded(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    task = Given(net=net, data=points(3, 3))
    first, second = (net[i].bias.detach().numpy() for i in (0, 2))

    def loss(flat: np.ndarray) -> float:
        total = 0.0
        for x, y in task.data:
            hidden = np.tanh(x.numpy() @ flat[:12].reshape(4, 3).T + first)
            logits = (hidden @ flat[12:].reshape(3, 4).T + second) / temperature
            total += np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y.numpy()])
        return total

    w, h = np.concatenate([net[i].weight.detach().numpy().ravel() for i in (0, 2)]), 1e-3
    e = h * np.eye(24)
    gradient = np.array([(loss(w + a) - loss(w - a)) / (2 * h) for a in e])
    hessian = [[loss(w + a + b) - loss(w + a - b) - loss(w - a + b) + loss(w - a - b) for b in e] for a in e]
    expected = w * (np.array(hessian) / (4 * h * h) @ gradient)
    training = Training(task, GraSP(batches=2, temperature=temperature), kernel=kernel)
    scores = training.method.scores(training.gradients)
    assert [tuple(score.shape) for score in scores] == [(4, 3), (3, 4)]
    found = np.concatenate([score.numpy().ravel() for score in scores])
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def chain(*widths: int) -> Given:
    pairs = itertools.pairwise(widths)
    layers = [m for a, b in pairs for m in (nn.Linear(a, b, bias=False), nn.ReLU())][:-1]
    return Given(net=seeded(*layers), data=points(widths[0], widths[-1]))


def flows(weights: list[np.ndarray]) -> list[np.ndarray]:
    """|w| dR/d|w| for R = 1' |W_L| ... |W_1| 1: what arrives, times the weight, times what leaves."""
    ahead, behind = [np.ones(weights[0].shape[1])], [np.ones(weights[-1].shape[0])]
    for w in weights[:-1]:
        ahead.append(np.abs(w) @ ahead[-1])
    for w in reversed(weights[1:]):
        behind.insert(0, behind[0] @ np.abs(w))
    return [np.outer(b, a) * np.abs(w) for a, b, w in zip(ahead, behind, weights, strict=True)]


def kept_by_synflow(weights: list[np.ndarray], density: float, n: int) -> list[np.ndarray]:
    found = [np.ones(w.shape, dtype=bool) for w in weights]
    for k in range(1, n + 1):
        scores = flows([w * m for w, m in zip(weights, found, strict=True)])
        left = np.concatenate([np.where(m, s, -1.0).ravel() for s, m in zip(scores, found, strict=True)])
        mask = np.zeros(left.size, dtype=bool)
        mask[np.argsort(-left)[: round(density ** (k / n) * left.size)]] = True
        parts = np.split(mask, np.cumsum([w.size for w in weights])[:-1])
        found = [part.reshape(w.shape) for part, w in zip(parts, weights, strict=True)]
    return found


@pytest.mark.parametrize("kernel", ["masked", "compact"])
@pytest.mark.parametrize("iterations", [1, 7, 100])
def test_synflow_on_a_chain_equals_the_closed_form(kernel: str, iterations: int) -> None:
    training = Training(chain(5, 7, 6, 3), SynFlow(sparsity=0.8, iterations=iterations), kernel=kernel)
    weights = arrays(training)
    found = synaptic_flow(training.model, [torch.from_numpy(np.abs(w)) for w in weights])
    for score, wanted in zip(found, flows(weights), strict=True):
        assert score.numpy() == pytest.approx(wanted, rel=1e-12)
    total = flows(weights)[0].sum()
    assert [float(score.sum()) for score in found] == pytest.approx([total] * 3), "what enters a layer leaves it"
    training.method.setup(None)  # type: ignore[arg-type]  # SynFlow asks for no data
    assert all(map(np.array_equal, masks(training), kept_by_synflow(weights, 1 - 0.8, iterations)))


def test_synflow_replaces_every_entry_of_the_state_and_leaves_the_network_as_it_was(images) -> None:
    net = images.build(0)
    with torch.no_grad():
        for tensor in (net.norm.weight, net.norm.bias, net.norm.running_mean):
            tensor.copy_(torch.linspace(-2, 1, 8))
        oracle = copy.deepcopy(net).double().eval()
        for tensor in oracle.state_dict().values():
            tensor.abs_()
    oracle(torch.ones(1, 3, 8, 8, dtype=torch.float64)).sum().backward()
    training = Training(Given(net=net, data=((torch.zeros(2, 3, 8, 8), torch.zeros(2)),)), SynFlow())
    model = training.model
    model.net.train()
    model.net.norm.eval()
    before = copy.deepcopy(model.net.state_dict())
    scores = synaptic_flow(model, [layer.weight.double().abs() for layer in model.layers])
    for layer, score in zip(model.layers, scores, strict=True):
        weight = oracle.get_parameter(layer.key)
        assert torch.allclose(score, weight.detach() * weight.grad, rtol=1e-9) and score.any()
    assert [m for m in model.net.modules() if not m.training] == [model.net.norm]
    assert all(torch.equal(before[k], v) for k, v in model.net.state_dict().items())


def test_synflow_says_what_overflows_and_restores_the_modes() -> None:
    training = Training(chain(5, 7, 3), SynFlow())
    with pytest.raises(ValueError, match="outputs sum to inf, beyond float64"):
        synaptic_flow(training.model, [torch.full(y.shape, 1e200, dtype=torch.float64) for y in training.model.layers])
    assert all(module.training for module in training.model.net.modules())


def test_synflow_keeps_a_path_where_hardly_a_weight_is_left() -> None:
    training = Training(chain(*[10] * 8), SynFlow(sparsity=1 - 9 / 700))
    training.method.setup(None)  # type: ignore[arg-type]  # SynFlow asks for no data
    assert sum(layer.nnz() for layer in training.model.layers) == 9
    assert all(flow.sum() > 0 for flow in flows(arrays(training)))


# ---- counts, start, cost, storage ----


@ALL
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sparsity=st.floats(0.0, 0.98), constant=st.booleans())
def test_counts_are_exact_also_under_ties(blobs, kind: type[AtInit], sparsity: float, constant: bool) -> None:
    training = Training(blobs, kind(sparsity=sparsity, **({"iterations": 5} if kind is SynFlow else {})))
    if constant:
        for layer in training.model.layers:
            layer.assign(torch.ones(layer.shape))
    training.setup()
    counted = [layer.nnz() for layer in training.model.layers]
    assert sum(counted) == round((1 - sparsity) * 960) and min(counted) >= 1


def test_counts_of_synflow_follow_the_schedule_in_every_round(blobs) -> None:
    training, seen = Training(blobs, SynFlow(sparsity=0.98, iterations=20)), []
    best = training.method.best
    training.method.best = lambda *args: seen.append(best(*args)) or seen[-1]  # type: ignore[method-assign]
    training.setup()
    assert [sum(int(m.sum()) for m in found) for found in seen] == [round(0.02 ** (k / 20) * 960) for k in range(1, 21)]
    for earlier, later in itertools.pairwise(seen):
        assert not any((b & ~a).any() for a, b in zip(earlier, later, strict=True)), "what is pruned stays pruned"


@pytest.mark.parametrize("kind", [SNIP, GraSP])
def test_scores_that_are_no_numbers_are_cut_first(blobs, kind: type[SNIP], monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(blobs, kind(sparsity=0.5))
    scores, rows = [-torch.rand(layer.shape) for layer in training.model.layers], torch.tensor([0, 1])
    scores = [score.index_fill(0, rows, torch.nan) for score in scores]
    monkeypatch.setattr(training.method, "scores", lambda gradients: scores)
    training.setup()
    assert sum(layer.nnz() for layer in training.model.layers) == 480
    assert not any(layer.forward_mask[:2].any() for layer in training.model.layers)


@ALL
@pytest.mark.parametrize("init", ["sparse", "dense"])
def test_the_start_is_the_initial_weights_scaled_or_not_and_masks_stay(blobs, kind: type[AtInit], init: str) -> None:
    training = Training(blobs, kind(sparsity=0.8, init=init))
    before = arrays(training)
    training.setup()
    first = masks(training)
    for w, m, now in zip(before, first, arrays(training), strict=True):
        scale = np.sqrt((w[m] ** 2).sum() / (w**2).sum()) if init == "sparse" else 1.0
        assert now == pytest.approx(np.where(m, w / scale, 0.0), rel=1e-6)
    training.run()
    assert all(map(np.array_equal, first, masks(training)))
    assert training.curve["loss"][-1] < training.curve["loss"][0]


def test_scoring_is_booked_as_setup(blobs, images) -> None:
    """Forward products of layer l cost F_l a sample; the first one's input wants no gradient."""
    for task in (blobs, images):
        for method, passes in ((SNIP(batches=3), 3 * 16), (SynFlow(iterations=7), 7)):
            training = Training(task, method)
            training.setup()
            assert training.book.setup == passes * training.model.dense_passes.dense
    training = Training(blobs, GraSP(batches=2))
    training.setup()
    first, *others = (2 * layer.numel for layer in training.model.layers)
    once = 2 * first + 3 * sum(others)  # forward, weights; forward, inputs, weights
    again = 2 * first + 6 * sum(others)  # each product above is differentiated to its factors, but to no input
    assert training.book.setup == 2 * 16 * (once + again)


@pytest.mark.slow
@ALL
def test_both_storages_choose_and_train_alike(images, kind: type[AtInit]) -> None:
    task, found = replace(images, recipe=replace(images.recipe, steps=30)), []
    for kernel in ("masked", "compact"):
        found.append(training := Training(task, kind(sparsity=0.7), kernel=kernel))
        training.setup()
        training.run()
    assert all(map(np.array_equal, *map(masks, found)))
    assert found[0].curve["loss"] == pytest.approx(found[1].curve["loss"], rel=1e-4)


def test_bad_fields() -> None:
    for kind, fields, text in (
        (SNIP, {"batches": 0}, "snip: batches is 0; give a value from 1"),
        (GraSP, {"batches": 0}, "grasp: batches is 0"),
        (SNIP, {"mode": "valid"}, "snip: mode is 'valid'; choose one of eval, train"),
        (GraSP, {"temperature": 0.0}, "grasp: temperature is 0.0"),
        (SynFlow, {"iterations": 0}, "synflow: iterations is 0"),
        (SynFlow, {"init": "xavier"}, "synflow: init is 'xavier'; choose one of sparse, dense"),
    ):
        with pytest.raises(ValueError, match=text):
            kind(**fields)


def test_grasp_does_not_run_compiled(blobs) -> None:
    compiled = replace(blobs, recipe=replace(blobs.recipe, compile=True))
    assert "recipe.compile" in (GraSP().skip(compiled) or "")
    assert GraSP().skip(blobs) is None and SNIP().skip(compiled) is None
