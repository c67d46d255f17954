"""Controls of the Bregman family: LinBreg without a dual that remembers, ML LinBreg without a mirror step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dstbench.methods.allocate import global_top
from dstbench.methods.bregman import LinBreg, MLLinBreg
from dstbench.methods.mirror import MirrorDescent
from dstbench.methods.regularizers import Regularizer
from dstbench.suite.layer import Layer

# A ClassVar in place of a parent's field takes the hyper-parameter away: to give it is an error, not a silent no-op.


class ProximalGradient(MirrorDescent):
    """Mirror descent that forgets: each step begins from v = theta/delta, and what the prox takes is gone for good.

    theta <- prox of delta lam J at theta - delta (direction + lr mu theta); with lam 0 and delta 1 it is SGD.
    """

    def update(
        self, layer: Layer | None, weight: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        if layer is not None:
            state["dual"] = weight / self.delta
        super().update(layer, weight, grad, state, group)

    def read(self) -> None:
        super().read()
        for layer in self.mirrored():
            del self.state[layer.parameter]["dual"]
            layer.reserve.pop("dual", None)


@dataclass
class ProxSGD(LinBreg):
    """LinBreg without memory: a gradient step on the weights, then the prox, whose threshold every step takes anew.

    It solves L + lambda J where LinBreg solves L: the weights that stay are shrunk in each step, and one that is zero
    must pass the threshold within a single step. With control "fixed" and "multiplicative" lambda is the weight of J in
    that sum: the threshold on theta/delta - d is lambda times the d of a gradient that has always been 1, which is
    tau(t), its running average with "ema", and tau(t) (1 + beta + beta^2 + ...) with "heavy_ball". So a minimiser of
    the sum stays where it is, whatever the learning rates. With control "quantile" lambda is the threshold itself, as
    the density curve asks for it. `delta` is one more factor on the step.

    Passes: reads the support and computes the dense gradient, in every step.
    FLOPs: 2 f_S + f_D, LinBreg's.
    Defaults: LinBreg's; `lam` 1e-4 from runs of the authors' code on MNIST. All else is this suite's.
    Ambiguous: the authors' ProxSGD has no momentum; here the gradients have it, as in LinBreg, and what the prox takes
        does not enter it. Weight decay is decoupled.
    Reference: code of Bungert et al., arXiv 2105.04319 (`ProxSGD`).
    """

    lam: float = 1e-4
    repair: ClassVar[bool] = False  # type: ignore[misc]  # there is no dual to carry along

    name: ClassVar[str] = "prox_sgd"
    family: ClassVar[str] = "control"
    keeps: ClassVar[Mapping[str, str]] = {"momentum": "of every weight, zero or not"}
    grown: ClassVar[str] = "one step off zero: at what the prox leaves of it"

    def make_optimizer(self, groups: list[dict[str, Any]]) -> ProximalGradient:
        decay, rule = self.recipe.weight_decay[self.kind], Regularizer(self.regularizer)
        return ProximalGradient(groups, self.layers, self.direction(), rule, delta=self.delta, weight_decay=decay)

    def begin(self, t: int) -> None:
        super().begin(t)
        one = torch.ones((), dtype=torch.float64)
        self.memory["step"] = float(self.direction()(one, self.memory, self.lr(t)))
        self.threshold()

    def regulate(self, t: int) -> None:
        super().regulate(t)
        self.threshold()

    def threshold(self) -> None:
        """From lambda, the weight of J in the objective, to the threshold of this step; the quantile is one already."""
        if self.control != "quantile":
            self.mirror.lam = {layer: self.memory["step"] * lam for layer, lam in self.mirror.lam.items()}


@dataclass
class MaskedSGD(MLLinBreg):
    """ML LinBreg's schedule without its mirror step: SGD on the frozen support, and in fine steps on every weight.

    After a fine step the weights of largest magnitude over all Layers stay, as many as the density curve asks for and
    at least one a Layer, and the others are zero. Coarse steps remove nothing. Start, allocation, order, m, density
    curve, learning rate and momentum are ML LinBreg's, so that what differs is what the mirror step is worth.

    Passes: coarse steps read the support and compute its gradient; fine steps read it and compute the dense gradient.
    FLOPs: (3 m f_S + 2 f_S + f_D)/(m + 1), as ML LinBreg. Both read equally many weights in every step; the FLOPs are
        equal where all Layers use their weights equally often, and else as near as the two supports.
    Defaults: ML LinBreg's.
    Ambiguous: we know of no published form. Momentum off the support is held or decays, as in ML LinBreg, and has its
        say in the next fine step; a weight that goes leaves its own there.
    Reference: asked for in public reviews of Lunk, Scott & Bungert, arXiv 2602.03535, whose algorithm 1 it varies.
    """

    control: ClassVar[str] = "quantile"  # type: ignore[misc]
    lam: ClassVar[float] = 0.0  # type: ignore[misc]
    regularizer: ClassVar[str] = "l1"  # type: ignore[misc]
    delta: ClassVar[float] = 1.0  # type: ignore[misc]
    scope: ClassVar[str] = "global"  # type: ignore[misc]
    repair: ClassVar[bool] = False  # type: ignore[misc]
    support: ClassVar[str] = "fixed"  # type: ignore[misc]

    name: ClassVar[str] = "masked_sgd"
    family: ClassVar[str] = "control"
    keeps: ClassVar[Mapping[str, str]] = {"momentum": "held while frozen"}
    grown: ClassVar[str] = "one step off zero: SGD's"

    def make_optimizer(self, groups: list[dict[str, Any]]) -> ProximalGradient:
        return ProximalGradient(groups, self.layers, self.direction(), weight_decay=self.recipe.weight_decay[self.kind])

    def step(self, t: int) -> None:
        if not self.fine(t):
            return super().step(t)
        self.optimizer.step()
        total = sum(layer.numel for layer in self.layers)
        weights = [layer.weight for layer in self.layers]
        masks = global_top([weight.abs() for weight in weights], round(self.density(t + 1) * total))
        for layer, weight, mask in zip(self.layers, weights, masks, strict=True):
            layer.assign(weight.masked_fill(~mask, 0))
            layer.forward_mask = mask
