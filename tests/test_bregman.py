"""LinBreg, AdaBreg and ML LinBreg as methods: levels, control on target, storage, resuming, cost."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

from dstbench.methods.allocate import allocate, counts
from dstbench.methods.bregman import AdaBreg, LinBreg, MLLinBreg
from dstbench.suite import registry
from dstbench.suite.train import Training
from nets import STEPS, active, begin, network, train

METHODS: dict[str, tuple[type[LinBreg], dict[str, Any]]] = {
    "linbreg": (LinBreg, {}),
    "linbreg ema": (LinBreg, {"momentum": "ema"}),
    "linbreg heavy ball": (LinBreg, {"momentum": "heavy_ball"}),
    "linbreg rows": (LinBreg, {"regularizer": "row", "sparsity": 0.6}),
    "linbreg kernels": (LinBreg, {"regularizer": "kernel"}),
    "linbreg fixed": (LinBreg, {"control": "fixed", "lam": 0.02}),
    "adabreg": (AdaBreg, {}),
    "adabreg uncorrected": (AdaBreg, {"corrected": False}),
    "ml_linbreg": (MLLinBreg, {"m": 4}),
    "ml_linbreg fine first": (MLLinBreg, {"m": 4, "order": "fine_first"}),
    "ml_linbreg shrinking": (MLLinBreg, {"m": 4, "support": "shrinking"}),
    "ml_linbreg hold": (MLLinBreg, {"m": 4, "momentum": "heavy_ball"}),
    "ml_linbreg decay": (MLLinBreg, {"m": 4, "momentum": "ema", "off_support": "decay"}),
    "ml_linbreg rows": (MLLinBreg, {"m": 4, "regularizer": "row", "sparsity": 0.6}),
}


def make(name: str, **options: Any) -> LinBreg:
    kind, own = METHODS[name]
    return kind(**{**own, **options})


# ---- storage and resuming --------------------------------------------------------------------------------------------


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", METHODS)
def test_the_same_losses_on_both_storages(name: str) -> None:
    losses, weights = [], []
    for kernel in ("masked", "compact"):
        method = make(name)
        model = begin(method, kernel)
        losses.append(train(method, model))
        weights.append([layer.weight.clone() for layer in model.layers])
        assert all(layer.fallback is None for layer in model.layers)
    np.testing.assert_allclose(
        losses[0], losses[1], rtol=0, atol=1e-9 if "rows" in name or "kernels" in name else 1e-13
    )
    assert all(torch.equal(a != 0, b != 0) for a, b in zip(*weights, strict=True))
    assert np.mean(losses[0][-5:]) < np.mean(losses[0][:5]), "it must learn for this to mean something"


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kernel", ("masked", "compact"))
@pytest.mark.parametrize("name", METHODS)
def test_resuming_is_bit_exact(name: str, kernel: str) -> None:
    whole = make(name)
    model = begin(whole, kernel)
    train(whole, model, stop=18)
    saved = copy.deepcopy((model.state(), whole.optimizer.state_dict(), whole.memory, whole.rng.get_state()))
    expected = train(whole, model, start=18)
    again = make(name)
    fresh = begin(again, kernel, setup=False)
    fresh.load(saved[0])
    again.optimizer.load_state_dict(saved[1])
    again.memory.update(saved[2])
    again.rng.set_state(saved[3])
    assert train(again, fresh, start=18) == expected
    for layer, other in zip(model.layers, fresh.layers, strict=True):
        assert torch.equal(layer.weight, other.weight)
        assert torch.equal(layer.state["dual"], other.state["dual"])


# ---- control ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", (0.5, 0.9, 0.97))
@pytest.mark.parametrize("name", [n for n, (_, o) in METHODS.items() if "regularizer" not in o and "control" not in o])
def test_on_target_at_every_fine_step(name: str, sparsity: float) -> None:
    method = make(name, sparsity=sparsity)
    model = begin(method)
    total = sum(layer.numel for layer in model.layers)
    start = active(model)
    assert start == round(min(max(0.05, (1 - sparsity) / 2), 1 - sparsity) * total)
    for t in range(STEPS):
        train(method, model, t, t + 1)
        if method.fine(t):
            assert active(model) == round(method.density(t + 1) * total) == sum(y.nnz() for y in model.layers)
            assert min(layer.nnz() for layer in model.layers) >= 1
    assert method.fine(STEPS - 1) and active(model) == round((1 - sparsity) * total)


@pytest.mark.parametrize("name", ("linbreg", "adabreg", "ml_linbreg"))
@pytest.mark.parametrize("allocation", ("uniform", "erk"))
def test_a_threshold_of_its_own_keeps_every_layer_at_its_density(name: str, allocation: str) -> None:
    method = make(name, sparsity=0.8, scope="layer", allocation=allocation)
    model = begin(method)
    for t in range(STEPS):
        train(method, model, t, t + 1)
        if method.fine(t):
            wanted = counts(model.layers, allocate(allocation, model.layers, method.density(t + 1)))
            assert {layer.name: layer.nnz() for layer in model.layers} == wanted
            assert active(model) == sum(wanted.values())
    assert len(set(method.memory["lam"].tolist())) == len(model.layers) > 1
    assert active(model) == round(0.2 * sum(layer.numel for layer in model.layers))


def test_what_a_layer_without_duals_cannot_have_goes_to_others() -> None:
    method = make("linbreg", sparsity=0.5, scope="layer", allocation="uniform")
    model = begin(method)
    train(method, model, 0, 1)
    dual = method.mirror.state[model.layers[2].parameter]["dual"].view(-1)
    dual[8:] = 0.0
    left = int(dual.count_nonzero())
    lams = method.quantiles(0.5)
    active = [int((method.mirror.dual(y).abs() > lam).sum()) for y, lam in zip(model.layers, lams, strict=True)]
    assert 0 < active[2] == left and sum(active) == round(0.5 * model.maskable)
    assert all(n > y.numel // 2 for n, y in zip(active[:2], model.layers, strict=False))


def test_the_ramp_ends_where_it_says_and_never_leaves_the_target() -> None:
    method = make("linbreg", sparsity=0.9)
    begin(method)
    curve = [method.density(t) for t in range(STEPS + 1)]
    assert curve[0] == pytest.approx(0.05) and curve == sorted(curve)
    assert curve[11] < 0.1 - 1e-4 and all(d == pytest.approx(0.1) for d in curve[12:])
    dense_start = make("linbreg", sparsity=0.97, start_density=0.2)
    begin(dense_start)
    assert {round(dense_start.density(t), 12) for t in range(STEPS)} == {0.03}, "it starts no denser than its target"
    at_once = make("linbreg", sparsity=0.9, ramp=0.0)
    begin(at_once)
    assert at_once.density(0) == pytest.approx(0.1)


@pytest.mark.parametrize("sparsity", (0.0, 0.99))
def test_extreme_targets(sparsity: float) -> None:
    method = make("linbreg", sparsity=sparsity, ramp=0.0)
    model = begin(method)
    losses = train(method, model)
    assert all(map(math.isfinite, losses))
    assert active(model) == round((1 - sparsity) * sum(layer.numel for layer in model.layers))


@pytest.mark.parametrize("name", ("linbreg rows", "linbreg kernels", "ml_linbreg rows"))
def test_groups_live_and_die_as_wholes(name: str) -> None:
    method = make(name, sparsity=0.7)
    model = begin(method)
    train(method, model)
    for layer in model.layers:
        size = method.mirror.regularizer.size(layer)
        assert layer.forward_mask is not None
        assert set(layer.forward_mask.reshape(-1, size).sum(1).tolist()) <= {0, size} and layer.nnz() > 0
    assert abs(model.density - 0.3) < 96 / model.maskable, "within one row"


@pytest.mark.parametrize(("preset", "leading", "grain"), (("linbreg:row", 1, 72), ("linbreg:kernel", 2, 9)))
def test_structured_presets_keep_whole_groups_in_number_nearest_to_the_target(
    images: Any, preset: str, leading: int, grain: int
) -> None:
    """After every step: no group more, and none less, in the order of their scores, would bring the count nearer."""
    method = registry.method(preset, sparsity=0.6)
    training = Training(images, method)
    training.setup()
    total, moved = training.model.maskable, 0
    assert method.grain == grain
    for t in range(training.recipe.steps):
        before = [layer.forward_mask for layer in method.layers]
        training.run(until=t + 1)
        scores, alive, sizes = [], [], []
        for layer in method.layers:
            size = layer.shape[leading:].numel()
            mask, dual = layer.forward_mask.reshape(-1, size).numpy(), layer.state["dual"].reshape(-1, size).numpy()
            assert (mask.all(1) == mask.any(1)).all() and mask.any()
            scores.append(np.linalg.norm(dual, axis=1) / math.sqrt(size))
            alive.append(mask.any(1))
            sizes.append(np.full(len(mask), size))
        score, stays, size = map(np.concatenate, (scores, alive, sizes))
        off = int(size[stays].sum()) - round(method.density(t + 1) * total)
        more, less = size[~stays][score[~stays].argmax()], size[stays][score[stays].argmin()]
        assert abs(off) <= min(abs(off + more), abs(off - less)) and abs(off) <= grain / 2
        moved += sum(int((y.forward_mask & ~b).sum()) for y, b in zip(method.layers, before, strict=True))
    assert moved, "groups must come back for this to mean something"


def test_heads_live_and_die_as_wholes() -> None:
    assert "has no attention heads" in registry.method("linbreg:head").skip(registry.task("digits/mlp"))
    training = Training(registry.task("digits/vit"), registry.method("linbreg:head", sparsity=0.6), budget=0.1)
    training.setup()
    training.run()
    on = {y.name: y.forward_mask.numpy() for y in training.model.layers}
    assert training.method.grain == 3 * 12 * 48
    states = []
    for block in ("blocks.0", "blocks.1"):
        qkv, proj = on[f"{block}.attn.qkv"].reshape(3, 4, -1), on[f"{block}.attn.proj"].reshape(48, 4, -1)
        assert (qkv == qkv[:1, :, :1]).all() and (proj == proj[:1, :, :1]).all()
        states += [*qkv[0, :, 0], *proj[0, :, 0]]
        assert all(set(on[f"{block}.mlp.{name}"].mean(1)) <= {0, 1} for name in ("fc1", "fc2"))
    assert 0 < sum(states) < len(states)
    assert abs(training.model.density - 0.4) * training.model.maskable <= training.method.grain / 2


def test_grain_is_the_largest_group() -> None:
    """A convolution (6, 2, 3, 3) and linear layers of 96 and 20 inputs."""
    for regularizer, expected in (("l1", 1), ("row", 96), ("kernel", 9)):
        method = LinBreg(regularizer=regularizer)
        begin(method)
        assert method.grain == expected


def test_fixed_lambda_leaves_sparsity_to_itself() -> None:
    numbers = []
    for lam in (0.002, 0.02, 0.2):
        method = LinBreg(control="fixed", lam=lam)
        model = begin(method)
        train(method, model)
        assert method.memory["lam"].tolist() == [lam] * 3
        numbers.append(active(model))
    assert numbers[0] > numbers[1] > numbers[2] > 0


def test_the_multiplicative_controller_moves_lambda_towards_the_target() -> None:
    """`steps` 90 make a period of 4: lambda may move 22 times, and then only."""
    method = LinBreg(control="multiplicative", lam=1e-4, sparsity=0.6)
    model = begin(method, steps=90)
    lams = []
    for t in range(90):
        train(method, model, t, t + 1)
        lams.append(method.memory["lam"].tolist())
    assert all(len(set(row)) == 1 for row in lams)
    moved = [t for t in range(1, 90) if lams[t] != lams[t - 1]]
    assert moved and all((t + 1) % 4 == 0 for t in moved)
    assert lams[-1][0] > 1e-4 and lams[-1][0] != lams[40][0]


def test_repair_takes_the_controllers_lever_away() -> None:
    found = {}
    for repair in (False, True):
        method = make("linbreg", repair=repair, sparsity=0.5)
        model = begin(method)
        train(method, model)
        found[repair] = active(model) / model.maskable
    assert abs(found[False] - 0.5) < 1e-3 < abs(found[True] - 0.5)


def test_weights_still_grow_under_repair() -> None:
    method = make("linbreg", repair=True, sparsity=0.5)
    model = begin(method)
    before = [layer.forward_mask for layer in model.layers]
    train(method, model)
    grown = sum(int((y.forward_mask & ~b).sum()) for y, b in zip(model.layers, before, strict=True))
    assert grown > 0


# ---- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ("linbreg", "ml_linbreg"))
def test_flops_of_a_run_follow_its_density(blobs: Any, name: str) -> None:
    """The training loop's own count against the closed form on the density of each step, and the bound of 0.40."""
    training = Training(blobs, make(name, sparsity=0.9), seed=0)
    training.setup()
    method, model = training.method, training.model
    forward = model.dense_passes.forward
    expected = dense = 0.0
    for t in range(training.recipe.steps):
        read = {layer.key: layer.density for layer in model.layers}
        training.run(until=t + 1)
        for key, flops in forward.items():
            level = 1.0 if method.fine(t) else read[key]  # type: ignore[attr-defined]
            expected += flops * (2 * read[key] + level)
            dense += 3 * flops
    assert training.book.papers == pytest.approx(expected * blobs.recipe.batch, rel=5e-3)
    assert training.book.papers / (dense * blobs.recipe.batch) <= 0.40
    assert model.density == pytest.approx(0.1, abs=1 / model.maskable)


