"""DessiLBI, deep structurally splitting linearised Bregman iterations: a sparse copy follows dense weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import softshrink

from dstbench.methods.allocate import cut
from dstbench.methods.checks import valid
from dstbench.methods.finetune import OneShot
from dstbench.suite.method import Gradients


@dataclass
class DessiLBI(OneShot):
    """OneShot that ranks weights by a dual z, which gathers what dense weights and their sparse copy disagree on.

    Up to the cut dense weights w descend the loss and (w - g)^2 / 2 `nu`, g their sparse copy, at `kappa` times the
    learning rate; z rises by lr (w - g) / nu, and g is kappa times z beyond 1. The cut keeps the weights of largest |z|
    over all Layers: those that entered the path of g first, or would enter it next.

    Passes: dense before the cut; after it every pass reads the mask and computes the gradient on it alone.
    FLOPs: 3 f_D a step before the cut, 3 f_S after it; the paper reports none.
    Defaults: `nu` 100 and `kappa` 1 are the code's. `at` 0.75 is ours: its networks are thinned by g at the end.
    Ambiguous: in the code the step has a momentum of its own, which the pull to g does not enter; here it is the
        recipe's. On short runs z stays below 1 and g at zero, and weights are ranked by the sum of their path all the
        same; fixed thresholds would keep none. Its groups (filters) are left out. After the cut the rate is the
        recipe's, whatever `kappa`.
    Reference: Fu et al., arXiv 2007.02010, equations 4 to 6, and its code.
    """

    at: float = 0.75
    nu: float = 100.0
    kappa: float = 1.0
    scope: ClassVar[str] = "global"  # type: ignore[misc]

    name: ClassVar[str] = "dessilbi"
    family: ClassVar[str] = "bregman"
    citation: ClassVar[str] = "Fu et al., ICML 2020, arXiv 2007.02010"
    version: ClassVar[int] = 2
    keeps: ClassVar[Mapping[str, str]] = {"z": "the dual of every weight, up to the cut"}

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, nu=(1e-12, math.inf), kappa=(1e-12, math.inf))

    def setup(self, gradients: Gradients) -> None:
        self.memory |= {f"z.{layer.name}": torch.zeros_like(layer.weight) for layer in self.layers}

    def lr(self, t: int) -> float:
        return super().lr(t) * (self.kappa if t < self.cut else 1.0)

    def thin(self) -> None:
        scores = [self.memory.pop(f"z.{layer.name}").abs() for layer in self.layers]
        cut(self.layers, scores, round((1 - self.sparsity) * sum(layer.numel for layer in self.layers)))

    def step(self, t: int) -> None:
        if t >= self.cut:
            return super().step(t)
        apart = {y: y.weight - self.kappa * softshrink(self.memory[f"z.{y.name}"], 1.0) for y in self.layers}
        super().step(t)
        for layer, gap in apart.items():
            layer.assign(layer.weight - self.lr(t) / self.nu * gap)
            self.memory[f"z.{layer.name}"].add_(gap, alpha=self.lr(t) / self.kappa / self.nu)
