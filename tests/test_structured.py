"""SRigL and N:M against slow loops: fan-ins, budgets, groups, the pull of SR-STE, storage, resuming, cost."""

from __future__ import annotations

import copy
import itertools
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dstbench.methods.allocate import allocate
from dstbench.methods.structured import NM, SRigL, fan_ins, misfit, pattern, refusal
from dstbench.suite import kernels
from dstbench.suite.layer import Layer
from dstbench.suite.method import Method
from dstbench.suite.model import SparseModel
from dstbench.suite.recipe import Recipe
from dstbench.suite.train import Training
from nets import begin, train

KERNELS = pytest.mark.parametrize("kernel", ["masked", "compact"])
OPTIMIZERS = pytest.mark.parametrize("optimizer", ["sgd", "adam"])


def sized(name: str, height: int, width: int) -> SimpleNamespace:
    return SimpleNamespace(name=name, shape=(height, width), numel=height * width)


def rows(layer: Layer) -> np.ndarray:
    """The mask of a Layer, one row for each neuron."""
    assert layer.forward_mask is not None
    return layer.forward_mask.flatten(1).numpy()


def ready(task, method: Method, kernel: str = "masked") -> Training:
    training = Training(task, method, kernel=kernel)
    training.setup()
    return training


def best(values, count: int) -> list[int]:
    """Where the `count` largest are, among ties the first."""
    return sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]


@pytest.mark.sampled(1)
@KERNELS
@OPTIMIZERS
@pytest.mark.parametrize("kind", [SRigL, NM])
def test_resuming_is_bit_exact(images, kind: type[Method], kernel: str, optimizer: str) -> None:
    task = replace(images, recipe=replace(images.recipe, optimizer=optimizer, steps=24))
    whole, again = ready(task, kind(sparsity=2 / 3), kernel), Training(task, kind(sparsity=2 / 3), kernel=kernel)
    whole.run(until=13)
    again.load(copy.deepcopy(whole.state()))
    whole.run()
    again.run()
    assert again.curve == whole.curve and again.book == whole.book
    for a, b in zip(whole.model.layers, again.model.layers, strict=True):
        assert torch.equal(a.weight, b.weight) and torch.equal(a.forward_mask, b.forward_mask)
        assert all(torch.equal(a.state[k], b.state[k]) for k in a.state)


@OPTIMIZERS
@pytest.mark.parametrize("method", [SRigL(sparsity=0.7, gamma=0.9), NM(sparsity=0.5)])
def test_both_storages_train_alike(method: Method, optimizer: str) -> None:
    methods = [copy.deepcopy(method) for _ in range(2)]
    models = [begin(m, kernel, optimizer=optimizer) for m, kernel in zip(methods, ("masked", "compact"), strict=True)]
    losses = [train(m, model) for m, model in zip(methods, models, strict=True)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-12)
    assert np.mean(losses[0][-5:]) < np.mean(losses[0][:5])
    for a, b in zip(models[0].layers, models[1].layers, strict=True):
        assert b.fallback is None and torch.equal(a.forward_mask, b.forward_mask)


# ---- SRigL -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6), st.floats(0, 1)), min_size=1, max_size=3))
def test_first_fan_ins_against_every_choice_there_is(nets) -> None:
    layers = [sized(str(i), r, f) for i, (r, f, _) in enumerate(nets)]
    ours = tuple(fan_ins(layers, {str(i): d for i, (_, _, d) in enumerate(nets)}).values())
    target = round(math.fsum(d * r * f for r, f, d in nets))
    choices = itertools.product(*(range(1, f + 1) for _, f, _ in nets))
    off = {c: abs(target - sum(k * r for k, (r, _, _) in zip(c, nets, strict=True))) for c in choices}
    assert off[ours] <= max(min(off.values()), min(nets)[0] / 2)


def test_first_fan_ins_by_hand() -> None:
    """64-100-100-10. At 90 %, erk asks for 6.02, 7.34 and 40.4: only the head can take the 40 weights that are missing.

    At 75 % the head is full and 50 weights are missing: one connection more in a hidden layer, five fewer in the head.
    """
    layers = [sized("fc1", 100, 64), sized("fc2", 100, 100), sized("fc3", 10, 100)]
    for density, expected in ((0.1, [6, 7, 44]), (0.25, [15, 19, 95]), (0.0, [1, 1, 1]), (1.0, [64, 100, 100])):
        assert list(fan_ins(layers, allocate("erk", layers, density)).values()) == expected


