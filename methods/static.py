"""Static sparse training: random masks, drawn once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dstbench.methods.allocate import ALLOCATIONS, INITS, allocate, start
from dstbench.methods.checks import valid
from dstbench.suite.method import Gradients, Method


@dataclass
class Static(Method):
    """Random masks of exact count, densities by `allocation`: erk, erk_plus, uniform or uniform_rigl; never changed.

    `init` is "sparse", kept initial weights scaled by 1/sqrt(density of the Layer), or "dense", unscaled.

    Passes: all read the mask and compute the gradient on it.
    FLOPs: 3 f_S a step, and so in our count.
    Defaults: `allocation` and `init` are this suite's for all random starts; erk_plus is an allocation of the paper's.
    Ambiguous: the scale is by the density of the Layer, as in RigL's code (`layer_scaled_init`); another scales by that
        of each neuron (arXiv 2010.03533, `unit_scaled_init`).
    Reference: Liu et al., arXiv 2202.02643.
    """

    allocation: str = "erk"
    init: str = "sparse"

    name: ClassVar[str] = "static"
    family: ClassVar[str] = "static"
    citation: ClassVar[str] = "Liu et al., ICLR 2022, arXiv 2202.02643"

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, allocation=ALLOCATIONS, init=INITS)

    def setup(self, gradients: Gradients) -> None:
        start(self.layers, allocate(self.allocation, self.layers, 1 - self.sparsity), self.rng, self.init)
