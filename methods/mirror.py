"""Mirror descent on the dual of every Layer: LinBreg's and AdaBreg's optimiser, one direction function each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dstbench.methods.regularizers import Regularizer
from dstbench.suite import groups as layer_groups
from dstbench.suite.layer import Layer
from dstbench.suite.method import LayerOptimizer

Direction = Callable[[Tensor, dict[str, Any], float], Tensor]  # (gradient, state, lr) -> what the dual loses
HAIR = 16  # units of rounding by which a tie is broken


def plain(grad: Tensor, state: dict[str, Any], lr: float) -> Tensor:
    """LinBreg: lr g. Reference: arXiv 2105.04319, algorithm 1."""
    return lr * grad


def ema(grad: Tensor, state: dict[str, Any], lr: float, beta: float) -> Tensor:
    """LinBreg with momentum: m <- beta m + (1 - beta) lr g, from zero, lr inside.

    Reference: arXiv 2105.04319, algorithm 2.
    """
    if "momentum" not in state:
        state["momentum"] = torch.zeros_like(grad)
    return state["momentum"].mul_(beta).add_(grad, alpha=(1 - beta) * lr)


def heavy_ball(grad: Tensor, state: dict[str, Any], lr: float, beta: float) -> Tensor:
    """The buffer of torch.optim.SGD: the first gradient seeds it, lr outside. Reference: code of arXiv 2605.07892."""
    if "momentum" in state:
        state["momentum"].mul_(beta).add_(grad)
    else:
        state["momentum"] = grad.clone()
    return lr * state["momentum"]


def adam(
    grad: Tensor, state: dict[str, Any], lr: float, beta1: float, beta2: float, eps: float, corrected: bool = True
) -> Tensor:
    """AdaBreg: Adam's step; not `corrected`: without the correction of the first moment, as published until 2024.

    Reference: arXiv 2105.04319, algorithm 3, and the authors' code.
    """
    if "first" not in state:
        state.update(step=0, first=torch.zeros_like(grad), second=torch.zeros_like(grad))
    state["step"] += 1
    first = state["first"].mul_(beta1).add_(grad, alpha=1 - beta1)
    second = state["second"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    root = second.sqrt().div_((1 - beta2 ** state["step"]) ** 0.5).add_(eps)
    return lr / (1 - beta1 ** state["step"] if corrected else 1) * first / root


class MirrorDescent(LayerOptimizer):
    """v <- v - direction - lr mu theta, theta <- prox of delta lam J at delta v; mu is the group's weight decay.

    v, the state `dual`, starts as theta/delta + lam s(theta), s the regulariser's subgradient. What is no Layer has no
    regulariser, hence theta = delta v: it takes the same step times delta, without a dual. `lam` maps Layer -> lambda.
    Reference: Bungert et al., arXiv 2105.04319, algorithms 1-3; weight decay: code of arXiv 2605.07892.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        layers: Sequence[Layer],
        direction: Direction = plain,
        regularizer: Regularizer | None = None,
        *,
        lam: float = 0.0,
        delta: float = 1.0,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(groups, layers, lr=lr, weight_decay=weight_decay)
        self.direction, self.regularizer, self.delta = direction, regularizer or Regularizer(), delta
        self.lam = dict.fromkeys(layers, lam)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """A whole step: move the duals, then read the weights."""
        self.move()
        self.read()

    def move(self) -> None:
        """The gradient step on the duals (and on what is no Layer); weights of Layers stay."""
        super().step()

    def update(
        self, layer: Layer | None, weight: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        lr, decay = group["lr"], group["lr"] * group["weight_decay"]
        if layer is None:
            if decay:
                weight.mul_(1 - self.delta * decay)
            weight.sub_(self.direction(grad, state, lr), alpha=self.delta)
            return
        if "dual" not in state:
            state["dual"] = weight / self.delta + self.lam[layer] * self.regularizer.subgradient(layer, weight)
        dual = state["dual"].sub_(self.direction(grad, state, lr))
        if decay:
            dual.sub_(weight, alpha=decay)

    def move_rest(self, layer: Layer, grad: Tensor) -> None:
        """The gradient step on the duals of a Layer that are not stored, whose weights are zero; `grad` is dense."""
        if layer.stored is None:
            return
        grad = grad.masked_fill(layer.stored, 0)
        state = {
            name: layer.reserve.get(name, torch.zeros_like(grad)) if torch.is_tensor(held) else held
            for name, held in self.state.get(layer.parameter, {}).items()
        }
        dual = state.setdefault("dual", torch.zeros_like(grad))
        dual.sub_(self.direction(grad, state, self.param_groups[0]["lr"]))
        layer.reserve.update({name: held for name, held in state.items() if torch.is_tensor(held)})

    @torch.no_grad()
    def read(self) -> None:
        """Weights from the duals, by the proximal map; where a part is stored and all moved, their support too."""
        rule = self.regularizer
        for layer in self.mirrored():
            lam = self.lam[layer]
            if layer.streaming:
                weight = rule.prox(layer, self.dual(layer), lam).mul_(self.delta)
                layer.zero_grad()
                layer.forward_mask = rule.support(layer, weight)
                layer.assign(weight)
            else:
                layer.parameter.copy_(rule.prox(layer, self.state[layer.parameter]["dual"], lam).mul_(self.delta))

    def mirrored(self) -> list[Layer]:
        """The Layers that have a dual."""
        return [layer for p, layer in self.layers.items() if "dual" in self.state[p]]

    def dual(self, layer: Layer) -> Tensor:
        """The duals of a Layer, dense: those stored and those held off the support."""
        return layer.kernel.dense(layer, self.state[layer.parameter]["dual"], layer.reserve.get("dual"))

    def scores(self, layer: Layer) -> Tensor:
        """The score of each group's dual, (number of groups,); NaN counts as 0."""
        return self.regularizer.score(layer, self.dual(layer)).nan_to_num(0.0)

    def scale(self, layer: Layer, factor: Tensor) -> None:
        """Multiply the duals of each group by a factor, (number of groups,), whether stored or not."""
        factor = layer_groups.spread_dense(layer, factor, self.regularizer.groups)
        self.state[layer.parameter]["dual"].mul_(layer.kernel.store(layer, factor))
        if "dual" in layer.reserve:
            layer.reserve["dual"].mul_(factor)

    @torch.no_grad()
    def lower(self, layer: Layer, losers: Tensor) -> None:
        """Break ties: take a hair, a few units of rounding, off the duals of the groups `losers`."""
        factor = torch.where(losers, 1 - HAIR * torch.finfo(layer.parameter.dtype).eps, 1.0)
        self.scale(layer, factor.to(layer.parameter.dtype))

    @torch.no_grad()
    def repair(self, lam: dict[Layer, float]) -> None:
        """Carry the duals over to new lambdas, so that the change alone moves no weight.

        v + (new - old) s(theta) on the support, v clipped to the new lambda off it.
        Reference: simulation code of arXiv 2605.07892.
        """
        rule = self.regularizer
        for layer in self.mirrored():
            new, weight = lam[layer], layer.parameter
            self.state[weight]["dual"].add_(rule.subgradient(layer, weight), alpha=new - self.lam[layer])
            size = rule.score(layer, self.dual(layer))
            bound = new * (1 - HAIR * torch.finfo(size.dtype).eps) / size
            clip = torch.where((rule.score(layer, weight) == 0) & (size > new), bound, 1.0)
            self.scale(layer, clip)
