"""Groups of a Layer's entries: sums over tensors as stored, dense under one kernel, a vector under another.

A group is what shares the leading indices of the weight: `entries` (each by itself), `rows` (all that feeds one output
of a Linear or Conv2d), `kernels` (the 2-D kernel of one pair of channels of a Conv2d; single entries of a Linear).
"""

from __future__ import annotations

import torch
from torch import Tensor

from suite.layer import Layer

LEADING = {"entries": None, "rows": 1, "kernels": 2}


def size(layer: Layer, groups: str) -> int:
    """How many entries one group of the layer has; ValueError for a kind of group that is none of `LEADING`."""
    if groups not in LEADING:
        raise ValueError(f"unknown groups {groups!r}; choose one of {', '.join(LEADING)}")
    leading = LEADING[groups]
    return 1 if leading is None else layer.shape[leading:].numel()


def norms(layer: Layer, stored: Tensor, groups: str) -> Tensor:
    """Euclidean norm of each group of a tensor as stored, (number of groups,); what is not stored counts as 0."""
    number = size(layer, groups)
    if stored.numel() == layer.numel:  # all, in the weight's order
        return stored.abs().flatten() if number == 1 else torch.linalg.vector_norm(stored.reshape(-1, number), dim=1)
    total = stored.new_zeros(layer.numel // number)
    total.index_add_(0, _owners(layer, number), stored.abs() if number == 1 else stored.square())
    return total if number == 1 else total.sqrt()


def spread(layer: Layer, values: Tensor, groups: str) -> Tensor:
    """One value a group, (number of groups,), handed to every entry of the group, as stored."""
    return layer.kernel.store(layer, spread_dense(layer, values, groups))


def spread_dense(layer: Layer, values: Tensor, groups: str) -> Tensor:
    """One value a group, handed to every entry of the group, in the weight's shape."""
    return values.repeat_interleave(size(layer, groups)).view(layer.shape)


def _owners(layer: Layer, number: int) -> Tensor:
    """The group of every stored entry: groups of `number` entries lie one after the other in memory."""
    entries = torch.arange(layer.numel, device=layer.parameter.device)
    return layer.kernel.store(layer, (entries // number).view(layer.shape))
