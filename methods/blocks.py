"""RigL in blocks: weights come and go r outputs at a time, as the sparse kernel takes them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from dstbench.methods.allocate import allocate, top
from dstbench.methods.dynamic import RigL, grow
from dstbench.methods.regularizers import Regularizer, sparse_start
from dstbench.suite import groups
from dstbench.suite.method import Gradients


@dataclass
class BlockRigL(RigL):
    """RigL whose unit is a block of `height` (2, 4 or 8) consecutive outputs that read the same input.

    A block stays by the norm of its weights, and grows by that of its gradients. A Layer whose number of outputs is no
    multiple of `height` has blocks of half that, and so on. The place of an input in a kernel of a Conv2d counts as an
    input of its own.

    Passes: as RigL, in whole blocks.
    FLOPs: as RigL.
    Defaults: RigL's; `height` 8 is the fastest route of the kernel `sparse` for Linear.
    Ambiguous: block-sparse training has been published with other shapes of blocks, square ones foremost; ours is what
        the kernel multiplies. Densities are allotted in blocks, counts of them are exact.
    Reference: Evci et al., arXiv 1911.11134, algorithm 1, applied to the blocks of Hoefler et al., arXiv 2102.00554,
        section 2.3.
    """

    height: int = 8

    name: ClassVar[str] = "block_rigl"
    family: ClassVar[str] = "structured"
    citation: ClassVar[str] = "Evci et al., ICML 2020, arXiv 1911.11134; Hoefler et al., JMLR 2021, arXiv 2102.00554"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.height not in (2, 4, 8):
            raise ValueError(f"block_rigl: height is {self.height}; give 2, 4 or 8 outputs")

    @property
    def rule(self) -> Regularizer:
        """The kind of blocks, as a regulariser knows it."""
        return Regularizer(f"block{self.height}")

    @property
    def grain(self) -> int:
        return max(self.rule.size(layer) for layer in self.layers)

    def setup(self, gradients: Gradients) -> None:
        densities = allocate(self.allocation, self.layers, 1 - self.sparsity)
        sparse_start(self.layers, densities, self.rng, self.init, self.rule)

    def begin(self, t: int) -> None:
        if self.due(t):
            for layer in self.layers:
                layer.grad_mask = None  # blocks are ranked by all of their gradients

    def update(self, t: int) -> None:
        rule = self.rule
        for layer in self.layers:
            assert layer.forward_mask is not None, "masks are set in setup"
            active = groups.arranged(layer, layer.forward_mask, rule.groups).any(1)
            number = int(active.count_nonzero())
            moved = self.moved(t, number)
            kept = top(rule.score(layer, layer.weight).masked_fill(~active, -math.inf), number - moved)
            chosen = grow(kept, rule.score(layer, layer.grad), moved)
            layer.activate(groups.spread_dense(layer, chosen, rule.groups))
            layer.zero_grad()
