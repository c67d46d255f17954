"""Scores: how much each weight of a Layer is worth keeping or growing."""

from __future__ import annotations

import math

from torch import Tensor

from dstbench.suite.layer import Layer

TINY = 1e-8  # added to the root of Adam's second moment


def momentum(layer: Layer) -> Tensor:
    """|momentum|: SGD's, or of Adam the first moment over the root of the second; |gradient| before there is any.

    Reference: Dettmers & Zettlemoyer, arXiv 1907.04840, section 3; Adam's: `get_momentum_for_weight` of their code.
    """
    state = layer.state
    if "exp_avg" in state:
        return (state["exp_avg"] / (state["exp_avg_sq"].sqrt() + TINY)).abs()
    return state.get("momentum_buffer", layer.grad).abs()


def magnitude(layer: Layer) -> Tensor:
    """|w| of the weights that a pass reads, just-grown zeros included; -infinity for all others: none resurrects."""
    score = layer.weight.abs()
    return score if layer.forward_mask is None else score.masked_fill(~layer.forward_mask, -math.inf)
