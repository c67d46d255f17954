"""One-shot pruning and IMP against NumPy over whole runs; counts, schedules, rewinding and FLOPs by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dstbench.methods.finetune import IMP, OneShot
from dstbench.suite import registry
from dstbench.suite.meters.memory import training_state
from dstbench.suite.method import Method
from dstbench.suite.train import Training
from pruning import Oracle, attached, cosine, follow, same_after_resume, spent, trained, with_recipe

SGD_AND_ADAM = pytest.mark.parametrize("kind", ["sgd", "adam"])
KERNELS = pytest.mark.parametrize("kernel", ["masked", "compact"])
PROPERTY = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


# ---- one shot ----


@KERNELS
@SGD_AND_ADAM
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("finetune", ["restart", "continue"])
def test_one_shot_follows_the_oracle(kernel: str, kind: str, scope: str, finetune: str) -> None:
    def prunes(oracle: Oracle, t: int) -> None:
        if t == 30:
            oracle.keep(18, scope)
            if finetune == "restart":
                oracle.forget()

    def factor(t: int) -> float:
        if finetune == "continue":
            return cosine(t / 40)
        return cosine((t * 4 // 3) / 40) if t < 30 else cosine((t - 30) / 10)

    follow(OneShot(sparsity=0.75, at=0.75, scope=scope, finetune=finetune), kind, kernel, 40, prunes, factor)


@PROPERTY
@given(steps=st.integers(1, 200), at=st.floats(0, 1), sparsity=st.sampled_from([0.0, 0.3, 0.9, 0.999]))
def test_one_shot_is_dense_before_the_cut_and_on_target_after(blobs, steps, at, sparsity) -> None:
    method = attached(OneShot(at=at, sparsity=sparsity), with_recipe(blobs, steps=steps))
    total, kept = method.model.maskable, max(3, round((1 - sparsity) * 960))
    assert total == 960
    seen = [(method.begin(t), sum(layer.nnz() for layer in method.layers))[1] for t in range(steps)]
    dense = min(steps - 1, round(at * steps))
    assert seen == [total] * dense + [kept] * (steps - dense)


def test_the_presets(blobs) -> None:
    method = attached(registry.method("oneshot:180_20"), with_recipe(blobs, steps=200))
    assert method.cut == 180
    assert registry.method("imp").rewind == "weights" and registry.method("imp:lr").rewind == "lr"


def test_each_half_runs_through_the_whole_schedule(blobs) -> None:
    warm = replace(blobs.recipe, steps=200, warmup=0.1)
    method = attached(OneShot(at=0.9), replace(blobs, recipe=warm))
    rates = [method.lr(t) / 0.05 for t in range(200)]
    assert rates[180:] == pytest.approx([warm.factor(10 * i) for i in range(20)])
    expected = [warm.factor(math.floor(t / 0.9 + 1e-9)) for t in range(180)]
    assert rates[:180] == pytest.approx(expected) and rates[0] == rates[180] < 0.1 and rates[179] < 1e-3
    assert max(rates[:180]) == max(rates[180:]) == pytest.approx(1.0)
    on = attached(OneShot(at=0.9, finetune="continue"), replace(blobs, recipe=warm))
    assert [on.lr(t) / 0.05 for t in range(200)] == pytest.approx([warm.factor(t) for t in range(200)])


@SGD_AND_ADAM
def test_state_across_the_cut(blobs, kind: str) -> None:
    task = with_recipe(blobs, optimizer=kind, steps=20)
    for finetune in ("restart", "continue"):
        training = Training(task, OneShot(finetune=finetune))
        training.setup()
        training.run(until=10)
        before = [{k: v.clone() for k, v in layer.state.items()} for layer in training.model.layers]
        training.method.begin(10)
        assert bool(training.method.optimizer.state) is (finetune == "continue")
        if finetune == "continue":
            for layer, state in zip(training.model.layers, before, strict=True):
                assert state and all(torch.equal(layer.state[k], v * layer.forward_mask) for k, v in state.items())


# ---- rounds ----


@KERNELS
@SGD_AND_ADAM
@pytest.mark.parametrize(("rewind", "at"), [("weights", 0.0), ("weights", 0.2), ("weights", 1.0), ("lr", 0.2)])
def test_imp_follows_the_oracle(kernel: str, kind: str, rewind: str, at: float) -> None:
    kept = {10: 45, 20: 29, 30: 18}  # 72 · 0.25^(k/3)
    saved: dict[str, np.ndarray] = {}

    def prunes(oracle: Oracle, t: int) -> None:
        if t == 10 * at:
            saved.update({name: value.copy() for name, value in oracle.values.items()})
        if t in kept:
            oracle.keep(kept[t])
            oracle.forget()
            if rewind == "weights":
                oracle.values.update(saved)
                oracle.project()

    method = IMP(sparsity=0.75, rounds=3, rewind=rewind, rewind_at=at)
    follow(method, kind, kernel, 40, prunes, lambda t: cosine(t % 10 / 10))
    assert bool(method.memory) is (rewind == "weights")


@PROPERTY
@given(
    steps=st.integers(2, 150),
    rounds=st.integers(1, 8),
    sparsity=st.sampled_from([0.0, 0.3, 0.9, 0.999]),
    rewind=st.sampled_from(["weights", "lr"]),
    at=st.floats(0, 1),
)
def test_every_round_has_its_exact_count_at_every_step(blobs, steps, rounds, sparsity, rewind, at) -> None:
    method = IMP(sparsity=sparsity, rounds=rounds, rewind=rewind, rewind_at=at)
    task = with_recipe(blobs, steps=steps)
    if steps < rounds + 1:
        with pytest.raises(ValueError, match=rf"imp: {steps} steps do not split into {rounds} rounds \+ 1 trainings"):
            attached(method, task)
        return
    attached(method, task)
    seen = []
    for t in range(steps):
        masks = [layer.forward_mask for layer in method.layers]
        method.begin(t)
        seen.append(sum(layer.nnz() for layer in method.layers))
        nested = zip(masks, (layer.forward_mask for layer in method.layers), strict=True)
        assert all(old is None or not (new & ~old).any() for old, new in nested)
    lengths = [seen.count(n) for n in dict.fromkeys(seen)]
    if sparsity in (0.3, 0.9):  # the counts of all rounds differ
        assert len(lengths) == rounds + 1 and max(lengths) - min(lengths) <= 1
    ends = np.cumsum([0, *(steps * (k + 1) // (rounds + 1) - steps * k // (rounds + 1) for k in range(rounds + 1))])
    for k in range(rounds + 1):
        wanted = max(3, round(960 * (1 - sparsity) ** (k / rounds))) if k else 960
        assert set(seen[ends[k] : ends[k + 1]]) == {wanted}


def test_every_training_restarts_the_schedule(blobs) -> None:
    method = attached(IMP(rounds=3), with_recipe(blobs, steps=80))
    assert [method.lr(t) for t in range(80)] == pytest.approx([0.05 * cosine(t % 20 / 20) for t in range(80)])
    uneven = attached(IMP(rounds=3), with_recipe(blobs, steps=82))
    places = [i / n for n in (20, 21, 20, 21) for i in range(n)]
    rates = [uneven.lr(t) for t in range(82)]
    assert rates == pytest.approx([0.05 * cosine(math.floor(82 * share + 1e-9) / 82) for share in places])
    assert [rates[t] for t in (0, 20, 41, 61)] == [0.05] * 4
    warm = attached(IMP(rounds=1), with_recipe(blobs, steps=40, warmup=0.2))
    assert [warm.lr(t) for t in range(20)] == [warm.lr(t + 20) for t in range(20)]
    assert warm.lr(0) < warm.lr(2) < warm.lr(4) == pytest.approx(0.05)


@KERNELS
@pytest.mark.parametrize("rewind", ["weights", "lr"])
def test_what_is_no_layer_goes_back_as_well(images, kernel: str, rewind: str) -> None:
    """A batch norm, biases, and a classifier that the task keeps dense; in learning-rate rewinding none of them."""
    task = replace(with_recipe(images, steps=30), dense=("head",))
    training = Training(task, IMP(rounds=2, rewind=rewind, rewind_at=0.3), kernel=kernel)
    training.setup()
    layers = {layer.key for layer in training.model.layers}
    assert "head.weight" not in layers and len(layers) == 4

    def values() -> dict[str, Tensor]:
        named = {**dict(training.model.net.named_parameters()), **dict(training.model.net.named_buffers())}
        rest = {name: value.detach().clone() for name, value in named.items() if name not in layers}
        return rest | {layer.key: layer.weight.clone() for layer in training.model.layers}

    training.run(until=3)
    early = values()
    assert {"norm.running_var", "norm.num_batches_tracked", "norm.weight", "head.weight", "stem.weight"} <= set(early)
    for cut in (10, 20):
        training.run(until=cut)
        late = values()
        training.method.begin(cut)
        masks = {layer.key: layer.forward_mask for layer in training.model.layers}
        for name, value in values().items():
            wanted = (early if rewind == "weights" else late)[name]
            assert torch.equal(value, wanted * masks[name] if name in masks else wanted), name
            assert not torch.equal(early[name], late[name])
        assert not training.method.optimizer.state
    assert int(early["norm.num_batches_tracked"]) == 3


@pytest.mark.parametrize("at", [0.0, 1.0])
def test_the_rewind_point_may_be_the_start_or_the_end_of_the_first_training(blobs, at: float) -> None:
    task = with_recipe(blobs, steps=30)
    training = Training(task, IMP(rounds=2, rewind_at=at))
    training.setup()
    start = [layer.weight.clone() for layer in training.model.layers]
    training.run(until=10)
    end = [layer.weight.clone() for layer in training.model.layers]
    training.method.begin(10)
    for layer, weight in zip(training.model.layers, end if at else start, strict=True):
        assert torch.equal(layer.weight, weight * layer.forward_mask)


# ---- of both ----

RESUMED = [
    *((OneShot, {"finetune": "restart"}, stop) for stop in (9, 20, 27)),
    (OneShot, {"finetune": "continue"}, 27),
    *((IMP, {"rewind": "weights"}, stop) for stop in (2, 8, 10, 15, 27)),
    (IMP, {"rewind": "lr"}, 15),
]


@pytest.mark.sampled(1)
@KERNELS
@pytest.mark.parametrize(("kind", "fields", "stop"), RESUMED)
def test_resuming_is_bit_exact(images, kernel: str, kind: type[Method], fields: dict[str, Any], stop: int) -> None:
    """In the dense training before and after the rewind point, at a cut, between cuts and after the last."""
    fields = fields | ({"rounds": 2, "rewind_at": 0.5} if kind is IMP else {})
    task = with_recipe(images, steps=30 if kind is IMP else 40, optimizer="adam" if stop % 2 else "sgd")
    same_after_resume(task, lambda: kind(**fields), stop, kernel)


@pytest.mark.sampled(2)
@SGD_AND_ADAM
@pytest.mark.parametrize("name", ["oneshot", "imp", "imp:lr"])
def test_both_storages_train_alike(images, kind: str, name: str) -> None:
    task = with_recipe(images, optimizer=kind, steps=40)
    masked, compact = (trained(task, registry.method(name, sparsity=0.7), kernel) for kernel in ("masked", "compact"))
    assert masked.curve["loss"] == pytest.approx(compact.curve["loss"], rel=1e-4)
    for a, b in zip(masked.model.layers, compact.model.layers, strict=True):
        assert torch.equal(a.forward_mask, b.forward_mask)


def test_one_shot_pays_for_dense_steps_and_for_sparse_ones(images) -> None:
    task = with_recipe(images, steps=40)
    book, forward = spent(task, OneShot(sparsity=0.75, at=0.7, scope="layer"))
    assert book == pytest.approx(3 * forward[0] * (28 + 12 * 0.25), rel=5e-3)  # every Layer's size divides by 4


def test_imp_pays_for_every_round_and_the_budget_makes_them_full_trainings(images) -> None:
    task = with_recipe(images, steps=20)
    for budget, length in ((1.0, 5), (4.0, 20)):
        book, forward = spent(task, IMP(rounds=3, budget=budget))
        rounds = [forward[k * length] for k in range(4)]
        assert len(forward) == 4 * length and rounds == sorted(set(rounds), reverse=True)
        assert book == pytest.approx(sum(3 * f * length for f in rounds), rel=5e-3)


@pytest.mark.parametrize(
    ("kind", "fields", "text"),
    [
        (OneShot, {"at": 1.5}, "oneshot: at is 1.5; give a value from 0 to 1"),
        (OneShot, {"scope": "globl"}, "oneshot: scope is 'globl'; .* did you mean 'global'"),
        (OneShot, {"finetune": "go on"}, "oneshot: finetune is 'go on'; choose one of restart, continue"),
        (IMP, {"rounds": 0}, "imp: rounds is 0; give a value from 1"),
        (IMP, {"rewind": "weight"}, "imp: rewind is 'weight'; .* did you mean 'weights'"),
        (IMP, {"rewind_at": -0.1}, "imp: rewind_at is -0.1; give a value from 0 to 1"),
    ],
)
def test_bad_fields(kind: type[Method], fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        kind(**fields)


def test_the_copy_for_rewinding_is_counted_in_memory(blobs) -> None:
    training = Training(blobs, IMP(sparsity=0.8))
    training.setup()
    training.run(until=5)
    before = training_state(training.model, training.method.optimizer)
    held = sum(tensor.nbytes for tensor in training.method.memory.values())
    assert held == sum(p.nbytes for p in training.model.net.parameters())
    assert training_state(training.model, training.method.optimizer, training.method.memory) == before + held
