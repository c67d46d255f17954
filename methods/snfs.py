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


@dataclass
class SNFS(SET):
    """SET that grows where the momentum, which is dense, is largest, and shares growth among Layers by it.

    Every update drops the share `alpha` (falling to `floor`) of each Layer, all but its largest weight at most. As many
    weights as went in all Layers together are shared out in proportion to the mean |momentum| of each Layer's weights,
    no more to a Layer than it has free places. Only weights on the mask move.
    Passes: every pass reads the mask and computes the dense gradient.
    FLOPs: 2 f_S + f_D every step.
    Defaults: `alpha` 0.5, `floor` 0.005 and a cosine over the whole run from the authors' code; `period` (theirs is an
        epoch) and `init` from this suite's fairness rules; erk as RigL's paper runs SNFS.
    Ambiguous: the mean is over the weights before any is dropped. What exceeds a Layer's places is shared again among
        the others in the same proportion; equally where no momentum is left. The code follows its target density by a
        controller; here counts are exact. Newly grown weights keep their momentum (the code dropped its reset). Under
        AdamW the first moment is the momentum. The optimiser steps, then comes the update (`after_step`).
    Reference: Dettmers & Zettlemoyer, arXiv 1907.04840, section 3.
    """

    alpha: float = 0.5
    stop: float = 1.0
    floor: float = 0.005
    after_step: bool = True

    name: ClassVar[str] = "snfs"
    citation: ClassVar[str] = "Dettmers & Zettlemoyer 2019, arXiv 1907.04840"
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
        keep = [max(1, layer.nnz() - int(self.fraction(t) * layer.nnz())) for layer in self.layers]
        dropped = sum(layer.nnz() for layer in self.layers) - sum(keep)
        room = [layer.numel - kept for layer, kept in zip(self.layers, keep, strict=True)]
        for layer, k, more in zip(self.layers, keep, shares(dropped, worth, room), strict=True):
            layer.forward_mask = grow(top(magnitude(layer), k), self.growth(layer), more)
        self.project()

    def growth(self, layer: Layer) -> Tensor:
        return momentum(layer)


def shares(total: int, weights: Sequence[float], room: Sequence[int]) -> list[int]:
    """`total` in whole parts proportional to `weights`, by largest remainder, part i at most `room[i]`.

    What is beyond a part's room goes to the others, in proportion to their weights, or equally where those are zero.
    """
    part, left, free = [0] * len(room), total, list(range(len(room)))
    while True:
        whole = math.fsum(weights[i] for i in free)
        ideal = {i: left * (weights[i] / whole if 0 < whole < math.inf else 1 / len(free)) for i in free}
        full = [i for i in free if ideal[i] >= room[i]]
        if not full:
            break
        for i in full:
            part[i], left = room[i], left - room[i]
        free = [i for i in free if i not in full]
    for i in free:
        part[i] = math.floor(ideal[i])
    for i in sorted(free, key=lambda i: part[i] - ideal[i])[: total - sum(part)]:
        part[i] += 1
    return part
