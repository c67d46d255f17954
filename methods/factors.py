"""Weights as products of two factors that the optimiser steps: Sign-In and spred."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dstbench.methods import schedules
from dstbench.methods.checks import valid
from dstbench.methods.compose import Composer
from dstbench.methods.snfs import SNFS
from dstbench.suite.layer import Mask
from dstbench.suite.method import Gradients
from dstbench.suite.model import SparseModel
from dstbench.suite.recipe import Recipe


def factors(weight: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """m >= 0 and v with m v = weight and m^2 - v^2 = beta."""
    m = ((torch.hypot(2 * weight, torch.full_like(weight, beta)) + beta) / 2).sqrt()  # no square that underflows
    return m, weight / m.clamp_min(torch.finfo(weight.dtype).tiny)


@dataclass
class Factored(Composer):
    """The weights of `on` are products m v; its optimiser steps both factors, weight decay included.

    Factors begin without state and with m^2 - v^2 = `beta`. So they begin anew where weights grow; where `on` sets
    weights itself, as when it rewinds, they follow and keep their state.
    """

    beta: float = 1.0

    keeps: ClassVar[Mapping[str, str]] = {"factors": "both of every weight, read or not"}
    needs: ClassVar[tuple[str, ...]] = (*Composer.needs, "make_optimizer")

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, beta=(0, math.inf))
        if isinstance(self.inner, SNFS):
            raise ValueError(f"{self.name}: on is {self.on!r}, which reads the momentum of weights; factors have it")

    def attach(self, model: SparseModel, recipe: Recipe, seed: int) -> None:
        self.m = [layer.weight.clone() for layer in model.layers]
        self.v = [layer.weight.clone() for layer in model.layers]
        pairs = {y.parameter: [m, v] for y, m, v in zip(model.layers, self.m, self.v, strict=True)}
        make = self.inner.make_optimizer

        def make_optimizer(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
            return make([{**g, "params": [x for p in g["params"] for x in pairs.get(p, [p])]} for g in groups])

        vars(self.inner)["make_optimizer"] = make_optimizer
        super().attach(model, recipe, seed)
        for y, m, v in zip(self.layers, self.m, self.v, strict=True):
            self.memory |= {f"m.{y.name}": m, f"v.{y.name}": v}
        self.optimizer.register_step_pre_hook(self.pull)
        self.optimizer.register_step_post_hook(self.push)

    def pull(self, *_: Any) -> None:
        """The gradients of the factors from those of the weights."""
        for layer, m, v in zip(self.layers, self.m, self.v, strict=True):
            m.grad, v.grad = layer.grad * v, layer.grad * m

    def push(self, *_: Any) -> None:
        """The weights from the factors."""
        for layer, m, v in zip(self.layers, self.m, self.v, strict=True):
            layer.assign(m * v)

    def setup(self, gradients: Gradients) -> None:
        super().setup(gradients)
        self.balance()

    def balance(self) -> None:
        """Factors anew, from the weights, which become what the factors' product rounds to."""
        for layer, m, v in zip(self.layers, self.m, self.v, strict=True):
            for factor, value in zip((m, v), factors(layer.weight, self.beta), strict=True):
                factor.copy_(value)
        self.push()

    def begin(self, t: int) -> None:
        before = self.read()
        super().begin(t)
        self.follow(before)

    def step(self, t: int) -> None:
        before = self.read()
        super().step(t)
        self.follow(before)

    def read(self) -> list[Mask]:
        """What passes read of every Layer."""
        return [layer.forward_mask for layer in self.layers]

    def follow(self, before: list[Mask]) -> None:
        """Factors anew of weights that are not their product; without state where weights grew since `before`."""
        for layer, old, m, v in zip(self.layers, before, self.m, self.v, strict=True):
            weight, read = layer.weight, layer.forward_mask
            new = torch.zeros_like(weight, dtype=torch.bool) if old is None or old is read else ~old
            moved = weight != m * v
            grown = new & (moved | (weight == 0))
            fresh = grown | moved if read is None else (grown | moved) & read
            if not fresh.any():
                continue
            for factor, value in zip((m, v), factors(weight, self.beta), strict=True):
                factor.copy_(torch.where(fresh, value, factor))
                for held in self.optimizer.state[factor].values():
                    if torch.is_tensor(held) and held.shape == grown.shape:
                        held.masked_fill_(grown & fresh, 0)


@dataclass
class SignIn(Factored):
    """Weights are products m v, balanced after every `period` steps, so that v, the smaller, can change its sign.

    Balanced means m^2 - v^2 = `beta` with m > 0, the product being what it was. `period` 0 is the recipe's; the last
    balancing is before the share `stop` of the run. Weights that grow begin balanced, where `on` has them start.

    Passes: those of `on`.
    FLOPs: those of `on`; products and balancing, a few operations a weight, are charged neither by the paper nor here.
    Defaults: `beta` 1 and `on` "static" as in the paper, whose other baselines are presets; `period` is this suite's
        for all that happens now and then, `stop` 0.5 ours.
    Ambiguous: weight decay acts on both factors. Factors of weights that no pass reads are held but mean nothing.
    Reference: Gadhikar et al., arXiv 2504.12801, sections 3 and 4.
    """

    on: str = "static"
    period: int = 0
    stop: float = 0.5

    name: ClassVar[str] = "sign_in"
    citation: ClassVar[str] = "Gadhikar et al., NeurIPS 2025, arXiv 2504.12801"
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, beta=(1e-12, math.inf), period=(0, math.inf), stop=(0, 1))

    def step(self, t: int) -> None:
        super().step(t)
        if schedules.due(t + 1, self.period or self.recipe.period, self.stop * self.recipe.steps):
            self.balance()


@dataclass
class Spred(Factored):
    """Weights are products u v of equal size; weight decay on both factors is an L1 penalty on the weights.

    `on` prunes them: by default once, by magnitude, at half of the run, with what is left trained on; gradually with
    the preset. `decay` is the weight decay of the factors, -1 the recipe's.

    Passes: those of `on`: dense until it prunes.
    FLOPs: those of `on`.
    Defaults: factors of equal size and plain weight decay as in the paper, which thresholds weights after training and
        may train on; pruning by count at half of the run is `oneshot`'s.
    Ambiguous: the paper's threshold is small and fixed; here counts are on target. How its factors begin for a network
        is not said: here the product is the initial weight.
    Reference: Ziyin & Wang, arXiv 2210.01212, algorithm 1.
    """

    on: str = "oneshot"
    beta: float = 0.0
    decay: float = -1.0

    name: ClassVar[str] = "spred"
    family: ClassVar[str] = "bregman"
    citation: ClassVar[str] = "Ziyin & Wang, ICML 2023, arXiv 2210.01212"

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, decay=(-1, math.inf))

    def attach(self, model: SparseModel, recipe: Recipe, seed: int) -> None:
        super().attach(model, recipe, seed)
        ours = {id(x) for x in (*self.m, *self.v)}
        for group in self.optimizer.param_groups:
            if self.decay >= 0 and any(id(p) in ours for p in group["params"]):
                group["weight_decay"] = self.decay
