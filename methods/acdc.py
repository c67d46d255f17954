"""AC/DC: dense and sparse phases take turns."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import ClassVar

from dstbench.methods.allocate import uniform
from dstbench.methods.checks import valid
from dstbench.methods.magnitude import SCOPES, prune
from dstbench.suite.method import Method


@dataclass
class ACDC(Method):
    """Compresses to the largest weights and decompresses to all of them in turn, and ends compressed.

    All is dense up to the share `warmup` of the run. Then sparse and dense phases take turns, a sparse one first and
    last: an odd number of equal ones, as near in length to the share `phase` as that allows, on short runs fewer. The
    last dense phase runs from `last_start` to `last`, and what is left is sparse. Each compression ranks all weights
    anew, over all Layers together (`scope` "global") or in each of them ("layer"). At a decompression the pruned
    weights start from zero and the optimiser forgets its state.
    Passes: dense phases read and compute everything; sparse ones read the mask and compute the gradient on it alone.
    FLOPs: 3 f_D a step in dense phases, 3 f_S in sparse ones; sorts are charged neither by the paper nor here.
    Defaults: the paper's for ImageNet, 100 epochs: dense 0-10, phases of 5 epochs, last dense phase 75-85. Its variant
        for CIFAR-100, 200 epochs, is warmup 0.05, phase 0.1, last_start 0.75, last 0.85: dense 0-10, phases of 20
        epochs, sparse from 170. Learning rate and its schedule are the recipe's and run on over all phases.
    Ambiguous: momentum is reset at decompressions alone, as in the code; at a compression kept weights keep theirs. A
        phase that rounds to no step is left out.
    Reference: Peste et al., arXiv 2106.12379, algorithm 1, and its code.
    """

    warmup: float = 0.1
    phase: float = 0.05
    last_start: float = 0.75
    last: float = 0.85
    scope: str = "global"

    name: ClassVar[str] = "acdc"
    family: ClassVar[str] = "dynamic"
    citation: ClassVar[str] = "Peste et al., NeurIPS 2021, arXiv 2106.12379"

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, last=(0, 1), last_start=(0, self.last), warmup=(0, self.last_start), phase=(1e-4, 1), scope=SCOPES)

    @property
    def starts(self) -> list[int]:
        """The first step of every phase, dense and sparse in turn, from dense to sparse; equal ones: an empty phase."""
        steps = self.recipe.steps
        warm, last_dense, last = (
            min(round(share * steps), steps - 1) for share in (self.warmup, self.last_start, self.last)
        )
        return [0, *turns(warm, last_dense, self.phase * steps), last_dense, last]

    def dense(self, t: int) -> bool:
        """Whether step t is in a dense phase."""
        return bisect_right(self.starts, t) % 2 == 1

    def begin(self, t: int) -> None:
        dense = self.dense(t)
        if dense == (self.layers[0].forward_mask is None):
            return
        if not dense:
            return prune(self.layers, uniform(self.layers, 1 - self.sparsity), self.scope)
        for layer in self.layers:
            layer.forward_mask = layer.grad_mask = None
        self.restart()


def turns(begin: int, end: int, length: float) -> list[int]:
    """The first steps of an odd number of equal phases, as near to `length` steps as that allows, of one at least."""
    span = end - begin
    number = 2 * int(max(min(span / length, span - 1), 0) // 2) + 1
    return [begin + round(i * span / number) for i in range(number)]