@pytest.mark.parametrize("allocation", ["erk", "uniform"])
def test_the_start_is_random_with_a_constant_fan_in(images, allocation: str) -> None:
    method = SRigL(sparsity=0.8, allocation=allocation)
    training = Training(images, method)
    dense = [layer.weight.clone() for layer in method.layers]
    training.setup()
    wanted = fan_ins(method.layers, allocate(allocation, method.layers, 1 - 0.8))
    for layer, weight in zip(method.layers, dense, strict=True):
        assert set(rows(layer).sum(1)) == {wanted[layer.name]} and layer.grad_mask is layer.forward_mask
        torch.testing.assert_close(layer.weight, weight * layer.forward_mask / math.sqrt(layer.density))
        assert len({tuple(row) for row in rows(layer)}) > 1 or layer.density == 1
    assert abs(sum(layer.nnz() for layer in method.layers) - round(0.2 * training.model.maskable)) <= 8 / 2


@pytest.mark.parametrize(("sparsity", "gamma"), itertools.product([0.0, 0.5, 0.75, 0.9], [0.3, 0.95]))
def test_budgets_hold_at_every_step(blobs, sparsity: float, gamma: float) -> None:
    method = SRigL(sparsity=sparsity, gamma=gamma, alpha=0.5, period=2)
    training = ready(blobs, method)
    began, alive = [layer.nnz() for layer in method.layers], []
    for t in range(1, training.recipe.steps + 1):
        training.run(until=t)
        for layer, budget in zip(method.layers, began, strict=True):
            fan_in = rows(layer).sum(1)
            assert len(set(fan_in) - {0}) == 1 and layer.grad_mask is layer.forward_mask
            assert np.count_nonzero(fan_in) >= math.ceil(budget / layer.shape[1])
        assert fan_in.all(), "the classifier keeps all of its neurons"
        total, widest = sum(y.nnz() for y in method.layers), max(rows(y).sum(1).max() for y in method.layers)
        assert abs(total - sum(began)) <= widest / 2 <= method.grain
        assert abs(total - round((1 - sparsity) * training.model.maskable)) <= method.grain
        alive.append(np.concatenate([rows(layer).any(1) for layer in method.layers]))
    if (sparsity, gamma) == (0.75, 0.95):
        assert any((a & ~b).any() for a, b in itertools.pairwise(alive)), "some must be ablated"
        assert any((b & ~a).any() for a, b in itertools.pairwise(alive)), "some must come back"
    assert training.book.dense_gradient_steps == len(range(2, 45, 2)), "at updates alone"


