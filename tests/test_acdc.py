"""AC/DC against NumPy over whole runs; phases, counts and FLOPs in closed form."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dstbench.methods.acdc import ACDC
from dstbench.suite.train import Training
from pruning import Oracle, attached, cosine, follow, same_after_resume, spent, trained, with_recipe

SGD_AND_ADAM = pytest.mark.parametrize("kind", ["sgd", "adam"])
KERNELS = pytest.mark.parametrize("kernel", ["masked", "compact"])
PROPERTY = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def phases(method: ACDC, steps: int) -> list[tuple[str, int]]:
    """The phases of a run and their lengths in steps, as `begin` leaves the masks."""
    kinds = []
    for t in range(steps):
        method.begin(t)
        masks = {id(layer.forward_mask) if layer.forward_mask is None else "mask" for layer in method.layers}
        assert len(masks) == 1 and all(layer.grad_mask is layer.forward_mask for layer in method.layers)
        kinds.append("sparse" if masks == {"mask"} else "dense")
    return [(kind, len(list(group))) for kind, group in groupby(kinds)]


@KERNELS
@SGD_AND_ADAM
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_whole_run_follows_the_oracle(kernel: str, kind: str, scope: str) -> None:
    """The paper's phases at one step an epoch: dense 0-10, 5 and 5, dense 75-85, sparse."""

    def sparse(t: int) -> bool:
        return t >= 85 or (10 <= t < 75 and (t - 10) // 5 % 2 == 0)

    kept: list[bytes] = []

    def prunes(oracle: Oracle, t: int) -> None:
        if sparse(t) and not sparse(t - 1):
            oracle.keep(18, scope)
            kept.append(oracle.masks["1.weight"].tobytes())
        elif sparse(t - 1) and not sparse(t):
            oracle.masks = {name: mask | True for name, mask in oracle.masks.items()}
            oracle.forget()

    follow(ACDC(sparsity=0.75, scope=scope), kind, kernel, 100, prunes, lambda t: cosine(t / 100))
    assert len(kept) == 8 and len(set(kept)) > 2, "other weights are the largest in other phases"


@pytest.mark.parametrize(
    ("steps", "fields", "expected"),
    [
        (1000, {}, [100, *[50] * 13, 100, 150]),
        (20, {}, [2, *[1] * 13, 2, 3]),
        (200, {"warmup": 0.05, "phase": 0.1}, [10, *[20] * 7, 20, 30]),  # the paper's on CIFAR-100
        (100, {"phase": 1.0}, [10, 65, 10, 15]),
        (100, {"phase": 0.12}, [10, 13, 13, 13, 13, 13, 10, 15]),
        (100, {"last_start": 0.1}, [85, 15]),
        (100, {"last_start": 0.85}, [10, *[5] * 14, 20]),  # no last dense phase: the last two sparse ones are one
        (100, {"last": 1.0, "last_start": 1.0, "phase": 0.5}, [10, 90]),
    ],
)
def test_phases_in_closed_form(blobs, steps: int, fields: dict[str, float], expected: list[int]) -> None:
    found = phases(attached(ACDC(**fields), with_recipe(blobs, steps=steps)), steps)
    assert found == [("sparse" if i % 2 else "dense", n) for i, n in enumerate(expected)]


def test_without_a_warm_up_it_starts_sparse(blobs) -> None:
    found = phases(attached(ACDC(warmup=0.0, phase=0.25), with_recipe(blobs, steps=40)), 40)
    assert found == [("sparse", 10), ("dense", 10), ("sparse", 10), ("dense", 4), ("sparse", 6)]


@PROPERTY
@given(
    steps=st.one_of(st.integers(1, 40), st.integers(20, 2000)),
    shares=st.lists(st.floats(0, 1), min_size=3, max_size=3).map(sorted),
    phase=st.floats(1e-4, 1),
    sparsity=st.sampled_from([0.0, 0.3, 0.9, 0.999]),
    scope=st.sampled_from(["global", "layer"]),
)
def test_counts_are_exact_at_every_step_and_the_run_ends_on_target(blobs, steps, shares, phase, sparsity, scope):
    warmup, last_start, last = shares
    fields: dict[str, Any] = {"warmup": warmup, "last_start": last_start, "last": last, "phase": phase}
    method = attached(ACDC(sparsity=sparsity, scope=scope, **fields), with_recipe(blobs, steps=steps))
    kept, seen = max(3, round(960 * (1 - sparsity))), []
    for t in range(steps):
        method.begin(t)
        seen.append(sum(layer.nnz() for layer in method.layers))
        assert (method.layers[0].forward_mask is None) is method.dense(t)
        assert seen[-1] == (960 if method.dense(t) else kept)
    assert seen[-1] == kept and not method.dense(steps - 1)
    assert method.starts == sorted(method.starts)


@PROPERTY
@given(steps=st.integers(20, 2000))
def test_the_defaults_give_all_thirteen_phases_a_step_at_least(blobs, steps: int) -> None:
    found = phases(attached(ACDC(), with_recipe(blobs, steps=steps)), steps)
    ideal = [0.1, *[0.05] * 13, 0.1, 0.15]
    assert all(n >= 1 and abs(n - share * steps) < 1.5 for (_, n), share in zip(found, ideal, strict=True))


@KERNELS
@SGD_AND_ADAM
def test_pruned_weights_come_back_at_zero_and_the_optimiser_forgets(blobs, kernel: str, kind: str) -> None:
    task = with_recipe(blobs, steps=100, optimizer=kind, lr={"sgd": 0.2, "adam": 0.02})
    training = Training(task, ACDC(sparsity=0.5), kernel=kernel)
    training.setup()
    training.run(until=15)
    before = [(layer.weight.clone(), layer.forward_mask) for layer in training.model.layers]
    assert training.method.optimizer.state
    training.method.begin(15)
    assert not training.method.optimizer.state
    for layer, (weight, mask) in zip(training.model.layers, before, strict=True):
        assert layer.forward_mask is None and layer.grad_mask is None
        assert torch.equal(layer.weight, weight) and not weight[~mask].any()
    training.run(until=20)
    momentum = [next(iter(layer.state.values())).clone() for layer in training.model.layers]
    training.method.begin(20)
    for layer, held in zip(training.model.layers, momentum, strict=True):
        assert torch.equal(next(iter(layer.state.values())), held * layer.forward_mask)
    changed = [bool((y.forward_mask & ~old).any()) for y, (_, old) in zip(training.model.layers, before, strict=True)]
    assert any(changed), "weights pruned in the last sparse phase are in the next one"


@pytest.mark.sampled(1)
@KERNELS
@pytest.mark.parametrize("stop", [3, 10, 13, 15, 18, 80, 85, 95])
def test_resuming_is_bit_exact(blobs, kernel: str, stop: int) -> None:
    """In the warm-up, at a compression, in a sparse and a dense phase, in the last dense and the final sparse one."""
    task = with_recipe(blobs, steps=100, optimizer="adam" if stop % 2 else "sgd")
    same_after_resume(task, ACDC, stop, kernel)


@SGD_AND_ADAM
def test_both_storages_train_alike(images, kind: str) -> None:
    task = with_recipe(images, optimizer=kind, steps=40)
    masked, compact = (trained(task, ACDC(sparsity=0.7), kernel) for kernel in ("masked", "compact"))
    assert masked.curve["loss"] == pytest.approx(compact.curve["loss"], rel=1e-4)
    for a, b in zip(masked.model.layers, compact.model.layers, strict=True):
        assert torch.equal(a.forward_mask, b.forward_mask)


def test_it_pays_three_dense_or_three_sparse_passes(images, blobs) -> None:
    """Half of the steps are dense: 10 + 6 · 5 + 10; every Layer's size divides by 4."""
    for task, scope in ((images, "layer"), (blobs, "layer"), (blobs, "global")):
        book, forward = spent(with_recipe(task, steps=100), ACDC(sparsity=0.75, scope=scope))
        assert book == pytest.approx(3 * forward[0] * (50 + 50 * 0.25), rel=5e-3)
    book, forward = spent(with_recipe(images, steps=100), ACDC())
    sparse = sum(5 * forward[t] for t in range(10, 75, 10)) + 15 * forward[85]
    assert book == pytest.approx(3 * (50 * forward[0] + sparse), rel=5e-3) and max(forward[85:]) < forward[0]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"warmup": 0.8}, "acdc: warmup is 0.8; give a value from 0 to 0.75"),
        ({"last_start": 0.9}, "acdc: last_start is 0.9; give a value from 0 to 0.85"),
        ({"last": 1.2}, "acdc: last is 1.2; give a value from 0 to 1"),
        ({"phase": 0.0}, "acdc: phase is 0.0; give a value from 0.0001 to 1"),
        ({"scope": "layers"}, "acdc: scope is 'layers'; .* did you mean 'layer'"),
    ],
)
def test_bad_fields(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ACDC(**fields)
