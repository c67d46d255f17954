"""ITOP: the drop falls to a floor and never ends, steps come first if asked, and R_s is the union of all masks."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dstbench.methods.dynamic import SET, RigL
from dstbench.suite import registry
from dstbench.suite.train import Training
from nets import STEPS, backward, begin, train

ITOP = pytest.mark.parametrize("name", ["set:itop", "rigl:itop"])
BOTH = pytest.mark.parametrize("kind", [SET, RigL])


@ITOP
def test_the_presets_are_the_code_of_itop(name: str) -> None:
    method = registry.method(name)
    assert isinstance(method, SET) and (method.alpha, method.floor, method.stop) == (0.5, 0.005, 1.0)


@ITOP
def test_the_drop_falls_along_a_cosine_to_its_floor(name: str) -> None:
    method = registry.method(name, sparsity=0.9, period=1, allocation="uniform")
    model = begin(method, steps=100)
    size = {y.name: y.nnz() for y in model.layers}
    assert max(size.values()) == 192
    method.growth = lambda layer: (~layer.forward_mask).double()  # what just went comes back last
    for t in range(99):
        before = [y.forward_mask for y in model.layers]
        method.begin(t)
        backward(model, t)
        method.step(t)
        wanted = 0.005 + 0.495 * (1 + math.cos(math.pi * (t + 1) / 100)) / 2
        for layer, old in zip(model.layers, before, strict=True):
            assert int((old & ~layer.forward_mask).sum()) == math.ceil(wanted * size[layer.name])
            assert layer.nnz() == size[layer.name]
    assert wanted == pytest.approx(0.005, abs=2e-4) and wanted > 0.005


@ITOP
def test_updates_go_on_to_the_end_where_those_of_the_papers_stop(name: str) -> None:
    for entry, first, last in ((name, 3, 35), (name.split(":")[0], 4, 28)):
        method = registry.method(entry)
        begin(method)
        assert [t for t in range(STEPS) if method.due(t)] == list(range(first, last + 1, 4))


@ITOP
def test_when_and_how_much_is_that_of_the_authors_loop(name: str) -> None:
    """Their loop: the optimiser's step, that of PyTorch's own cosine, then an update where it is due."""
    method = registry.method(name, period=10)
    begin(method, steps=100)
    rate = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(rate, 100, eta_min=0.005)
    updates = []
    for taken in range(1, 100):
        rate.step()
        decay.step()
        t = taken - 1
        assert method.due(t) == (taken % 10 == 0)
        if taken % 10 == 0:
            share = rate.param_groups[0]["lr"]
            assert method.fraction(t) == pytest.approx(share, rel=1e-9)
            assert method.moved(t, 16) == math.ceil(share * 16)
            updates.append((taken, method.moved(t, 16)))
    assert updates == [(10, 8), (20, 8), (30, 7), (40, 6), (50, 5), (60, 3), (70, 2), (80, 1), (90, 1)]


@BOTH
def test_the_papers_number_is_rounded_down(kind: type[SET]) -> None:
    """0.15 (1 + cos(pi t / 30)) of 16, an update in place of every fourth step."""
    begin(method := kind())
    assert [method.moved(t, 16) for t in range(4, 29, 4)] == [4, 4, 3, 2, 1, 0, 0]


@BOTH
@pytest.mark.parametrize("kernel", ["masked", "compact"])
def test_after_step_takes_the_step_of_a_static_run_then_updates(kind: type[SET], kernel: str) -> None:
    """Up to the first update and in its own step, kept weights move as if nothing were to be updated."""
    ends = []
    for period, steps in ((4, True), (100, False)):
        method = kind(sparsity=0.5, period=period, after_step=steps, allocation="uniform")
        model = begin(method, kernel)
        train(method, model, 0, 4)
        ends.append([(y.weight.clone(), y.state["momentum_buffer"].clone(), y.forward_mask) for y in model.layers])
    for (w, m, mask), (static, momentum, first) in zip(*ends, strict=True):
        assert torch.equal(w, static.where(mask & first, 0)) and torch.equal(m, momentum.where(mask & first, 0))
        assert (mask & ~first).any() and mask.sum() == first.sum()


@BOTH
@pytest.mark.parametrize("after_step", [False, True])
def test_the_optimiser_steps_always_or_not_on_updates(kind: type[SET], after_step: bool) -> None:
    method = kind(after_step=after_step)
    model, stepped = begin(method), []
    step = method.optimizer.step
    for t in range(STEPS):
        method.optimizer.step = lambda t=t: (stepped.append(t), step())
        train(method, model, t, t + 1)
    assert sorted({*range(STEPS)} - {*stepped}) == ([] if after_step else list(range(4, 29, 4)))


@ITOP
def test_r_s_is_the_union_of_all_masks_that_were_read(blobs, name: str) -> None:
    training = Training(blobs, registry.method(name), seed=0)
    training.setup()
    read: set[tuple[int, int]] = set()
    descend = training.method.descend

    def spy(batch):
        for i, layer in enumerate(training.model.layers):
            read.update((i, place) for place in layer.forward_mask.flatten().nonzero().flatten().tolist())
        return descend(batch)

    training.method.descend = spy
    training.run()
    assert training.explored.share == len(read) / (288 + 576 + 96)


@pytest.mark.parametrize("name", ["set", "rigl"])
def test_itop_explores_more_than_the_paper_and_both_more_than_a_mask(blobs, name: str) -> None:
    task, shares = replace(blobs, recipe=replace(blobs.recipe, steps=200)), []
    for entry in ("static", name, f"{name}:itop"):
        training = Training(task, registry.method(entry, sparsity=0.9), seed=0)
        training.setup()
        training.run()
        shares.append(training.explored.share)
        assert sum(y.nnz() for y in training.model.layers) == 96
    assert shares[0] == 0.1 < shares[1] < shares[2] <= 1


@BOTH
def test_bad_fields(kind: type[SET]) -> None:
    with pytest.raises(ValueError, match=rf"{kind.name}: floor is 0.4; give a value from 0 to 0.3"):
        kind(floor=0.4)