def rewired(w, mask, g, moved: int, gamma: float, exempt: bool, active: int, budget: int):
    """SRigL's update, neuron by neuron: fewest to stay active, their fan-in, and the mask with `active` of them."""
    height, width = w.shape
    keep, old = int(mask.sum()) - moved, budget // height  # the fan-in that neurons have where none is ablated
    largest = best(np.where(mask, abs(w), -1.0).ravel(), keep)
    salient = {divmod(i, width) for i in (*largest, *best(abs(g).ravel(), moved))}
    number = [len([i for r, i in salient if r == row]) for row in range(height)]
    strong = [row for row in range(height) if number[row] >= max(1, int(gamma * old))]
    fewest = height if exempt else max(len(strong), math.ceil(budget / width))
    fan_in, new = budget // fewest, np.zeros_like(mask)
    living = np.isin(np.arange(height), best(number, active))[:, None]
    again = best(np.where(mask & living, abs(w), -1.0).ravel(), keep)  # the largest anew, of neurons that are left
    largest = [i for i in again if (mask & living).flat[i]]
    for row in best(number, active):
        kept = [i % width for i in largest if i // width == row][:fan_in]
        others = [i for i in best(abs(g[row]), width) if i not in kept]
        new[row, kept + others[: fan_in - len(kept)]] = True
    return fewest, fan_in, new


@given(st.data(), st.sampled_from([(3, 4), (6, 2, 1, 2), (8, 3), (1, 5), (5, 1)]), st.floats(0, 1), st.booleans())
def test_an_update_equals_the_loop_over_neurons(data, shape, gamma: float, exempt: bool) -> None:
    height, width = shape[0], math.prod(shape[1:])
    draw = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    fan_in, alive = data.draw(st.integers(1, width)), data.draw(st.integers(1, height))
    budget, spare = height * fan_in, data.draw(st.integers(-4, 4))
    alive = height if exempt else max(alive, math.ceil(budget / width))
    mask = draw.random((height, width)).argsort(1) < budget // alive
    mask &= (draw.permutation(height) < alive)[:, None]
    moved = int(data.draw(st.floats(0, 1)) * mask.sum())
    w = draw.integers(-3, 4, (height, width)) * mask / 2.0  # ties, and active weights that are zero
    g = draw.integers(-3, 4, (height, width)) * draw.choice([0.01, 1.0, 9.0], (height, 1))
    layer = Layer("fc", nn.Parameter(torch.from_numpy(w).view(shape)), positions=1, kernel=kernels.get("masked"))
    layer.forward_mask, layer.parameter.grad = torch.from_numpy(mask).view(shape), torch.from_numpy(g).view(shape)
    method = SRigL(gamma=gamma)
    method.layers = [layer] if exempt else [layer, None]  # type: ignore[list-item]
    count = method.rewire(layer, moved, budget, spare)
    active = int(rows(layer).any(1).sum())
    fewest, fan_in, new = rewired(w, mask, g, moved, gamma, exempt, active, budget)
    assert np.array_equal(rows(layer), new) and count == new.sum() == active * fan_in
    assert np.array_equal(layer.weight.flatten(1).numpy(), np.where(new & mask, w, 0.0))
    left = {a: abs(budget + spare - a * fan_in) for a in range(fewest, height + 1)}
    assert left[active] == min(left.values()) <= max(abs(spare), fan_in / 2), "what is passed on does not pile up"


def updated(w: np.ndarray, g: np.ndarray, moved: int, budget: int, gamma: float) -> Layer:
    """A Layer whose active weights are those of `w` that are not zero, after SRigL's update."""
    layer = Layer("fc", nn.Parameter(torch.from_numpy(w)), positions=1, kernel=kernels.get("masked"))
    layer.forward_mask, layer.parameter.grad = torch.from_numpy(w != 0), torch.from_numpy(g)
    method = SRigL(gamma=gamma)
    method.layers = [layer, None]  # type: ignore[list-item]
    method.rewire(layer, moved, budget, 0)
    return layer


def test_the_threshold_is_a_share_of_the_fan_in_with_all_neurons() -> None:
    """Four rows began with fan-in 3, three have 4: gamma 0.75 asks for int(2.25) salient weights, not for 3."""
    w, g = np.zeros((4, 12)), np.zeros((4, 12))
    w[:3, :4] = (9, 8, 7, 1), (6, 5, 1, 1), (1, 1, 1, 1)
    g[0] = 1
    layer = updated(w, g, moved=7, budget=12, gamma=0.75)  # 9 to 5 stay: three in the first row, two in the second
    assert rows(layer).sum(1).tolist() == [6, 6, 0, 0]


def test_after_ablation_the_largest_weights_are_taken_anew() -> None:
    """Of twelve weights 9, 8, 7, 6, 5, 4 stay; the third row has the 4 alone and goes: now the 3 of the first stays."""
    w, g = np.zeros((4, 6)), np.zeros((4, 6))
    w[:3, :4] = (9, 8, 7, 3), (6, 5, 0.1, 0.2), (4, 0.3, 0.4, 0.5)
    g[:2, 4:], g[:2, 3] = 1, -2  # else the fourth weight of the second row would be the first to grow, and 3 to go
    g[:2, :3] = 1
    layer = updated(w, g, moved=6, budget=10, gamma=1.0)
    assert layer.weight[:, :4].tolist() == [[9, 8, 7, 3], [6, 5, 0.1, 0.2], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert rows(layer).sum(1).tolist() == [5, 5, 0, 0]


@KERNELS
@OPTIMIZERS
def test_kept_weights_keep_value_and_state_and_grown_ones_have_neither(kernel: str, optimizer: str) -> None:
    method, grown = SRigL(sparsity=0.6, gamma=0.9, alpha=0.5), 0
    model = begin(method, kernel, optimizer=optimizer)
    for t in range(12):
        old = [(y.forward_mask, {k: v.clone() for k, v in y.tensors().items()}) for y in model.layers]
        train(method, model, t, t + 1)
        for layer, (mask, before) in zip(model.layers, old, strict=True):
            new, same, now = layer.forward_mask & ~mask, layer.forward_mask & mask, layer.tensors()
            grown += int(new.sum())
            assert len(now) == {"sgd": 2, "adam": 3}[optimizer] and (method.due(t) or not new.any())
            assert not any(v[new].any() or v[~layer.forward_mask].any() for v in now.values())
            assert not method.due(t) or all(torch.equal(now[k][same], before[k][same]) for k in now)
    assert grown


# ---- N:M -------------------------------------------------------------------------------------------------------------


def test_the_smallest_pattern_of_a_sparsity() -> None:
    wholes = {0.5: 2, 0.75: 4, 0.9: 10, 0.95: 20, 0.98: 50, 0.875: 8, 2 / 3: 3, 0.91667: 12, 0.0: 1}
    assert {s: pattern(s) for s in wholes} == {s: (1, m) for s, m in wholes.items()}
    assert pattern(0.6) == (2, 5) and pattern(0.99) is pattern(0.123) is None


def largest(w: np.ndarray, n: int, m: int) -> np.ndarray:
    """The mask of a matrix, group by group."""
    mask = np.zeros_like(w, dtype=bool)
    for r, first in itertools.product(range(len(w)), range(0, w.shape[1], m)):
        mask[r, [first + i for i in best(abs(w[r, first : first + m]), n)]] = True
    return mask


@KERNELS
@pytest.mark.parametrize(("n", "m", "dense"), [(1, 3, ()), (4, 6, ("stem",)), (1, 4, ("stem",)), (5, 12, ("stem",))])
def test_every_group_of_every_filter_has_its_n_largest_at_every_step(images, n, m, dense, kernel: str) -> None:
    """Rows of 27 (3 input channels), 36 (in two groups of channels), 72 and 12; 36 = 4 x 9 puts 12 across channels."""
    training = ready(replace(images, dense=dense), NM(sparsity=1 - n / m, n=n, m=m), kernel)
    for t in range(1, 12):
        for layer in training.model.layers:
            assert np.array_equal(rows(layer), largest(layer.weight.flatten(1).numpy(), n, m))
            assert (rows(layer).reshape(layer.shape[0], -1, m).sum(2) == n).all() and layer.grad_mask is None
        training.run(until=t)
    assert training.model.density == n / m


def one_layer(weight: torch.Tensor, method: NM, kernel: str = "masked", **options) -> tuple[SparseModel, Layer]:
    """A linear layer without bias, float64, whose weights are given."""
    net = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False)).double()
    net[0].weight.data.copy_(weight)
    model = SparseModel(net, torch.zeros(2, weight.shape[1], dtype=torch.float64), kernel=kernel)
    method.attach(model, Recipe(steps=40, batch=8, lr={"sgd": 0.05, "adam": 0.05}, **options), seed=0)
    method.setup(lambda batches=1, create_graph=False: [])
    return model, model.layers[0]


