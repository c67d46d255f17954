"""RMDA, regularised modernised dual averaging: weights follow the prox of a weighted sum of all gradients."""

from __future__ import annotations

import math
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


class DualAveraging(MirrorDescent):
    """w <- (1 - mu) w + mu prox(w_0 - G / c_t), G the sum of lr c_s g_s, c_s = sqrt(s); zero where the prox is.

    The state `start` is w_0, `total` is G; the dual, w_0 - G / c_t, lives within a step.
    Reference: Huang & Lee, arXiv 2112.02612, algorithm 1.
    """

    mu = 1.0

    def update(
        self, layer: Layer | None, weight: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        if "start" not in state:
            state.update(step=0, start=weight.clone(), total=torch.zeros_like(weight))
        state["step"] += 1
        root = math.sqrt(state["step"])
        state["total"].add_(grad.add(weight, alpha=group["weight_decay"]), alpha=group["lr"] * root)
        dual = state["start"] - state["total"] / root
        if layer is None:
            weight.lerp_(dual, self.mu)
        else:
            state["dual"] = dual

    @torch.no_grad()
    def read(self) -> None:
        for layer in self.mirrored():
            proposed = self.regularizer.prox(layer, self.state[layer.parameter].pop("dual"), self.lam[layer])
            weight = layer.parameter.lerp(proposed, self.mu)
            layer.parameter.copy_(torch.where(proposed == 0, 0.0, weight))


@dataclass
class RMDA(LinBreg):
    """LinBreg's sibling: a prox of the starting weights less the average of all gradients, later ones weighing more.

    Weights move the share `mu` of the way to it, and are zero where it is. With control "quantile" lambda is the
    threshold, as the density curve asks for it; with "fixed" it is `lam` times the sum of lr c_s over c_t, so that
    `lam` is the weight of J in the objective. Groups and allocation are as in LinBreg.

    Passes: reads the support and computes the dense gradient, in every step.
    FLOPs: 2 f_S + f_D, LinBreg's.
    Defaults: `mu` 0.1 is ours for short runs (the code: 0.01 at first, raised towards 1); `lam` 1e-4 of the size of the
        paper's; control and its curve, allocation, `init` and learning rate are LinBreg's.
    Ambiguous: the paper's weights are not zero before `mu` has blended the start away; here the support that the prox
        has identified holds at once, so that densities are exact. Its restarts, at drops of the learning rate, are left
        out: this suite's falls along a cosine. Weight decay joins the gradient.
    Reference: Huang & Lee, arXiv 2112.02612, algorithm 1, and its code.
    """

    lam: float = 1e-4
    mu: float = 0.1
    delta: ClassVar[float] = 1.0  # type: ignore[misc]
    momentum: ClassVar[str] = ""  # type: ignore[misc]
    beta: ClassVar[float] = 0.0  # type: ignore[misc]
    repair: ClassVar[bool] = False  # type: ignore[misc]

    name: ClassVar[str] = "rmda"
    citation: ClassVar[str] = "Huang & Lee, ICLR 2022, arXiv 2112.02612"
    keeps: ClassVar[Mapping[str, str]] = {name: "of every weight, zero or not" for name in ("start", "total")}
    grown: ClassVar[str] = "one step off zero: at the share `mu` of what the prox leaves of it"

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, mu=(1e-6, 1), control=("quantile", "fixed"))

    def make_optimizer(self, groups: list[dict[str, Any]]) -> DualAveraging:
        optimizer = DualAveraging(
            groups,
            self.layers,
            regularizer=Regularizer(self.regularizer),
            weight_decay=self.recipe.weight_decay[self.kind],
        )
        optimizer.mu = self.mu
        return optimizer

    def setup(self, gradients: Gradients) -> None:
        super().setup(gradients)
        self.memory["sum"] = torch.zeros((), dtype=torch.float64)

    def begin(self, t: int) -> None:
        super().begin(t)
        self.memory["sum"] += self.lr(t) * math.sqrt(t + 1)
        for layer in self.layers:
            layer.grad_mask = None  # whole: every sum moves, and is read whole
            if self.control == "fixed":
                self.mirror.lam[layer] = self.lam * float(self.memory["sum"]) / math.sqrt(t + 1)
