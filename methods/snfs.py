"""SNFS, sparse networks from scratch: momentum says which Layers grow, and which weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dstbench.methods.allocate import top
from dstbench.methods.dynamic import SET, grow
from dstbench.methods.scores import magnitude, momentum
from dstbench.suite.layer import Layer
from dstbench.suite.method import Gradients

DENSE = 0.2  # Layers that are less sparse than this drop less while they grow
FULL = 0.99  # the share of its free places that a Layer may grow


@dataclass
class SNFS(SET):
    """SET that grows where the momentum, which is dense, is largest, and shares growth among Layers by it.

    Every update drops the share `alpha` (falling to `floor`) of each Layer, rounded up, all but its largest weight at
    most; of a Layer under 20 % sparse that has more than its part of the momentum, no larger share than its sparsity.
    As many weights as went in all Layers together are shared out in proportion to the mean |momentum| of each Layer's
    weights, 99 % of its free places at most to a Layer; what is beyond that goes to the others in equal parts. Only
    weights on the mask move. Momentum is Adam's first moment over the root of its second, where Adam steps.
    Passes: every pass reads the mask and computes the dense gradient.
    FLOPs: 2 f_S + f_D every step.
    Defaults: `alpha` 0.5, `floor` 0.005 and a cosine over the whole run from the authors' code; `period` (theirs is an
        epoch) and `init` from this suite's fairness rules; erk as RigL's paper runs SNFS.
    Ambiguous: the mean is over the weights before any is dropped. The code rounds parts up, then down, and follows its
        target density by a controller; here counts are exact, by largest remainder. Parts are equal where there is no
        momentum, and take all free places where 99 % do not hold them. Newly grown weights keep their momentum (the
        code dropped its reset). The optimiser steps, then comes the update (`after_step`).
    Reference: Dettmers & Zettlemoyer, arXiv 1907.04840, section 3, and their code.
    """

    alpha: float = 0.5
    stop: float = 1.0
    floor: float = 0.005
    after_step: bool = True

    name: ClassVar[str] = "snfs"
    citation: ClassVar[str] = "Dettmers & Zettlemoyer 2019, arXiv 1907.04840"
    version: ClassVar[int] = 2
    grown: ClassVar[str] = "at zero, with the momentum gathered meanwhile"

    def setup(self, gradients: Gradients) -> None:
        super().setup(gradients)
        for layer in self.layers:
            layer.grad_mask = None

    def project(self) -> None:
        for layer in self.layers:  # values live on the mask alone, momentum everywhere
            if layer.forward_mask is not None:
                layer.assign(layer.weight.masked_fill(~layer.forward_mask, 0))

    def update(self, t: int) -> None:
        worth = [float(momentum(layer)[layer.forward_mask].mean()) for layer in self.layers]
        rates = [min(self.fraction(t), most) for most in limits(self.layers, worth)]
        keep = [max(1, y.nnz() - math.ceil(rate * y.nnz())) for y, rate in zip(self.layers, rates, strict=True)]
        dropped = sum(layer.nnz() for layer in self.layers) - sum(keep)
        room = [layer.numel - kept for layer, kept in zip(self.layers, keep, strict=True)]
        for layer, k, more in zip(self.layers, keep, shares(dropped, worth, room), strict=True):
            layer.forward_mask = grow(top(magnitude(layer), k), self.growth(layer), more)
        self.project()

    def growth(self, layer: Layer) -> Tensor:
        return momentum(layer)


def limits(layers: Sequence[Layer], worth: Sequence[float]) -> list[float]:
    """The largest share that each Layer may drop: its sparsity where it is all but dense and still growing, else 1.

    Reference: `adjust_prune_rate` of the authors' code.
    """
    sparsity = [(layer.numel - layer.nnz()) / layer.numel for layer in layers]
    mean = math.fsum(worth) / len(worth)
    return [s if s < DENSE and w > mean else 1.0 for s, w in zip(sparsity, worth, strict=True)]


def shares(total: int, weights: Sequence[float], room: Sequence[int]) -> list[int]:
    """`total` in whole parts proportional to `weights`, by largest remainder, part i at most `FULL` of `room[i]`.

    What is beyond that goes to the other parts, the same to each. Where all are full, parts may take all of their room.
    Reference: `calc_growth_redistribution` of the authors' code.
    """
    most = [int(FULL * places) for places in room]
    most = most if sum(most) >= total else list(room)
    whole = math.fsum(weights)
    part = [total * (w / whole if 0 < whole < math.inf else 1 / len(room)) for w in weights]
    for _ in room:  # each round fills a part, or is the last that changes any
        part = [min(p, m) for p, m in zip(part, most, strict=True)]
        free = [i for i, m in enumerate(most) if part[i] < m]
        left = total - math.fsum(part)
        for i in free:
            part[i] += left / len(free)
    count = [math.floor(min(p, m)) for p, m in zip(part, most, strict=True)]
    free = [i for i, m in enumerate(most) if count[i] < m]
    for i in sorted(free, key=lambda i: count[i] - part[i])[: total - sum(count)]:
        count[i] += 1
    return count
