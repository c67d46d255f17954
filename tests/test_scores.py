"""Scores: membership comes from the mask, never from the value."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dstbench.methods.allocate import top
from dstbench.methods.scores import magnitude, momentum
from dstbench.suite.model import SparseModel


def test_magnitude_of_a_dense_layer() -> None:
    layer = SparseModel(nn.Sequential(nn.Linear(2, 2)), torch.zeros(1, 2)).layers[0]
    layer.assign(torch.tensor([[1.0, -2.0], [0.0, 3.0]]))
    assert magnitude(layer).tolist() == [[1.0, 2.0], [0.0, 3.0]]


def test_magnitude_ranks_an_active_zero_above_every_inactive_weight() -> None:
    layer = SparseModel(nn.Sequential(nn.Linear(2, 2)), torch.zeros(1, 2)).layers[0]
    layer.assign(torch.tensor([[1.0, -2.0], [0.0, 3.0]]))
    mask = torch.tensor([[True, False], [True, False]])
    layer.activate(mask)
    assert magnitude(layer).tolist() == [[1.0, -math.inf], [0.0, -math.inf]]
    assert torch.equal(top(magnitude(layer), 2), mask)
    assert layer.weight.tolist() == [[1.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("kind", "second", "third"),
    [(torch.optim.SGD, [1.9, 0.19, 0.0], 2.71), (torch.optim.AdamW, [0.19 / 1999e-6**0.5] * 2 + [0.0], None)],
)
def test_momentum_by_hand(kind, second, third) -> None:
    """Gradients 1, -0.1 and 0 at every step, momentum 0.9: Adam's m and v are 1 - 0.9^t and 1 - 0.999^t of them."""
    model = SparseModel(nn.Sequential(nn.Linear(3, 1, bias=False)), torch.zeros(1, 3))
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind([model.layers[0].parameter], lr=0.0, **options)
    model.attach(optimizer, {})
    layer = model.layers[0]
    for t in range(3):
        layer.parameter.grad = torch.tensor([[1.0, -0.1, 0.0]])
        if t == 0:
            assert momentum(layer).flatten().tolist() == pytest.approx([1.0, 0.1, 0.0])
        optimizer.step()
        if t == 1:
            assert momentum(layer).flatten().tolist() == pytest.approx(second, rel=1e-5)
    wanted = third or (1 - 0.9**3) / (1 - 0.999**3) ** 0.5
    assert float(momentum(layer)[0, 0]) == pytest.approx(wanted, rel=1e-5)