def test_groups_by_hand() -> None:
    weight = torch.tensor([[1.0, -3, 2, 0, 5, 5, -5, 5], [0, 0, 0, 0, 0, -1, 0, 0]])
    for n, expected in ((1, ["01001000", "10000100"]), (2, ["01101100", "11001100"]), (3, ["11101110", "11101110"])):
        _, layer = one_layer(weight, NM(sparsity=1 - n / 4, n=n, m=4))
        assert ["".join(str(int(b)) for b in row) for row in rows(layer)] == expected
    _, layer = one_layer(torch.zeros(3, 10), NM(sparsity=0.6))
    assert rows(layer).astype(int).tolist() == [[1, 1, 0, 0, 0] * 2] * 3


def test_a_small_first_layer_stays_dense_where_its_rows_do_not_divide() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.Flatten(), nn.Linear(128, 64), nn.Linear(64, 4))
    model, method = SparseModel(net, torch.zeros(1, 3, 8, 8)), NM(sparsity=0.5)
    method.attach(model, Recipe(steps=4, batch=2, lr={"sgd": 0.1, "adam": 0.1}), seed=0)
    method.setup(lambda batches=1, create_graph=False: [])
    assert [layer.density for layer in model.layers] == [1.0, 0.5, 0.5] and model.layers[0].forward_mask is None
    assert 0.5 < model.density < 0.505
    method.finish()
    assert model.layers[0].grad_mask is None and model.layers[1].grad_mask is model.layers[1].forward_mask
    large = [sized("a", 10, 9), sized("b", 10, 10)]
    assert misfit(large, 1, 2) is misfit(large[::-1], 1, 2) is large[0]


