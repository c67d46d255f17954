"""STR, soft threshold weight reparameterisation: passes read what of a weight exceeds a threshold that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dstbench.methods.allocate import uniform
from dstbench.methods.checks import valid
from dstbench.methods.magnitude import largest
from dstbench.methods.schedules import cubic
from dstbench.suite.method import Gradients, Method

CONTROLS = ("quantile", "free")
LEAST = 1e-30  # of one sigmoid(s) over another: weights are divided by it


@dataclass
class STR(Method):
    """Passes read sign(w) relu(|w| - c sigmoid(s)): w a raw weight, s one trained number a Layer, c the same for all.

    Raw weights and s are what the optimiser steps, with the recipe's weight decay on both; s starts at `s_init`. A raw
    weight gets the gradient of the pass where it is read, and none elsewhere. `control` "free" is the paper's: c is 1,
    and sparsity is what `s_init`, weight decay and training make of it. "quantile" is this suite's: after every step c
    is the largest |w| / sigmoid(s) among the weights that go, so that the number read is exact and falls cubically from
    all to the target between the shares `start` and `stop` of the run; s says only how Layers share it.
    Passes: every pass reads the mask and computes the gradient on it alone.
    FLOPs: the paper reports inference alone. A step needs no more than 3 f_S, the count here, f_S that of the step: off
        the mask neither w nor s has a gradient. The authors' code computes dense gradients all the same.
    Defaults: `s_init` is the highest of the paper's (-5 to -12 500; -3200 for 90.23 %; its MobileNet's is -12 800 in
        the code). Under "quantile" it hardly matters: only differences between Layers' s do, and its gradient depends
        on the threshold. Under "free" it decides: from -3200 weight decay takes longer than the runs of this suite to
        bring s near 0, and they stay dense. Weight decay is the recipe's, as for all methods; `start` and `stop` are
        those of `magnitude`.
    Ambiguous: "quantile" has no counterpart in the paper, which has no target; c is a constant in the gradients. Every
        Layer keeps its largest weight; that weight, and ties with c, may be read as 0: they count as active, also in
        the gradients of w and s. Under "free" a Layer can lose all weights.
    Reference: Kusupati et al., arXiv 2002.03231, section 3, and its code.
    """

    control: str = "quantile"
    s_init: float = -5.0
    start: float = 0.1
    stop: float = 0.75

    name: ClassVar[str] = "str"
    family: ClassVar[str] = "dense-to-sparse"
    citation: ClassVar[str] = "Kusupati et al., ICML 2020, arXiv 2002.03231"
    keeps: ClassVar[dict[str, str]] = {"raw": "the dense weights w behind the threshold, which the optimiser steps"}
    grown: ClassVar[str] = "one step off zero: at what the raw weight, kept meanwhile, exceeds its threshold by"

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, control=CONTROLS, stop=(0, 1), start=(0, self.stop))

    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        raw = {layer.parameter: layer.weight.clone() for layer in self.layers}
        self.raw = list(raw.values())
        self.s = self.raw[0].new_full((len(self.raw),), self.s_init)
        self.memory |= {f"raw.{layer.name}": raw[layer.parameter] for layer in self.layers} | {"s": self.s}
        groups = [{**group, "params": [raw.get(p, p) for p in group["params"]]} for group in groups]
        return super().make_optimizer([*groups, {"params": [self.s]}])

    def setup(self, gradients: Gradients) -> None:
        self.read(0)

    def step(self, t: int) -> None:
        slopes = self.memory["c"] * self.shares() * (1 - self.s.sigmoid())
        sums = []
        for layer, w in zip(self.layers, self.raw, strict=True):
            w.grad = layer.grad  # zero off the mask
            sums.append((layer.grad * w.sign()).sum())
        self.s.grad = -slopes * torch.stack(sums)
        self.optimizer.step()
        self.read(t + 1)

    def read(self, t: int) -> None:
        """Let the pass of step t read the raw weights through their thresholds."""
        shares = self.shares()
        masks, c = self.select([w.abs() / share for w, share in zip(self.raw, shares, strict=True)], t)
        self.memory["c"] = c  # the gradient of the pass needs it, also after a resume
        for layer, w, mask, share in zip(self.layers, self.raw, masks, shares, strict=True):
            layer.activate(mask)
            layer.assign(w.sign() * (w.abs() - c * share).relu())

    def shares(self) -> Tensor:
        """sigmoid(s), one a Layer; under "quantile" over the largest of them, as all may fall until they underflow."""
        if self.control == "free":
            return self.s.sigmoid()
        level = torch.nn.functional.logsigmoid(self.s)
        return (level - level.max()).exp().clamp_min(LEAST)

    def select(self, scores: Sequence[Tensor], t: int) -> tuple[list[Tensor], Tensor]:
        """The masks of step t, and c, by the |w| / sigmoid(s) of all Layers."""
        if self.control == "free":
            return [score > 1 for score in scores], torch.ones_like(self.s[0])
        first, last = (int(share * (self.recipe.steps - 1)) for share in (self.start, self.stop))
        densities = uniform(self.layers, 1 - self.sparsity)
        masks = largest(self.layers, scores, densities, progress=cubic(t, first, last))
        out = [score.masked_fill(mask, 0).max() for score, mask in zip(scores, masks, strict=True)]
        return masks, torch.stack(out).max()
