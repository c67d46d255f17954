"""Dense: every weight, by the rule that is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dstbench.methods.dense import Dense
from dstbench.suite.model import SparseModel


def attached(task, **fields) -> Dense:
    method = Dense(**fields)
    method.attach(SparseModel(task.build(0), task.example()), task.recipe, seed=0)
    method.setup(lambda batches=1, create_graph=False: [])
    return method


@pytest.mark.parametrize(
    ("rule", "recipe", "kind"),
    [("", "sgd", "sgd"), ("", "adam", "adam"), ("sgd", "adam", "sgd"), ("adam", "sgd", "adam")],
)
def test_rule_or_the_recipe(blobs, rule: str, recipe: str, kind: str) -> None:
    task = replace(blobs, recipe=replace(blobs.recipe, optimizer=recipe))
    method = attached(task, rule=rule)
    assert method.kind == kind
    assert isinstance(method.optimizer, torch.optim.SGD if kind == "sgd" else torch.optim.AdamW)
    assert method.lr(0) == pytest.approx(task.recipe.lr[kind])
    assert method.hyperparameters()["rule"] == rule


def test_nothing_is_masked(blobs) -> None:
    method = attached(blobs)
    for t in range(3):
        method.begin(t)
        assert all(layer.forward_mask is None and layer.grad_mask is None for layer in method.layers)
    assert method.model.density == 1 and not Dense.sparse


def test_unknown_rule() -> None:
    with pytest.raises(ValueError, match="dense: rule is 'adamw'; choose one of sgd, adam; did you mean 'adam'"):
        Dense(rule="adamw")