def test_why_a_task_is_skipped(blobs) -> None:
    near = "run at sparsity 0.916667 (1:12)"
    for fields, reason in (
        ({"sparsity": 0.75}, None),
        ({"sparsity": 0.916667}, None),
        ({"sparsity": 0.5, "n": 2, "m": 4}, None),
        ({"sparsity": 0.9}, f"nm: 1:10 does not divide the 12 inputs of layer 'first'; {near}"),
        ({"sparsity": 0.99}, f"nm: no N:M with M up to 64 has sparsity 0.99; {near}"),
        ({"n": 2, "m": 4}, "nm: 2:4 has sparsity 0.5 and the run 0.9; run at that, or set m to 0"),
    ):
        assert NM(**fields).skip(blobs) == reason
        if reason:
            with pytest.raises(ValueError, match=re.escape(reason)):
                ready(blobs, NM(**fields))
    odd = [sized("a", 50, 7), sized("b", 50, 11)]
    assert refusal(odd, 0.5, (1, 2)) == "nm: 1:2 does not divide the 7 inputs of layer 'a'; no 1:M fits this network"


@KERNELS
@OPTIMIZERS
def test_training_equals_a_simulation_in_numpy(kernel: str, optimizer: str) -> None:
    rng = np.random.default_rng(0)
    w, pull, decay = rng.standard_normal((3, 8)), 0.3, {"sgd": 0.02, "adam": 0.1}
    method, first, second, changed = NM(sparsity=0.75, decay=pull), np.zeros_like(w), np.zeros_like(w), 0
    model, layer = one_layer(torch.from_numpy(w), method, kernel, optimizer=optimizer, weight_decay=decay)
    for t in range(40):
        x, y = rng.standard_normal((8, 8)), rng.standard_normal((8, 3))
        mask, lr = largest(w, 1, 4), method.lr(t)
        g = (x @ (w * mask).T - y).T @ x + pull * ~mask * w
        if optimizer == "sgd":
            first = 0.9 * first + g + decay["sgd"] * w
            w = w - lr * first
        else:
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
            root = np.sqrt(second / (1 - 0.999 ** (t + 1))) + 1e-8
            w = w * (1 - lr * decay["adam"]) - lr * first / (1 - 0.9 ** (t + 1)) / root
        for group in method.optimizer.param_groups:
            group["lr"] = lr
        model.zero_grad()
        (0.5 * (model(torch.from_numpy(x)) - torch.from_numpy(y)).square().sum()).backward()
        method.step(t)
        np.testing.assert_allclose(layer.weight.numpy(), w, rtol=1e-9, atol=1e-12)
        assert np.array_equal(rows(layer), largest(w, 1, 4))
        changed += int((mask != rows(layer)).sum())
    assert changed, "weights that were not read must come back for this to mean something"


def test_a_step_costs_two_sparse_products_and_a_dense_one_and_in_the_end_what_is_not_read_is_gone(blobs) -> None:
    training = ready(blobs, NM(sparsity=0.75))
    training.run()
    layers, dense = training.model.layers, sum(training.model.dense_passes.forward.values())
    assert training.model.cost().papers == dense * (2 / 4 + 1) and training.book.dense_gradient_steps == 60
    score, unread = training.evaluate("test"), [layer.weight[~layer.forward_mask].any() for layer in layers]
    training.method.finish()
    assert all(unread) and not any(layer.weight[~layer.forward_mask].any() for layer in layers)
    assert training.evaluate("test") == score > 0.7 and training.model.density == 0.25


def test_bad_fields() -> None:
    for make, text in (
        (lambda: SRigL(gamma=1.5), "srigl: gamma is 1.5; give a value from 0 to 1"),
        (lambda: SRigL(allocation="erkk"), "srigl: allocation is 'erkk'"),
        (lambda: NM(n=2), "nm: n is 2 and m 0; give both, or neither"),
        (lambda: NM(n=5, m=4), "nm: n is 5; give a value from 1 to 4"),
        (lambda: NM(m=-4), "nm: m is -4; give a value from 0 to inf"),
        (lambda: NM(decay=-0.1), "nm: decay is -0.1"),
    ):
        with pytest.raises(ValueError, match=text):
            make()
