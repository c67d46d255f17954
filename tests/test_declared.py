"""Masks edited in place, what `finish` may do, gradients under every recipe, weights that are read late."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from broken import breach, wrong
from conftest import Blobs, Perceptron
from dstbench.suite.checks import CHECKS
from dstbench.suite.checks.subject import NotChecked, Subject
from dstbench.suite.kernels.masked import Masked
from dstbench.suite.layer import Layer
from dstbench.suite.recipe import Recipe

ELSEWHERE = {"identity is stable", "names do not matter", "odd networks train", "a GPU does the same"}
TITLES = sorted(CHECKS.keys() - ELSEWHERE)


class Reader(nn.Module):
    """Embeds tokens, averages, classifies."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 12)
        self.body = Perceptron()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.body(self.embed(tokens).mean(1))


@dataclass(frozen=True)
class Tokens(Blobs):
    """Which of four tokens is there most often."""

    def build(self, seed: int, width: float = 1.0) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Reader()

    def example(self) -> Tensor:
        return torch.zeros(2, 8, dtype=torch.long)

    def batches(self, split: str, seed: int, start: int = 0):
        for x, y in super().batches(split, seed, start):
            yield (x[:, :8] * 2).long().abs().clamp(max=15), y


RECIPES = {
    "clip": Blobs(recipe=Recipe(steps=60, batch=16, lr={"sgd": 0.05, "adam": 3e-3}, clip=0.05)),
    "fp16": Blobs(recipe=Recipe(steps=60, batch=16, lr={"sgd": 0.05, "adam": 3e-3}, precision="fp16", clip=1.0)),
    "bf16": Blobs(recipe=Recipe(steps=60, batch=16, lr={"sgd": 0.05, "adam": 3e-3}, precision="bf16", accumulate=2)),
    "tokens": Tokens(),
}


@pytest.mark.sampled(8)
@pytest.mark.parametrize("title", TITLES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_no_recipe_and_no_kind_of_input_makes_a_healthy_method_fail(recipe: str, title: str) -> None:
    try:
        assert CHECKS[title](Subject("rigl", "given", given=RECIPES[recipe])) == ""
    except NotChecked as reason:
        assert title == "accumulation does not matter" and "has no halves" in str(reason)


@pytest.mark.parametrize("recipe", ["clip", "fp16"])
def test_wrong_gradients_are_caught_under_every_recipe(recipe: str, tmp_path: Path) -> None:
    hook = """
    def setup(self, gradients):
        super().setup(gradients)
        self.layers[0].parameter.register_hook(lambda g: 1.1 * g)
"""
    text = wrong(breach(tmp_path, hook, given=RECIPES[recipe]), "gradients are those declared")
    assert "first: gradient is" in text and "from autograd's" in text


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        ("layer.forward_mask.fill_(True)", "edited in place after it was declared; build the new mask"),
        ("layer.grad_mask[0] = True", "edited in place after it was declared; build the new mask"),
        ("layer.forward_mask.data.fill_(True)", "fc1: a mask was edited after it was declared, by step 9"),
        ("layer.forward_mask.numpy()[0] = True", "fc1: a mask was edited after it was declared, by step 9"),
    ],
)
@pytest.mark.parametrize("hook", ["begin", "step"])
def test_edits_of_a_declared_mask_are_caught(tmp_path: Path, edit: str, text: str, hook: str) -> None:
    code = f"""
    def {hook}(self, t):
        super().{hook}(t)
        if t == 9:
            for layer in self.layers: {edit}
"""
    assert text in wrong(breach(tmp_path, code), "masks are not edited")


@pytest.mark.parametrize(
    ("work", "text"),
    [
        ("layer.activate(layer.forward_mask & (layer.weight.abs() > 0.1))", "finish() changes forward_mask"),
        ("layer.assign(layer.weight * (layer.weight.abs() > 0.1))", "weights to zero: prune in begin or step"),
        ("layer.parameter.data.add_(1e-3)", "after finish() weight is not zero outside"),
    ],
)
def test_a_finish_that_prunes_or_breaks_the_invariant_is_caught(tmp_path: Path, work: str, text: str) -> None:
    subject = breach(tmp_path, f"    def finish(self):\n        for layer in self.layers: {work}\n")
    assert text in wrong(subject, "finish prunes nothing")


def test_products_in_finish_are_charged(tmp_path: Path) -> None:
    code = "    def finish(self):\n        self.layers[1].weight @ self.layers[1].weight.T\n"
    text = wrong(breach(tmp_path, code), "work outside the pass is charged")
    assert text == "finish computes 2000000 FLOPs and charges 0: call self.charge, or leave it to the pass"


@pytest.mark.parametrize("work", ["torch.linalg.svdvals(w)", "torch.fft.fft(w)", "torch.pdist(w)"])
def test_work_of_unknown_cost_is_charged(tmp_path: Path, work: str) -> None:
    code = "    def finish(self):\n        w = self.layers[2].weight\n        {}"
    text = wrong(breach(tmp_path, code.format(work)), "work outside the pass is charged")
    assert re.fullmatch(
        r"finish calls \w+, whose FLOPs are not known, and does not charge them: call self.charge", text
    )
    charging = code.format(f"self.charge(10 * w.numel())\n        {work}\n")
    assert not CHECKS["work outside the pass is charged"](breach(tmp_path, charging))


def test_weights_that_are_read_late_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that forgets the mask of a method that prunes at half the run."""
    masked = Masked.weight

    def weight(self: Masked, layer: Layer) -> Tensor:
        return layer.parameter if layer.name == "fc2" else masked(self, layer)

    monkeypatch.setattr(Masked, "weight", weight)
    text = CHECKS["unread weights have no influence"](Subject("oneshot", "digits/mlp"))
    assert text == "after step 72, in train mode the output changes with weights outside forward_mask"


def test_the_check_of_influence_leaves_the_run_as_it_was(blobs: Blobs) -> None:
    from dstbench.suite.checks.declared import _influenced

    task = replace(blobs, name="test/images", image=True)
    subject = Subject("static", "given", given=task)
    one, other = subject.training(), subject.training()
    for training in (one, other):
        training.run(until=4)
    assert not _influenced(other, "train") and not _influenced(other, "evaluation")
    for training in (one, other):
        training.run(until=8)
    pairs = zip(one.model.net.state_dict().values(), other.model.net.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
