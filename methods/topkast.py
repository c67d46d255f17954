"""Top-KAST: passes read the largest weights, and the gradient moves some more, which may come to be read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from dstbench.methods.allocate import ALLOCATIONS, INITS, allocate, begin_sparse, counts, top
from dstbench.methods.checks import valid
from dstbench.methods.schedules import due
from dstbench.suite.method import Gradients, Method


@dataclass
class TopKAST(Method):
    """Passes read A, the largest weights of every Layer; the gradient moves B, which has `extra` times as many more.

    Both sets are drawn anew every `period` steps (0: the recipe's) from all weights of the Layer, by magnitude. Weights
    off B keep their values, bit for bit, and may come back. An L2 penalty takes the place of weight decay: `penalty` on
    A, and over the density of the Layer on the rest of B, so that what no pass reads must earn its place. After the
    share `explore` of the run B shrinks to A for good. `init` "sparse" scales all initial weights of a Layer, read or
    not, until the squares of A sum to what those of the whole Layer did; "dense" leaves them as they are. What the run
    leaves unread is no part of the model.
    Passes: every pass reads A and computes the gradient on B.
    FLOPs: f_A forward, f_A for the gradient to the inputs, f_B for that of the weights; counted the same here. Drawing
        the sets is charged neither by the paper nor here.
    Defaults: erk as for the other dynamic methods; the paper's is top-k by Layer at one density, first and last Layer
        dense on ImageNet, which is the task's to say here. `extra` 1: 80 % backward sparsity at 90 % forward. The paper
        goes on to the end, hence `explore` 1; in the code of GSE (arXiv 2401.06898) the sets are drawn anew at every
        step of its first epochs, at intervals after that, and B goes on. `penalty` is a usual L2 coefficient of
        ImageNet recipes. `period` (public codes have 100 and 1000 steps) is from this suite's fairness rules, `init` by
        valid (docs/tuning.md).
    Ambiguous: momentum is held on B alone and starts at zero where B is new. The penalty's gradient, `penalty` times
        the weight on A, joins the loss's after clipping, before momentum or Adam. Once B is A, A stays as it is. Among
        ties the first in memory order is chosen.
    Reference: Jayakumar et al., arXiv 2106.03517, section 2.
    """

    allocation: str = "erk"
    init: str = "dense"
    extra: float = 1.0
    penalty: float = 1e-4
    period: int = 0
    explore: float = 1.0

    name: ClassVar[str] = "topkast"
    family: ClassVar[str] = "dynamic"
    citation: ClassVar[str] = "Jayakumar et al., NeurIPS 2020, arXiv 2106.03517"
    version: ClassVar[int] = 2
    keeps: ClassVar[dict[str, str]] = {"weight": "the values of all weights off B, from which A and B are drawn"}
    grown: ClassVar[str] = "at its own value: moved unread on B, untouched off it"

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(
            self,
            allocation=ALLOCATIONS,
            init=INITS,
            extra=(0, math.inf),
            penalty=(0, math.inf),
            period=(0, math.inf),
            explore=(0, 1),
        )

    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        own = [layer.parameter for layer in self.layers]
        rest = [{**group, "params": [p for p in group["params"] if p not in {*own}]} for group in groups]
        return super().make_optimizer([{"params": own, "weight_decay": 0.0}, *(g for g in rest if g["params"])])

    def setup(self, gradients: Gradients) -> None:
        number = counts(self.layers, allocate(self.allocation, self.layers, 1 - self.sparsity))
        begin_sparse(self.layers, [top(layer.weight.abs(), number[layer.name]) for layer in self.layers], self.init)
        self.refresh()

    def begin(self, t: int) -> None:
        end = round(self.explore * self.recipe.steps)
        if due(t, self.period or self.recipe.period, end):
            self.refresh()
        if t == end:
            for layer in self.layers:
                layer.grad_mask = layer.forward_mask

    def refresh(self) -> None:
        """Draw A and B."""
        for layer in self.layers:
            n, size = layer.nnz(), layer.weight.abs()
            layer.forward_mask = top(size, n)
            layer.grad_mask = top(size, min(layer.numel, n + round(self.extra * n)))

    def step(self, t: int) -> None:
        for layer in self.layers:
            if layer.forward_mask is not None:
                weight = self.penalty * layer.weight
                layer.add_grad(torch.where(layer.forward_mask, weight, weight / layer.density))
        super().step(t)

    def finish(self) -> None:
        """What no pass reads is no part of the model."""
        for layer in self.layers:
            if layer.forward_mask is not None:
                layer.forget(~layer.forward_mask)
            layer.grad_mask = layer.forward_mask
