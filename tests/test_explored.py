"""R_s is the share of weights that any pass has read, against a set of places kept by hand."""

from __future__ import annotations

import torch
from torch import nn

from dstbench.suite.meters.explored import Explored
from dstbench.suite.model import SparseModel


def test_the_union_of_masks_over_maskable_weights() -> None:
    model = SparseModel(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)), torch.zeros(1, 6))
    explored, seen = Explored(model), [set(), set()]
    assert explored.share == 0
    rng = torch.Generator().manual_seed(0)
    for _ in range(4):
        for layer, places in zip(model.layers, seen, strict=True):
            mask = torch.rand(layer.shape, generator=rng) < 0.2
            layer.activate(mask)
            places |= {tuple(i) for i in mask.nonzero().tolist()}
        explored.look()
        explored.look()
    assert explored.share == (len(seen[0]) + len(seen[1])) / 50


def test_a_dense_pass_reads_all_and_what_was_read_is_not_forgotten() -> None:
    model = SparseModel(nn.Sequential(nn.Linear(6, 5)), torch.zeros(1, 6))
    explored = Explored(model)
    explored.look()
    assert explored.share == 1
    model.layers[0].activate(torch.zeros(5, 6, dtype=torch.bool))
    explored.look()
    assert explored.share == 1
