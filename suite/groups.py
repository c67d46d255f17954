"""Groups of a Layer's entries: sums over tensors as stored, dense under one kernel, a vector under another.

Groups share the leading indices of the weight: `entries` (each by itself), `rows` (all that feeds one output of a
Linear or Conv2d; of a transposed convolution, that one input feeds), `kernels` (the 2-D kernel of one pair of channels
of a Conv2d; single entries of a Linear).
`blocks2`, `blocks4` and `blocks8` are as many consecutive outputs at one place of their rows; in a Layer whose number
of outputs is no multiple, half as many, and so on down to single entries. `heads` are the attention heads of a Layer
that has them, and its rows elsewhere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dstbench.suite.layer import Layer

LEADING = {"entries": None, "rows": 1, "kernels": 2}
BLOCKS = {"blocks2": 2, "blocks4": 4, "blocks8": 8}


def size(layer: Layer, groups: str) -> int:
    """How many entries one group of the layer has; ValueError for a kind of group that there is not."""
    lengths, numbering = _axes(layer, groups)
    return math.prod(length for axis, length in enumerate(lengths) if axis not in numbering)


def arranged(layer: Layer, dense: Tensor, groups: str) -> Tensor:
    """A tensor of the weight's shape as (number of groups, entries of each)."""
    lengths, numbering = _axes(layer, groups)
    inner = [axis for axis in range(len(lengths)) if axis not in numbering]
    return dense.reshape(lengths).permute(*numbering, *inner).reshape(-1, size(layer, groups))


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
    lengths, numbering = _axes(layer, groups)
    values = values.view([length if axis in numbering else 1 for axis, length in enumerate(lengths)])
    return values.expand(lengths).reshape(layer.shape)


def _owners(layer: Layer, groups: str) -> Tensor:
    """The group of every stored entry."""
    number = layer.numel // size(layer, groups)
    return spread(layer, torch.arange(number, device=layer.parameter.device), groups)


def _axes(layer: Layer, groups: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The weight's shape, axes split or joined, and those of them that number the groups, in order."""
    if groups == "heads":
        return (layer.heads, (1,)) if layer.heads else _axes(layer, "rows")
    if groups in BLOCKS:
        height = math.gcd(BLOCKS[groups], layer.shape[0])
        return (layer.shape[0] // height, height, layer.numel // layer.shape[0]), (0, 2)
    if groups not in LEADING:
        raise ValueError(f"unknown groups {groups!r}; choose one of {', '.join([*LEADING, *BLOCKS, 'heads'])}")
    leading = len(layer.shape) if LEADING[groups] is None else LEADING[groups]
    return (layer.shape[:leading].numel(), layer.shape[leading:].numel()), (0,)
