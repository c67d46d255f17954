"""Low rank by LinBreg: the nuclear norm as regulariser, by the singular values of every weight matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dstbench.methods.bregman import LinBreg
from dstbench.methods.checks import valid
from dstbench.methods.mirror import MirrorDescent
from dstbench.methods.regularizers import Regularizer
from dstbench.suite.layer import Layer
from dstbench.suite.method import Gradients


@dataclass(frozen=True)
class Nuclear(Regularizer):
    """J(w) = sum of the singular values of the weight as a matrix, (outputs, all that feeds one output)."""

    def prox(self, layer: Layer, values: Tensor, lam: float) -> Tensor:
        u, s, vh = torch.linalg.svd(_matrix(layer, values), full_matrices=False)
        return ((u * (s - lam).clamp_min(0)) @ vh).view_as(values)

    def subgradient(self, layer: Layer, weight: Tensor) -> Tensor:
        u, s, vh = torch.linalg.svd(_matrix(layer, weight), full_matrices=False)
        real = s > _rounding(s, _matrix(layer, weight))
        return (u[:, real] @ vh[real]).view_as(weight)


def _matrix(layer: Layer, values: Tensor) -> Tensor:
    return values.reshape(layer.shape[0], -1)


def rank(layer: Layer, values: Tensor) -> int:
    """The number of singular values that are not zero to rounding."""
    s = torch.linalg.svdvals(_matrix(layer, values))
    return int((s > _rounding(s, _matrix(layer, values))).count_nonzero())


def _rounding(s: Tensor, matrix: Tensor) -> Tensor:
    return s.max() * max(matrix.shape) * torch.finfo(s.dtype).eps


@dataclass
class NuclearLinBreg(LinBreg):
    """LinBreg with the nuclear norm: the singular values of a dual, less lambda, are those of its weight matrix.

    So the rank of every Layer grows, one singular value after the other, as entries do under l1. The start is the share
    `start` of the initial singular values, at least one, scaled to the norm that all had. A Conv2d is a matrix of its
    filters. lambda is `lam`, and the ranks are what they will be (`ranks`); no entry is zero, so that sparsity does not
    apply, and one run serves every level.

    Passes: read all weights and compute every gradient, in every step.
    FLOPs: 3 f_D a step in our count, which knows entries and not factors; a matrix of n x m and rank r could be applied
        for r (n + m) / (n m) of that. The decomposition of every matrix in each step is `charge`d, 6 n m^2 + 20 m^3 for
        n >= m (Golub & Van Loan, section 8.6), and 2 n m^2 for putting it together again.
    Defaults: `lam` 1 and `start` 0.05 are ours: on digits/mlp ranks end at 16 of 64, 12 of 100 and 9 of 10. Learning
        rate, momentum and weight decay are LinBreg's.
    Ambiguous: the papers name low rank as a case of their framework (regularisers by layer) and train none here.
    Reference: Bungert et al., arXiv 2105.04319, algorithm 1 with the proximal map of Cai et al., arXiv 0810.3286.
    """

    lam: float = 1.0
    start: float = 0.05
    control: ClassVar[str] = "fixed"  # type: ignore[misc]
    regularizer: ClassVar[str] = "l1"  # type: ignore[misc]
    scope: ClassVar[str] = "global"  # type: ignore[misc]
    allocation: ClassVar[str] = "uniform"  # type: ignore[misc]
    init: ClassVar[str] = "dense"  # type: ignore[misc]
    start_density: ClassVar[float] = 0.0  # type: ignore[misc]
    ramp: ClassVar[float] = 0.0  # type: ignore[misc]
    repair: ClassVar[bool] = False  # type: ignore[misc]

    name: ClassVar[str] = "nuclear_linbreg"
    sparse: ClassVar[bool] = False
    keeps: ClassVar[Mapping[str, str]] = {}
    grown: ClassVar[str] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, start=(0, 1))

    def make_optimizer(self, groups: list[dict[str, Any]]) -> MirrorDescent:
        decay = self.recipe.weight_decay[self.kind]
        return MirrorDescent(
            groups, self.layers, self.direction(), Nuclear(), lam=self.lam, delta=self.delta, weight_decay=decay
        )

    def setup(self, gradients: Gradients) -> None:
        for layer in self.layers:
            u, s, vh = torch.linalg.svd(_matrix(layer, layer.weight), full_matrices=False)
            kept = s.masked_fill(torch.arange(len(s), device=s.device) >= max(1, round(self.start * len(s))), 0)
            layer.assign(((u * kept) @ vh).view(layer.shape) * (s.norm() / kept.norm().clamp_min(1e-30)))

    def begin(self, t: int) -> None:
        """All is read, in every step."""

    def step(self, t: int) -> None:
        self.optimizer.step()
        for layer in self.layers:
            m, n = sorted((layer.shape[0], layer.numel // layer.shape[0]))
            self.charge(6 * n * m**2 + 20 * m**3 + 2 * n * m**2)

    def ranks(self) -> dict[str, int]:
        """The rank of every Layer's weight matrix, by name."""
        return {layer.name: rank(layer, layer.weight) for layer in self.layers}