# ---- rules of the run ------------------------------------------------------------------------------------------------


def test_learning_rates_follow_the_fairness_rule() -> None:
    for name, factor in (("linbreg", 10), ("linbreg ema", 10), ("linbreg heavy ball", 1), ("ml_linbreg", 10)):
        for cap in (1.0, 0.3):
            method = make(name)
            begin(method, plain_scale=cap)
            assert method.kind == "sgd"
            expected = factor * (cap if factor > 1 else 1) * 0.05 * method.recipe.factor(7)
            assert method.lr(7) == pytest.approx(expected), name
    own = make("linbreg", scale=0.5)
    begin(own, plain_scale=0.3)
    assert own.lr(7) == pytest.approx(0.5 * 10 * 0.05 * own.recipe.factor(7))
    ada = make("adabreg", scale=0.1)
    begin(ada)
    assert ada.kind == "adam" and ada.lr(7) == pytest.approx(0.1 * 0.01 * ada.recipe.factor(7))


def test_weight_decay_is_the_recipes_and_spares_biases() -> None:
    for name, expected in (("linbreg", 0.2), ("adabreg", 0.3)):
        method = make(name)
        begin(method, weight_decay={"sgd": 0.2, "adam": 0.3})
        assert [group["weight_decay"] for group in method.optimizer.param_groups] == [expected, 0.0]


