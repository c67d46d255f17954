"""Static sparse training: random masks, drawn once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from methods.allocate import ALLOCATIONS, INITS, allocate, start
from methods.checks import choose
from suite.method import Gradients, Method


@dataclass
class Static(Method):
    """Random masks of exact count, densities by `allocation`: erk, uniform or uniform_rigl; never changed.

    `init` is "sparse", kept initial weights scaled by 1/sqrt(density of the Layer), or "dense", unscaled.
    Reference: Liu et al., arXiv 2202.02643.
    """

    allocation: str = "erk"
    init: str = "sparse"

    name: ClassVar[str] = "static"
    family: ClassVar[str] = "static"
    citation: ClassVar[str] = "Liu et al., ICLR 2022, arXiv 2202.02643"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose(f"{self.name}: allocation", self.allocation, ALLOCATIONS)
        choose(f"{self.name}: init", self.init, INITS)

    def setup(self, gradients: Gradients) -> None:
        start(self.layers, allocate(self.allocation, self.layers, 1 - self.sparsity), self.rng, self.init)
