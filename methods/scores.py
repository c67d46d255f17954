"""Scores: how much each weight of a Layer is worth keeping or growing."""

from __future__ import annotations

import math

from torch import Tensor

from dstbench.suite.layer import Layer


def momentum(layer: Layer) -> Tensor:
    """|first moment| of the gradient, in SGD's or Adam's state; |gradient| before there is any.

    Reference: Dettmers & Zettlemoyer, arXiv 1907.04840, section 3.
    """
    found = [layer.state[name] for name in ("momentum_buffer", "exp_avg") if name in layer.state]
    return (found[0] if found else layer.grad).abs()


def magnitude(layer: Layer) -> Tensor:
    """|w| of the weights that a pass reads, just-grown zeros included; -infinity for all others: none resurrects."""
    score = layer.weight.abs()
    return score if layer.forward_mask is None else score.masked_fill(~layer.forward_mask, -math.inf)