@pytest.mark.parametrize("init", ("sparse", "dense"))
def test_start_is_the_shared_sparse_start(init: str) -> None:
    before = [p.detach().clone() for p in network().parameters() if p.dim() > 1]
    method = LinBreg(init=init, sparsity=0.5, start_density=0.1, allocation="uniform")
    model = begin(method)
    for layer, dense in zip(model.layers, before, strict=True):
        factor = 1 / math.sqrt(layer.density) if init == "sparse" else 1.0
        assert layer.nnz() == pytest.approx(0.1 * layer.numel, abs=1)
        torch.testing.assert_close(layer.weight, torch.where(layer.forward_mask, dense * factor, 0.0))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    (
        (LinBreg, {"control": "quantiles"}, "linbreg: control is 'quantiles'; choose one of .*did you mean 'quantile'"),
        (LinBreg, {"scope": "layers"}, "linbreg: scope is 'layers'; choose one of global, layer"),
        (LinBreg, {"regularizer": "rows"}, "linbreg: regularizer is 'rows'; choose one of l1, row, kernel"),
        (AdaBreg, {"momentum": "ema"}, "adabreg: momentum is 'ema'; leave it empty"),
        (MLLinBreg, {"order": "fine"}, "ml_linbreg: order is 'fine'; choose one of coarse_first, fine_first"),
        (MLLinBreg, {"off_support": "keep"}, "ml_linbreg: off_support is 'keep'"),
        (MLLinBreg, {"m": -2}, "ml_linbreg: m is -2; give the coarse steps of a cycle"),
        (LinBreg, {"start_density": 1.2}, "linbreg: start_density is 1.2; give a share of the weights in"),
        (LinBreg, {"delta": 0.0}, "linbreg: delta is 0.0; give a number above 0"),
        (AdaBreg, {"lam": -0.1}, "adabreg: lam is -0.1; give a number that is not negative"),
        (MLLinBreg, {"ramp": 1.0}, r"ml_linbreg: ramp is 1.0; give a share of the run in \[0, 1\)"),
        (LinBreg, {"momentum": "nesterov"}, "linbreg: momentum is 'nesterov'; choose one of"),
    ),
)
def test_wrong_values_are_named(kind: type[LinBreg], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)
