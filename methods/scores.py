"""Scores: how much each weight of a Layer is worth keeping or growing."""

from __future__ import annotations

import math

from torch import Tensor

from suite.layer import Layer


def magnitude(layer: Layer) -> Tensor:
    """|w| of the weights that a pass reads, just-grown zeros included; -infinity for all others: none resurrects."""
    score = layer.weight.abs()
    return score if layer.forward_mask is None else score.masked_fill(~layer.forward_mask, -math.inf)
