"""Controllers of lambda: how strong the regulariser must be for the sparsity that is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dstbench.methods.allocate import global_top
from dstbench.methods.mirror import MirrorDescent
from dstbench.suite.layer import Layer

CONTROLS = ("quantile", "fixed", "multiplicative")


def rise(progress: float, start: float, target: float) -> float:
    """A density that rises from `start` at progress 0 to `target` at 1, by equal factors in equal times, and stays."""
    return target if progress >= 1 else start * (target / start) ** progress


def quantile(
    optimizer: MirrorDescent, layers: Sequence[Layer], count: int, scores: Sequence[Tensor] | None = None
) -> list[float]:
    """Lambdas, one a Layer, at which `count` weights are non-zero once the duals, all of them moved, are read.

    All Layers get the same lambda, the largest score of a group that goes. Two exceptions: a Layer that this would
    empty gets the lambda at which its best group stays, and where groups that stay and go tie, lambda is the next
    smaller number and those that go lose a hair of their dual. Of groups of several weights, the number that comes
    nearest to `count` stays. A group whose dual is zero cannot stay. `scores` are the optimiser's, if at hand.
    """
    scores = scores or [optimizer.scores(layer) for layer in layers]
    masks = select(scores, [optimizer.regularizer.size(layer) for layer in layers], count)
    best_out = [torch.where(mask, 0.0, score).max() for mask, score in zip(masks, scores, strict=True)]
    cut = torch.stack(best_out).max()
    lams = []
    for layer, score, mask, out in zip(layers, scores, masks, best_out, strict=True):
        worst_in = torch.where(mask & (score > 0), score, math.inf).min()
        lam = cut if worst_in > cut else out if out < worst_in < cut else worst_in.nextafter(torch.zeros_like(cut))
        losers = ~mask & (score > lam)
        if losers.any():
            optimizer.lower(layer, losers)
        lams.append(float(lam))
    return lams


def select(scores: Sequence[Tensor], sizes: Sequence[int], count: int) -> list[Tensor]:
    """Bool masks of the groups of largest score whose sizes sum to `count` or next to it, at least one a tensor."""
    if max(sizes) > 1:
        weights = torch.cat([torch.full_like(s, size) for s, size in zip(scores, sizes, strict=True)])
        ranked = [s.index_fill(0, s.argmax(), math.inf) for s in scores]
        order = torch.cat(ranked).argsort(descending=True, stable=True)
        count = int((weights[order].double().cumsum(0) - count).abs().argmin()) + 1
    return global_top(scores, count)


def multiplicative(lam: float, density: float, target: float, memory: dict[str, Any]) -> float:
    """Lambda times 1 + alpha gap where too dense, over it where too sparse; alpha shrinks by 0.95 with each overshoot.

    `memory` keeps the number of sign changes of the gap. No density is promised.
    Reference: arXiv 2605.07892 and its code.
    """
    gap = density - target
    side = (gap > 0) - (gap < 0)
    memory["crossings"] = memory.get("crossings", 0) + (side * memory.get("side", 0) < 0)
    memory["side"] = side or memory.get("side", 0)
    factor = 1 + 0.95 ** max(0, memory["crossings"] - 1) * abs(gap)
    return lam * factor if gap > 0 else lam / factor
