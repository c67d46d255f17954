"""CHT, Cannistraci-Hebb training: what grows is told by the topology of the mask alone, without a gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from methods.allocate import allocate, counts, start, top
from methods.checks import valid
from methods.dynamic import SET, grow
from suite.layer import Layer
from suite.method import Gradients

FLOOR = 1e-5  # the score of a pair that no path of three links joins, where such must grow
HOTTEST = 3.0  # the last exponent of soft removal; the first is 1
STEEPNESS = 6.0  # of the sigmoid along which the density falls


def paths(mask: Tensor, squared: bool) -> Tensor:
    """The CH2-L3 (or, not `squared`, CH3-L3) score of each pair of an output and an input, (outputs, inputs) floats.

    A pair is scored by its paths of three links. Another output o that shares c inputs with the output, and reads e
    others, counts c / (1 + e') for each input that it reads, or 1 / (1 + e'), e' = max(e - 1, 0); inputs alike.
    Reference: code of arXiv 2501.19107 (CH2_L3n, CH3_L3n).
    """
    links = mask.float()

    def side(a: Tensor) -> Tensor:
        common = a @ a.T
        apart = (a.sum(1) - common - 1).clamp_min(0)
        return ((common if squared else (common > 0).float()) / (1 + apart)) @ a

    return side(links) + side(links.T).T


def sample(weights: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """A mask of `count` entries drawn without replacement with odds in proportion to `weights`; zeros come last.

    The largest of log(weight) plus a Gumbel variable each.
    """
    uniform = torch.rand(weights.shape, generator=rng).to(weights.device).clamp_min(torch.finfo(torch.float32).tiny)
    return top(weights.double().log() - (-uniform.double().log()).log(), count)


@dataclass
class CHT(SET):
    """SET that grows where the mask, as a bipartite graph, has most and most exclusive paths of three links.

    With `soft`, weights that stay are drawn with odds |w|^T, T rising from 1 to 3, and those that grow with odds in
    proportion to their scores; else the largest are taken. `score` is "ch2" or "ch3". With `start_density` above 0 the
    density falls from there to the target, along a sigmoid that ends at the last update; what goes for that is what is
    least important among its row and its column. A Layer's graph joins outputs to all that feeds one output.

    Passes: every pass reads the mask and computes the gradient on it alone.
    FLOPs: 3 f_S a step at the density of that step; an update costs 4 n m (n + m) for a Layer of n outputs and m
        inputs, which the authors do not charge and we do (`charge`).
    Defaults: `alpha` 0.3 and its cosine from RigL, as in the code's `adaptive_zeta`; ch3 with top-k for CHT, ch2 and
        soft for CHTs, `start_density` 0.5 for CHTss; `period` and `init` from this suite's fairness rules.
    Ambiguous: CHT scores single paths by a program of its own (CH3-L3p): here both presets score by nodes, in matrix
        products, as its successors do. Neurons without a link on one side lose those on the other in the code (chain
        removal): methods do not know here which Layers follow each other. Masks begin random (the papers: also by
        models of real networks), densities by erk (the papers: uniform). Pairs without paths grow at random after the
        others. Attention heads are not separated.
    Reference: Zhang et al., ICLR 2024, openreview iayEcORsGd; arXiv 2501.19107 and its code.
    """

    soft: bool = False
    score: str = "ch3"
    start_density: float = 0.0

    name: ClassVar[str] = "cht"
    citation: ClassVar[str] = "Zhang et al., ICLR 2024; Zhang et al., arXiv 2501.19107"

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, score=("ch2", "ch3"), start_density=(0, 1))

    def density(self, t: int) -> float:
        """The density after the update of step t."""
        target, begin = 1 - self.sparsity, max(self.start_density, 1 - self.sparsity)
        period = self.period or self.recipe.period
        last = (math.ceil(self.stop * self.recipe.steps) - 1) // period * period
        if not self.start_density or t >= last:
            return target
        low, now, high = (1 / (1 + math.exp(-STEEPNESS * (x - 0.5))) for x in (0, t / last, 1))
        return begin + (target - begin) * (now - low) / (high - low)

    def number(self, t: int) -> dict[str, int]:
        """Active weights of every Layer after the update of step t."""
        return counts(self.layers, allocate(self.allocation, self.layers, self.density(t)))

    def setup(self, gradients: Gradients) -> None:
        start(self.layers, allocate(self.allocation, self.layers, self.density(0)), self.rng, self.init)

    def update(self, t: int) -> None:
        number = self.number(t)
        for layer in self.layers:
            wanted = number[layer.name]
            if wanted < layer.nnz():
                layer.activate(top(importance(layer), wanted))
            moved = int(self.fraction(t) * layer.nnz())
            kept = self.keep(layer, wanted - moved, t)
            layer.activate(kept)
            layer.activate(kept | self.choose(kept, moved))
            layer.zero_grad()
            n, m = rows(kept).shape
            self.charge(4 * n * m * (n + m))

    def keep(self, layer: Layer, count: int, t: int) -> Tensor:
        """What stays of the active weights."""
        size = layer.weight.abs().masked_fill(off(layer), 0)
        if not self.soft:
            return top(size.masked_fill(off(layer), -1), count)
        heat = 1 + (HOTTEST - 1) * min(1.0, t / (self.stop * self.recipe.steps))
        tiny = torch.finfo(size.dtype).tiny ** (1 / HOTTEST)  # active zeros before all that is not active
        return sample(size.clamp_min(tiny).pow(heat).masked_fill(off(layer), 0), count, self.rng)

    def choose(self, kept: Tensor, count: int) -> Tensor:
        """What grows beside `kept`."""
        score = paths(rows(kept), self.score == "ch2").view(kept.shape).masked_fill(kept, 0)
        noise = torch.rand(kept.shape, generator=self.rng).to(kept.device)
        if self.soft:
            lacking = int((score > 0).count_nonzero()) < count
            return sample((score + FLOOR if lacking else score).masked_fill(kept, 0), count, self.rng)
        return grow(kept, torch.where(score > 0, 1 + score, noise), count) & ~kept


def rows(mask: Tensor) -> Tensor:
    """A mask as (outputs, all that feeds one output)."""
    return mask.reshape(mask.shape[0], -1)


def off(layer: Layer) -> Tensor:
    """A bool mask of what passes do not read."""
    assert layer.forward_mask is not None, "masks are set in setup"
    return ~layer.forward_mask


def importance(layer: Layer) -> Tensor:
    """|w| over the sum of its column plus |w| over that of its row; -infinity off the mask.

    Reference: relative importance, arXiv 2501.19107.
    """
    size = rows(layer.weight.abs())
    shares = size / size.sum(0).clamp_min(1e-30) + size / size.sum(1, keepdim=True).clamp_min(1e-30)
    return shares.view(layer.shape).masked_fill(off(layer), -math.inf)
