"""Groups of a Layer's entries: sums over tensors as stored, dense under one kernel, a vector under another.

Groups share the leading indices of the weight: `entries` (each by itself), `rows` (all that feeds one output of a
Linear or Conv2d), `kernels` (the 2-D kernel of one pair of channels of a Conv2d; single entries of a Linear).
`blocks2`, `blocks4` and `blocks8` are as many consecutive outputs at one place of their rows; in a Layer whose number
of outputs is no multiple, half as many, and so on down to single entries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from suite.layer import Layer

LEADING = {"entries": None, "rows": 1, "kernels": 2}
BLOCKS = {"blocks2": 2, "blocks4": 4, "blocks8": 8}


def size(layer: Layer, groups: str) -> int:
    """How many entries one group of the layer has; ValueError for a kind of group that there is not."""
    if groups in BLOCKS:
        height = BLOCKS[groups]
        while layer.shape[0] % height:
            height //= 2
        return height
    if groups not in LEADING:
        raise ValueError(f"unknown groups {groups!r}; choose one of {', '.join([*LEADING, *BLOCKS])}")
    leading = LEADING[groups]
    return 1 if leading is None else layer.shape[leading:].numel()


def arranged(layer: Layer, dense: Tensor, groups: str) -> Tensor:
    """A tensor of the weight's shape as (number of groups, entries of each)."""
    number = size(layer, groups)
    if groups in BLOCKS:
        dense = dense.reshape(layer.shape[0] // number, number, -1).transpose(1, 2)
    return dense.reshape(-1, number)


def norms(layer: Layer, stored: Tensor, groups: str) -> Tensor:
    """Euclidean norm of each group of a tensor as stored, (number of groups,); what is not stored counts as 0."""
    number = size(layer, groups)
    if stored.numel() == layer.numel:  # all, in the weight's order
        return (
            stored.abs().flatten() if number == 1 else torch.linalg.vector_norm(arranged(layer, stored, groups), dim=1)
        )
    total = stored.new_zeros(layer.numel // number)
    total.index_add_(0, _owners(layer, groups), stored.abs() if number == 1 else stored.square())
    return total if number == 1 else total.sqrt()


def spread(layer: Layer, values: Tensor, groups: str) -> Tensor:
    """One value a group, (number of groups,), handed to every entry of the group, as stored."""
    return layer.kernel.store(layer, spread_dense(layer, values, groups))


def spread_dense(layer: Layer, values: Tensor, groups: str) -> Tensor:
    """One value a group, handed to every entry of the group, in the weight's shape."""
    number = size(layer, groups)
    if groups in BLOCKS:
        values = values.view(layer.shape[0] // number, 1, -1).expand(-1, number, -1)
        return values.reshape(layer.shape)
    return values.repeat_interleave(number).view(layer.shape)


def _owners(layer: Layer, groups: str) -> Tensor:
    """The group of every stored entry."""
    number = layer.numel // size(layer, groups)
    return spread(layer, torch.arange(number, device=layer.parameter.device), groups)
