"""Regularisers of Bregman methods: sums of weighted group norms, by what they do to the entries of one Layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dstbench.methods.allocate import begin_sparse, counts, random_mask, start
from dstbench.suite import groups
from dstbench.suite.layer import Layer

REGULARIZERS = {
    "l1": "entries",
    "row": "rows",
    "kernel": "kernels",
    "head": "heads",
    "block2": "blocks2",
    "block4": "blocks4",
    "block8": "blocks8",
}


@dataclass(frozen=True)
class Regularizer:
    """J(w) = sum over groups G of sqrt(|G|) ||w_G||: l1 for groups of one entry, l1,2 for all others.

    Everything is said in terms of a group's score ||w_G|| / sqrt(|G|): the prox makes a group zero exactly where its
    score is at most lambda. Tensors come and go as stored, those of `score` and `prox` also dense.
    Reference: Bungert et al., arXiv 2105.04319, section 2 and the authors' code.
    """

    name: str = "l1"

    @property
    def groups(self) -> str:
        """The kind of groups, in the words of `dstbench.suite.groups`."""
        return REGULARIZERS[self.name]

    def size(self, layer: Layer) -> int:
        """Entries of one group."""
        return groups.size(layer, self.groups)

    def score(self, layer: Layer, values: Tensor) -> Tensor:
        """The score of each group, (number of groups,)."""
        norms = groups.norms(layer, values, self.groups)
        number = self.size(layer)
        return norms if number == 1 else norms / math.sqrt(number)

    def subgradient(self, layer: Layer, weight: Tensor) -> Tensor:
        """The subgradient of J that is zero where the weight is: sign(w), or sqrt(|G|) w / ||w_G||."""
        if self.size(layer) == 1:
            return weight.sign()
        score = groups.spread(layer, self.score(layer, weight), self.groups)
        return torch.where(score > 0, weight / score, 0.0)

    def prox(self, layer: Layer, values: Tensor, lam: float) -> Tensor:
        """The proximal map of lam J: soft thresholding, by entry or by group."""
        if self.size(layer) == 1:
            return nn.functional.softshrink(values, lam)
        score = self.score(layer, values)
        factor = torch.where(score > lam, (score - lam) / score, 0.0)
        dense = values.shape == layer.shape
        return values * (groups.spread_dense if dense else groups.spread)(layer, factor, self.groups)

    def support(self, layer: Layer, weight: Tensor) -> Tensor:
        """Bool, shape of the weight, which comes dense: the groups that are not zero, as wholes."""
        if self.size(layer) == 1:
            return weight != 0
        return groups.spread_dense(layer, groups.arranged(layer, weight != 0, self.groups).any(1), self.groups)


class _Groups(NamedTuple):
    """The groups of a Layer, as things to allocate."""

    name: str
    shape: tuple[int]
    numel: int


def sparse_start(
    layers: Sequence[Layer], densities: Mapping[str, float], rng: torch.Generator, init: str, rule: Regularizer
) -> None:
    """`dstbench.methods.allocate.start` by whole groups: exact counts of them, at least one in every Layer.

    Reference: Bungert et al., arXiv 2105.04319, section 3.2 (variance-preserving sparse initialisation).
    """
    if rule.name == "l1":
        return start(layers, densities, rng, init)
    units = [_Groups(y.name, (y.numel // rule.size(y),), y.numel // rule.size(y)) for y in layers]
    number = counts(units, densities)
    drawn = [random_mask(unit.shape, number[unit.name], rng) for unit in units]
    spread = [groups.spread_dense(layer, mask, rule.groups) for layer, mask in zip(layers, drawn, strict=True)]
    begin_sparse(layers, spread, init, random=True)
