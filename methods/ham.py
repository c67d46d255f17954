"""HAM: a hyperbolic step, which shrinks and stretches weights by factors, after each step of another method."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from dstbench.methods.checks import valid
from dstbench.methods.compose import Composer
from dstbench.suite.model import SparseModel
from dstbench.suite.recipe import Recipe

LARGEST = 5.0  # exponent, of either sign


@dataclass
class HAM(Composer):
    """After each step of the optimiser of `on`, every weight is multiplied by exp(-lr (alpha sign(w) g + beta)).

    w is the weight after the step, g its gradient in the pass; the exponent is at most 5 in size. Zeros stay zero, and
    an update that takes the place of the optimiser's step multiplies nothing.

    Passes: those of `on`.
    FLOPs: those of `on`; five operations a weight are charged neither by the paper nor here.
    Defaults: `beta` 1e-3 from the paper's code, as is the bound of the exponent; its `alpha`, 200 for ResNet-50 on
        ImageNet, diverges on digits/mlp, where gradients are larger, and 20 costs accuracy: 2 here. `on` as in its
        tables: rigl, a random mask (static), acdc.
    Ambiguous: the code multiplies tensors of two dimensions or more: here the weights of Layers. g is that of the loss,
        without weight decay. The code also clips norms and undoes steps to NaN: here the recipe clips, or the run has
        diverged. Raw weights of STR, which the paper bends too, cannot be wrapped.
    Reference: Jacobs et al., arXiv 2506.02630, and its code.
    """

    alpha: float = 2.0
    beta: float = 1e-3

    name: ClassVar[str] = "ham"
    citation: ClassVar[str] = "Jacobs et al., ICLR 2026, arXiv 2506.02630"
    needs: ClassVar[tuple[str, ...]] = (*Composer.needs, "make_optimizer")  # which steps the weights themselves

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, alpha=(0, math.inf), beta=(0, math.inf))

    def attach(self, model: SparseModel, recipe: Recipe, seed: int) -> None:
        super().attach(model, recipe, seed)
        self.optimizer.register_step_post_hook(self.bend)

    @torch.no_grad()
    def bend(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """The hyperbolic step."""
        lr = optimizer.param_groups[0]["lr"]
        for layer in self.layers:
            weight = layer.weight
            exponent = -lr * (self.alpha * weight.sign() * layer.grad + self.beta)
            layer.assign(weight * exponent.clamp(-LARGEST, LARGEST).exp())
