"""CHT, Cannistraci-Hebb training: where to grow is told by the mask alone, as a bipartite graph, without a gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dstbench.methods.allocate import Densities, active, allocate, counts, start, top
from dstbench.methods.bipartite import SCORES, chains, link_scores, unlink
from dstbench.methods.checks import valid
from dstbench.methods.dynamic import SET
from dstbench.methods.scores import magnitude
from dstbench.suite.layer import Layer
from dstbench.suite.method import Gradients

TINY = 1e-12  # the least magnitude that is drawn by
FLOOR = 1e-5  # added to all scores where too few are above zero
STEEPNESS = 6.0  # of the sigmoid along which the density falls
SILENT = 1e-5  # added to the sums of magnitudes that a weight is compared with


@dataclass
class CHT(SET):
    """SET that grows where paths of three links join an output to an input and lead nowhere else, by CH scores.

    A Layer's graph has its outputs on one side, all that feeds one output on the other (of a Conv2d the (input, kernel
    place) pairs), and its mask for links. With `soft`, weights stay by chance, with odds score^T, T rising from 1 to
    `heat`, and grow by chance, with odds in proportion to `score`; without, the best do, ties at random. `importance`
    is by what they stay: "magnitude", or "ri", its share of its row's plus that of its column's. Where no path leads
    they grow at random, last. A Layer more than `overlap` of whose growth has just been dropped keeps its mask for
    good. In a plain stack of Linears, neurons without a link on one side lose those on the other before growth fills
    the Layer up. With `start_density` above the target the density falls along a sigmoid, reaches the target at
    `stop`, and each update first prunes to it by "ri".
    Passes: every pass reads the mask and computes the gradient on it alone.
    FLOPs: 3 f_S a step; the authors charge nothing for scores, we do (`charge`), for n outputs, m inputs, k links: the
        products 2 n m (n + m) for common neighbours, and as much again by node (l3n), 2 n m k by path (l3p).
    Defaults: `alpha` 0.3, cosine to 0.75 of the run, `overlap` 0.9, ch3_l3p and chain removal from the codes for MLPs;
        soft, ch2_l3n and T to 9 for CHTs, `start_density` 0.5 and steepness 6 for CHTss from the code for LLaMA (there
        `alpha` 0.1, density falling to 0.8 of the run; here to `stop`); `period`, `init` and erk from this suite.
    Ambiguous: the papers start from correlated or brain-like masks, and uniform densities: here random, erk. Early stop
        is by Layer; the code goes on until all signal it. The LLaMA code takes the best also where it is called soft;
        here it draws, as in the code for MLPs. Chains are known only in an nn.Sequential of Linears and elementwise
        modules; elsewhere none is removed. A Conv2d is our extension; its groups are not kept apart. Queries, keys and
        values are a graph a head, as in the code, but share one count of weights.
    Reference: Zhang et al., ICLR 2024 (openreview iayEcORsGd); CHTs, CHTss: arXiv 2501.19107; their codes.
    """

    score: str = "ch3_l3p"
    importance: str = "magnitude"
    soft: bool = False
    heat: float = 9.0
    overlap: float = 0.9
    start_density: float = 0.0

    name: ClassVar[str] = "cht"
    citation: ClassVar[str] = "Zhang et al., ICLR 2024; Zhang et al., NeurIPS 2025, arXiv 2501.19107"

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, score=SCORES, importance=IMPORTANCE, heat=(1, math.inf), overlap=(0, 1), start_density=(0, 1))

    @property
    def end(self) -> int:
        """The step at which a falling density has reached the target."""
        return int(self.stop * (self.recipe.steps - 1))

    def densities(self, t: int) -> Densities:
        """Of every Layer after an update at step t."""
        target = 1 - self.sparsity
        above = max(0.0, self.start_density - target) * (1 - sigmoid(t, self.end))
        return allocate(self.allocation, self.layers, target + above)

    def setup(self, gradients: Gradients) -> None:
        start(self.layers, self.densities(0), self.rng, self.init)
        self.memory["settled"] = torch.zeros(len(self.layers), dtype=torch.bool)

    def due(self, t: int) -> bool:
        return super().due(t) or (self.start_density > 1 - self.sparsity and t + self.after_step == self.end)

    def update(self, t: int) -> None:
        number, settled = counts(self.layers, self.densities(t)), self.memory["settled"].tolist()
        for layer in self.layers:
            if layer.nnz() > number[layer.name]:
                layer.activate(top(relative(layer), number[layer.name]))
        stay = {layer: self.keep(layer, t) for layer in self.layers}
        unlink(chains(self.model.net, self.layers), stay)
        for i, layer in enumerate(self.layers):
            kept = active(layer) if settled[i] else stay[layer]
            grown = self.grow(kept, number[layer.name] - int(kept.count_nonzero()), graphs(layer))
            back, new = int((grown & active(layer)).count_nonzero()), int(grown.count_nonzero())
            self.memory["settled"][i] |= back > self.overlap * new
            layer.activate(kept | grown)
            layer.zero_grad()

    def keep(self, layer: Layer, t: int) -> Tensor:
        """Which active weights of a Layer stay, a bool mask."""
        score, count = IMPORTANCE[self.importance](layer), layer.nnz() - self.moved(t, layer.nnz())
        if not self.soft:
            return top(score, count)
        heat = 1 + (self.heat - 1) * min(1.0, t / max(1, self.end))
        return draw((heat * score.clamp_min(TINY).log()).masked_fill(~active(layer), -math.inf), count, self.rng)

    def grow(self, kept: Tensor, count: int, parts: int = 1) -> Tensor:
        """The `count` entries that grow beside `kept`, a bool mask whose rows are those of as many graphs."""
        free = kept.numel() - int(kept.count_nonzero())
        if count in (0, free):
            return ~kept if count else torch.zeros_like(kept)
        scores, flops = zip(*(link_scores(graph, self.score) for graph in kept.flatten(1).chunk(parts)), strict=True)
        self.charge(sum(flops))
        score = torch.cat(scores).view(kept.shape).masked_fill(kept, 0)
        if not self.soft:
            return shuffled_top(score.masked_fill(kept, -math.inf), count, self.rng)
        lacking = int(score.count_nonzero()) < count
        return draw((score + FLOOR * lacking).masked_fill(kept, 0).log(), count, self.rng)


def graphs(layer: Layer) -> int:
    """How many graphs the rows of a Layer are: of queries, keys and values, which its heads split, each head is one."""
    return math.prod(layer.heads[:2]) if layer.heads and layer.heads[0] < layer.shape[0] else 1


def relative(layer: Layer) -> Tensor:
    """Relative importance: |w| over the sum of its row plus |w| over that of its column; -infinity off the mask.

    Reference: arXiv 2501.19107.
    """
    size = layer.weight.abs().flatten(1)
    share = size / (size.sum(0) + SILENT) + size / (size.sum(1, keepdim=True) + SILENT)
    return share.view(layer.shape).masked_fill(~active(layer), -math.inf)


IMPORTANCE = {"magnitude": magnitude, "ri": relative}


def draw(log_odds: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """A mask of `count` entries drawn one by one, without replacement, with these odds: the Gumbel trick."""
    uniform = torch.rand(log_odds.shape, generator=rng, dtype=torch.float64).clamp_min(1e-300)
    return top(log_odds.double() - (-uniform.log()).log().to(log_odds.device), count)


def shuffled_top(score: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """A mask of the `count` largest scores, ties broken at random."""
    order = torch.randperm(score.numel(), generator=rng).to(score.device)
    chosen = torch.zeros_like(score, dtype=torch.bool).flatten()
    chosen[order] = top(score.flatten()[order], count)
    return chosen.view(score.shape)


def sigmoid(t: int, end: int) -> float:
    """The share of the way at step t, from 0 at t = 0 to 1 at `end`, slow at both ends: a logistic curve, rescaled."""
    share = 1.0 if t >= end else t / end
    return math.tanh(STEEPNESS * (share - 0.5)) / math.tanh(STEEPNESS / 2) / 2 + 0.5
