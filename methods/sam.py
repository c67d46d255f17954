"""SAM, sharpness-aware minimisation: the gradient of another method's step is taken a little up the slope."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dstbench.methods.checks import valid
from dstbench.methods.compose import Composer
from dstbench.suite.model import SparseModel
from dstbench.suite.recipe import Recipe


@dataclass
class SAM(Composer):
    """Passes read the weights of `on` moved by `rho` along the gradient, whose direction is that over all of them.

    The gradient comes from a pass before; with `single` it is that of the last step's pass, and none is added. What is
    moved is what the pass reads and all that is no Layer; afterwards it is put back, bit for bit.

    Passes: those of `on`, twice in every step, or once with `single`.
    FLOPs: twice those of `on`, and so in our count; with `single`, no more than those.
    Defaults: `rho` 0.05 is SAM's on CIFAR-10, with `single` too, whose code has 0.5 unless told; `on` "rigl".
    Ambiguous: batch norm moves its running statistics in both passes, as in plain implementations. The last gradient of
        `single` is kept as it was computed; where masks have changed since, it counts on the present one.
    Reference: Foret et al., arXiv 2010.01412, algorithm 1; `single`: Ji et al. (S2-SAM), openreview MJgMMqMDu4.
    """

    rho: float = 0.05
    single: bool = False

    name: ClassVar[str] = "sam"
    citation: ClassVar[str] = "Foret et al., ICLR 2021, arXiv 2010.01412; Ji et al., NeurIPS 2024"

    needs: ClassVar[tuple[str, ...]] = (*Composer.needs, "make_optimizer")  # duals would move in both passes

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, rho=(0, math.inf))

    def attach(self, model: SparseModel, recipe: Recipe, seed: int) -> None:
        super().attach(model, recipe, seed)
        if self.single:
            known = {layer.parameter: layer for layer in self.layers}
            for name, p in model.net.named_parameters():
                self.memory[f"last.{name}"] = p.new_zeros(known[p].shape if p in known else p.shape)

    def descend(self, batch: Any) -> Tensor:
        first = None if self.single else self.backward(batch)
        before = self.climb()
        loss = self.backward(batch)
        with torch.no_grad():
            for parameter, value in before.items():
                parameter.copy_(value)
        if self.single:
            for name, grad in self.gradients().items():
                self.memory[f"last.{name}"].copy_(grad)
        return loss if first is None else first

    @torch.no_grad()
    def climb(self) -> dict[nn.Parameter, Tensor]:
        """Move up the slope; returns what was there."""
        grads = {n: self.memory[f"last.{n}"] for n in self.names()} if self.single else self.gradients()
        known = {layer.parameter: layer for layer in self.layers}
        for name, parameter in self.names().items():
            layer = known.get(parameter)
            if layer is not None and layer.forward_mask is not None:  # which may have changed since the last pass
                grads[name] = grads[name] * layer.forward_mask
        norm = torch.stack([grad.norm() for grad in grads.values()]).norm()
        before = {parameter: parameter.detach().clone() for parameter in self.names().values()}
        for name, parameter in self.names().items():
            step = grads[name] * (self.rho / (norm + 1e-12))
            layer = known.get(parameter)
            parameter.add_(step if layer is None else layer.kernel.store(layer, step))
        return before

    def names(self) -> dict[str, nn.Parameter]:
        """All parameters of the network by name."""
        return dict(self.model.net.named_parameters())

    def gradients(self) -> dict[str, Tensor]:
        """Their gradients in the last pass, dense; of a Layer, for what the pass read."""
        known = {layer.parameter: layer for layer in self.layers}
        found = {}
        for name, p in self.names().items():
            if layer := known.get(p):
                found[name] = layer.grad if layer.forward_mask is None else layer.grad * layer.forward_mask
            else:
                found[name] = torch.zeros_like(p) if p.grad is None else p.grad.clone()
        return found
