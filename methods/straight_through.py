"""Straight-through training: passes read the largest weights, the gradient moves all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dstbench.methods.allocate import ALLOCATIONS, allocate
from dstbench.methods.checks import valid
from dstbench.methods.magnitude import SCOPES, largest
from dstbench.methods.schedules import cubic
from dstbench.suite.method import Gradients, Method


@dataclass
class STE(Method):
    """Every pass reads the largest of the dense weights, chosen anew at every step; the gradient moves all weights.

    The number read falls cubically between the shares `start` and `stop` of the run; with both 0 it is on target from
    the first pass on. `scope` "layer" ranks each Layer by itself, with densities by `allocation` (erk, erk_plus,
    uniform or uniform_rigl), "global" all together and leaves `allocation` unused. What the last step leaves unread is
    no part of the model.
    Passes: every pass reads the mask and computes the dense gradient.
    FLOPs: 2 f_S + f_D every step, f_S that of the step; counted the same here. Choosing the mask is not charged.
    Defaults: `scope` and erk as in JaxPruner's published runs. Ranked globally at high sparsity, Layers that are rarely
        read starve while unread weights of others grow without bound: digits/resnet does not train at 98 %. The curve
        and its window are the suite's for gradual pruning, as in `magnitude`; the start is dense and needs no scaling.
    Ambiguous: the published settings have one window of updates, steps 10 000 to 20 000, for all of JaxPruner's
        methods; whether sparsity rises in it with a straight-through gradient is open. The mask is chosen after the
        step, so that an evaluation reads the largest weights as they are; passes read what they would if it were chosen
        before them. Weight decay acts on all weights. Among ties the first in memory order is read.
    Reference: Lee et al., arXiv 2304.14082 (JaxPruner), magnitude pruning with a straight-through gradient.
    """

    scope: str = "layer"
    allocation: str = "erk"
    start: float = 0.1
    stop: float = 0.75

    name: ClassVar[str] = "ste"
    family: ClassVar[str] = "dense-to-sparse"
    citation: ClassVar[str] = "Lee et al., 2023 (JaxPruner), arXiv 2304.14082"
    grown: ClassVar[str] = "at its own value: weights that no pass reads keep learning"

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, scope=SCOPES, allocation=ALLOCATIONS, stop=(0, 1), start=(0, self.stop))

    def setup(self, gradients: Gradients) -> None:
        self.declare(0)

    def step(self, t: int) -> None:
        super().step(t)
        self.declare(t + 1)

    def declare(self, t: int) -> None:
        """The pass of step t reads the largest weights."""
        first, last = (int(share * (self.recipe.steps - 1)) for share in (self.start, self.stop))
        densities = allocate(self.allocation, self.layers, 1 - self.sparsity)
        sizes = [layer.weight.abs() for layer in self.layers]
        masks = largest(self.layers, sizes, densities, self.scope, cubic(t, first, last))
        for layer, mask in zip(self.layers, masks, strict=True):
            layer.forward_mask = mask

    def finish(self) -> None:
        """What no pass reads is no part of the model."""
        for layer in self.layers:
            layer.grad_mask = layer.forward_mask
