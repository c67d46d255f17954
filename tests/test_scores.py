"""Scores: membership comes from the mask, never from the value."""

from __future__ import annotations

import math

import torch
from torch import nn

from dstbench.methods.allocate import top
from dstbench.methods.scores import magnitude
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
