"""Static: exact random masks that never move, and no state outside them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dstbench.methods.allocate import ALLOCATIONS, counts
from dstbench.methods.static import Static
from dstbench.suite import registry
from dstbench.suite.model import SparseModel


def attached(task, kernel: str = "masked", seed: int = 0, **fields) -> Static:
    method = Static(**fields)
    method.attach(SparseModel(task.build(0), task.example(), kernel=kernel), task.recipe, seed)
    method.setup(lambda batches=1, create_graph=False: [])
    return method


def train(method: Static, task, steps: int) -> list[float]:
    losses, batches = [], task.batches("train", seed=0)
    for t in range(steps):
        method.model.zero_grad()
        for group in method.optimizer.param_groups:
            group["lr"] = method.lr(t)
        method.begin(t)
        loss = task.loss(method.model, next(batches))
        loss.backward()
        method.step(t)
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("allocation", list(ALLOCATIONS))
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.999])
def test_counts_are_those_of_the_allocation(images, allocation: str, sparsity: float) -> None:
    method = attached(images, allocation=allocation, sparsity=sparsity)
    wanted = counts(method.layers, ALLOCATIONS[allocation](method.layers, 1 - sparsity))
    assert {layer.name: layer.nnz() for layer in method.layers} == wanted
    if allocation != "uniform_rigl":
        total = max(len(method.layers), round((1 - sparsity) * method.model.maskable))
        assert sum(wanted.values()) == total


@pytest.mark.parametrize(
    ("sparsity", "wanted"),
    [
        # Layers of 288, 576, 96 weights: 480 less a dense head are 384, shared as 12 + 24 to 24 + 24.
        (0.5, {"first": 165, "second": 219, "head": 96}),
        # A dense head would take all of the 96: plain ERK, shared as 36 to 48 to 28.
        (0.9, {"first": 31, "second": 41, "head": 24}),
    ],
)
def test_erk_plus_by_hand(blobs, sparsity: float, wanted: dict[str, int]) -> None:
    method = registry.method("static:erk_plus", sparsity=sparsity)
    method.attach(SparseModel(blobs.build(0), blobs.example()), blobs.recipe, 0)
    method.setup(lambda batches=1, create_graph=False: [])
    assert {layer.name: layer.nnz() for layer in method.layers} == wanted


def test_masks_are_random_by_seed(blobs) -> None:
    first, again, other = (attached(blobs, seed=seed) for seed in (0, 0, 1))
    for a, b, c in zip(first.layers, again.layers, other.layers, strict=True):
        assert torch.equal(a.forward_mask, b.forward_mask)
        assert not torch.equal(a.forward_mask, c.forward_mask) and a.nnz() == c.nnz()


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_nothing_lives_outside_the_masks(blobs, kind: str) -> None:
    decayed = replace(blobs.recipe, optimizer=kind, weight_decay={"sgd": 0.1, "adam": 0.1})
    task = replace(blobs, recipe=decayed)
    method = attached(task)
    masks = [layer.forward_mask.clone() for layer in method.layers]
    losses = train(method, task, 40)
    assert losses[-1] < losses[0]
    for layer, mask in zip(method.layers, masks, strict=True):
        assert torch.equal(layer.forward_mask, mask) and torch.equal(layer.grad_mask, mask)
        for tensor in (layer.weight, *layer.state.values()):
            assert not tensor[~mask].any() and tensor[mask].any()


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_both_storages_train_alike(images, kind: str) -> None:
    task = replace(images, recipe=replace(images.recipe, optimizer=kind))
    masked, compact = (train(attached(task, kernel), task, 30) for kernel in ("masked", "compact"))
    assert masked == pytest.approx(compact, rel=1e-4)


def test_bad_fields() -> None:
    with pytest.raises(ValueError, match="static: allocation is 'erd'; choose one of uniform, uniform_rigl, erk"):
        Static(allocation="erd")
    with pytest.raises(ValueError, match="static: init is 'kaiming'"):
        Static(init="kaiming")
