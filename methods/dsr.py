"""DSR, dynamic sparse reparameterisation: one threshold prunes all Layers, and weights move between Layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from dstbench.methods import schedules
from dstbench.methods.allocate import counts, top
from dstbench.methods.checks import valid
from dstbench.methods.dynamic import chance, grow
from dstbench.methods.scores import magnitude
from dstbench.methods.static import Static
from dstbench.suite.method import Gradients


@dataclass
class DSR(Static):
    """Every `period` steps (0: the recipe's) all weights below a threshold go, and as many grow at random, from zero.

    The threshold, `threshold` at first, is one for all Layers. It doubles after an update that pruned fewer than 1 -
    `tolerance` times the share `share` of the active weights, and halves after one that pruned more than 1 +
    `tolerance` times that. What went is handed to the Layers in proportion to the weights that each has left, up to
    all of its weights. An update follows the optimiser's step; the last is before the share `stop` of the run.

    Passes: every pass reads the mask and computes the gradient on it alone.
    FLOPs: 3 f_S a step, f_S that of the present masks, which move to other Layers; random growth is charged neither by
        the paper nor here.
    Defaults: `threshold` 1e-3, `tolerance` 0.1 and the factor 2 from the paper and its code. There the number pruned is
        fixed by network, whatever the sparsity: 20 000 in WRN-28-2, 400 000 in ResNet-50, 3 to 14 % and 8 to 16 % of
        the active weights at the sparsities trained; `share` 0.1 is in both ranges. `stop` 0.95 from the code, 190 of
        200 and 95 of 100 epochs; `period`, `init` and erk as for this suite's other dynamic methods.
    Ambiguous: in the code the period doubles three times in a run, here it stays. There the first masks are uniform,
        and the classifier is dense in WRN-28-2 and sparse in ResNet-50: here the task says which layers are dense.
        Every Layer keeps its largest weight. Weights just pruned may grow again, from zero; in the code they may not.
        A weight that grew must pass the threshold by the next update.
    Reference: Mostafa & Wang, arXiv 1902.05967, algorithm 1, and its code.
    """

    period: int = 0
    share: float = 0.1
    threshold: float = 1e-3
    tolerance: float = 0.1
    stop: float = 0.95

    name: ClassVar[str] = "dsr"
    family: ClassVar[str] = "dynamic"
    citation: ClassVar[str] = "Mostafa & Wang, ICML 2019, arXiv 1902.05967"
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, period=(0, math.inf), share=(0, 1), threshold=(0, math.inf), tolerance=(0, 1), stop=(0, 1))

    def setup(self, gradients: Gradients) -> None:
        super().setup(gradients)
        self.memory["threshold"] = torch.tensor(self.threshold, dtype=torch.float64)

    def step(self, t: int) -> None:
        super().step(t)
        if schedules.due(t + 1, self.period or self.recipe.period, self.stop * self.recipe.steps):
            self.update()

    def update(self) -> None:
        """Prune by the threshold, adapt it, and grow as many as went."""
        active, threshold = sum(layer.nnz() for layer in self.layers), self.memory["threshold"]
        scores = [magnitude(layer) for layer in self.layers]
        kept = [(score >= float(threshold)) | top(score, 1) for score in scores]
        left = {y.name: int(mask.count_nonzero()) for y, mask in zip(self.layers, kept, strict=True)}
        survivors = sum(left.values())
        gone, wanted = active - survivors, self.share * active
        few, many = gone < (1 - self.tolerance) * wanted, gone > (1 + self.tolerance) * wanted
        self.memory["threshold"] = threshold * (2 if few else 0.5 if many else 1)
        ideal = {y.name: left[y.name] / survivors * active / y.numel for y in self.layers}
        number = counts(self.layers, ideal, active)
        for layer, mask in zip(self.layers, kept, strict=True):
            layer.activate(mask)
            layer.activate(grow(mask, chance(layer, self.rng), number[layer.name] - left[layer.name]))
