"""Structured sparsity: a constant fan-in for every neuron (SRigL), and N of M consecutive weights (SR-STE)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dstbench.methods.allocate import Sized, allocate, begin_sparse, top
from dstbench.methods.checks import valid
from dstbench.methods.dynamic import RigL
from dstbench.methods.scores import magnitude
from dstbench.suite.layer import Layer
from dstbench.suite.method import Gradients, Method
from dstbench.suite.model import SparseModel
from dstbench.suite.task import Task

LONGEST = 64  # the largest M that a pattern is looked for
ROUNDED = 1e-4  # how near a sparsity must come to that of its pattern, relative to the density: 0.91667 is 1:12
SMALL = 0.01  # how far a first Layer that stays dense may carry the network past its target: what boards tolerate


def leading(scores: Tensor, count: int | Tensor) -> Tensor:
    """A bool mask of the `count` largest scores of each row, (rows, n); `count` may differ by row, (rows,).

    Exactly as many, among ties the first in memory order.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    wanted = torch.as_tensor(count, device=scores.device).view(-1, 1)
    chosen = torch.arange(scores.shape[1], device=scores.device) < wanted
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, chosen.expand_as(order))


def row_length(layer: Sized) -> int:
    """Weights that feed one output."""
    return layer.numel // layer.shape[0]


# ---- constant fan-in -------------------------------------------------------------------------------------------------


def fan_ins(layers: Sequence[Sized], densities: Mapping[str, float]) -> dict[str, int]:
    """Connections a row by layer name, at least one, so that all together come near to what the densities sum to.

    Rounded; then single layers move by one connection for all of their rows, as few as bring the sum within half the
    rows of the narrowest layer (or, where none do, nearest), and of equally wide layers first the one that is furthest
    behind. Nearer sums may exist, at the price of fan-ins far from what their layers were allocated.
    """
    rows = {layer.name: layer.shape[0] for layer in layers}
    full = {layer.name: row_length(layer) for layer in layers}
    ideal = {name: densities[name] * full[name] for name in full}
    rounded = {name: min(full[name], max(1, round(ideal[name]))) for name in full}
    missing = round(math.fsum(ideal[n] * rows[n] for n in full)) - sum(rounded[n] * rows[n] for n in full)
    found, farthest = {missing: rounded}, max(abs(missing), *rows.values())
    queue = [missing]
    for gap in queue:  # breadth first, over what is missing
        now = found[gap]
        if abs(gap) <= min(rows.values()) / 2:
            return now
        for sign in (1, -1):
            for name in sorted(now, key=lambda n: sign * (now[n] - ideal[n])):
                after, fan_in = gap - sign * rows[name], now[name] + sign
                if after not in found and abs(after) <= farthest and 1 <= fan_in <= full[name]:
                    found[after] = {**now, name: fan_in}
                    queue.append(after)
    return found[min(found, key=abs)]


def present_fan_in(layer: Layer) -> int:
    """Connections of each active row of a Layer that has a constant fan-in."""
    mask = layer.forward_mask
    return row_length(layer) if mask is None else int(mask.flatten(1).sum(1).max())


def neurons(budget: int, spare: int, rows: int, fewest: int) -> tuple[int, int]:
    """How many rows stay active, at least `fewest`, and their new fan-in, floor(budget / fewest).

    What the floor leaves of the budget goes to further rows, as many as bring the sum nearest to budget + spare.
    """
    fan_in = budget // fewest
    return min(rows, max(fewest, round((budget + spare) / fan_in))), fan_in


def connect(weight: Tensor, growth: Tensor, kept: Tensor, fan_in: Tensor) -> Tensor:
    """The mask with exactly fan_in[r] connections in row r: those of `kept`, trimmed by weight, then grown by growth.

    All but the last are (rows, n); the last is (rows,), 0 for an ablated row.
    """
    kept = kept & leading(weight.masked_fill(~kept, -math.inf), fan_in)
    return kept | leading(growth.masked_fill(kept, -math.inf), fan_in - kept.sum(1))


@dataclass
class SRigL(RigL):
    """RigL whose active neurons (rows of a Linear, filters of a Conv2d) all have the same fan-in within a Layer.

    A weight is salient if it is among the largest of its Layer, as many as RigL keeps, or its gradient is, as many as
    RigL grows. A neuron whose salient weights are fewer than the share `gamma` of the fan-in with all neurons, rounded
    down but at least one, is ablated by an update and may come back in a later one; the others share the budget of the
    Layer, the count it began with, and keep their largest weights, again as many as RigL keeps, before they grow. The
    last Layer keeps all of its neurons, the others as many as can hold the budget.

    Passes: as RigL.
    FLOPs: as RigL at the density of the mask, ablated neurons free: (3 f_S ΔT + 2 f_S + f_D)/(ΔT + 1) a step. Ours
        charges weights that read the output of an ablated neuron: its bias or norm may keep it alive.
    Defaults: `gamma` 0.3 is the code's for convolutional networks (0.95 for ViT); schedule, `period` and `init` as for
        RigL; allocation erk as for the suite's other methods (the paper's for ViT: uniform).
    Ambiguous: where budgets do not divide. The first fan-ins are rounded so that their sum comes near the target. An
        update: floor(budget / neurons left), as in the code, which leaves the rest unused; here it goes to the ablated
        neurons with most salient weights, so that hardly any is ablated while fan-ins are small. What then is too much
        or too little, half a neuron's weights at most, later Layers make up for. Weights that are zero but active count
        as active. Neurons are trimmed by magnitude (the code sorts the mask itself).
    Reference: Lasby et al., arXiv 2305.02299, and its code.
    """

    gamma: float = 0.3

    name: ClassVar[str] = "srigl"
    family: ClassVar[str] = "structured"
    citation: ClassVar[str] = "Lasby et al., ICLR 2024, arXiv 2305.02299"
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, gamma=(0, 1))

    @property
    def grain(self) -> int:
        return max(min(layer.shape[0] for layer in self.layers), *map(present_fan_in, self.layers))

    def setup(self, gradients: Gradients) -> None:
        fan_in = fan_ins(self.layers, allocate(self.allocation, self.layers, 1 - self.sparsity))
        drawn = [torch.rand(layer.shape, generator=self.rng).flatten(1) for layer in self.layers]
        masks = [leading(s, fan_in[y.name]).view(y.shape) for s, y in zip(drawn, self.layers, strict=True)]
        begin_sparse(self.layers, masks, self.init, random=True)
        self.memory["budgets"] = torch.tensor([layer.nnz() for layer in self.layers])

    def begin(self, t: int) -> None:
        if self.due(t):
            for layer in self.layers:
                layer.grad_mask = None  # fan-ins ask for the largest gradients of every neuron, too

    def update(self, t: int) -> None:
        spare = 0
        for layer, budget in zip(self.layers, self.memory["budgets"].tolist(), strict=True):
            spare += budget - self.rewire(layer, self.moved(t, layer.nnz()), budget, spare)

    def rewire(self, layer: Layer, moved: int, budget: int, spare: int) -> int:
        """One update of a Layer; returns how many weights are active now."""
        weight, growth = magnitude(layer).flatten(1), self.growth(layer).flatten(1)
        (rows, full), keep = weight.shape, layer.nnz() - moved
        salient = (top(weight, keep) | top(growth, moved)).sum(1)
        strong = int((salient >= max(1, int(self.gamma * (budget // rows)))).sum())
        fewest = rows if layer is self.layers[-1] else max(strong, math.ceil(budget / full))
        active, fan_in = neurons(budget, spare, rows, fewest)
        alive = top(salient.double(), active)
        weight = weight.masked_fill(~alive[:, None], -math.inf)
        kept = top(weight, keep) & weight.isfinite()
        layer.activate(connect(weight, growth, kept, alive * fan_in).view(layer.shape))
        return active * fan_in


# ---- N of M ----------------------------------------------------------------------------------------------------------


def pattern(sparsity: float) -> tuple[int, int] | None:
    """The smallest N:M of this sparsity, M at most `LONGEST`, or None."""
    found = ((round((1 - sparsity) * m), m) for m in range(1, LONGEST + 1))
    return next(((n, m) for n, m in found if n and math.isclose(n, (1 - sparsity) * m, rel_tol=ROUNDED)), None)


def misfit(layers: Sequence[Sized], n: int, m: int) -> Sized | None:
    """The first Layer whose rows are no multiple of `m`, or None; the very first is let off, dense, where it is small.

    Small: the whole network stays within the share `SMALL` of its target all the same.
    """
    odd = [layer for layer in layers if row_length(layer) % m]
    if odd and odd[0] is layers[0] and odd[0].numel * (m - n) <= SMALL * n * sum(layer.numel for layer in layers):
        odd = odd[1:]
    return odd[0] if odd else None


def nearest(layers: Sequence[Sized], sparsity: float) -> str:
    """What to do instead: the sparsity next to this one at which some 1:M fits these Layers."""
    fit = [m for m in range(2, LONGEST + 1) if misfit(layers, 1, m) is None]
    m = min(fit, key=lambda m: abs(1 - 1 / m - sparsity), default=0)
    return f"run at sparsity {1 - 1 / m:g} (1:{m})" if m else "no 1:M fits this network"


def refusal(layers: Sequence[Sized], sparsity: float, found: tuple[int, int] | None) -> str | None:
    """Why these Layers cannot have the pattern `found` at this sparsity, or None."""
    if found is None:
        return f"nm: no N:M with M up to {LONGEST} has sparsity {sparsity:g}; {nearest(layers, sparsity)}"
    n, m = found
    if not math.isclose(n / m, 1 - sparsity, rel_tol=ROUNDED):
        return f"nm: {n}:{m} has sparsity {1 - n / m:g} and the run {sparsity:g}; run at that, or set m to 0"
    if odd := misfit(layers, n, m):
        what = f"does not divide the {row_length(odd)} inputs of layer {odd.name!r}"
        return f"nm: {n}:{m} {what}; {nearest(layers, sparsity)}"
    return None


def pull(layer: Layer, decay: float) -> None:
    """Add `decay` times the weights that the pass did not read to the gradient; a dense Layer has none."""
    if layer.forward_mask is not None:
        layer.add_grad(decay * layer.weight.masked_fill(layer.forward_mask, 0))


@dataclass
class NM(Method):
    """N:M sparsity by SR-STE: a pass reads, of every M consecutive weights of a row, the N largest.

    The gradient goes straight through to every weight; those that the pass did not read are pulled to zero besides, by
    `decay` times themselves. A row is what feeds one output of a Linear or Conv2d; no group crosses rows. `n` and `m`
    are the pattern; with m 0 it is the smallest of the run's sparsity: 1:2 at 0.5, 1:4 at 0.75. Patterns must divide
    every row; a first Layer whose rows they do not divide stays dense where it is small.

    Passes: N of M weights are read; every weight gradient is computed, at every step.
    FLOPs: 2 f_S + f_D, since forward pass and input gradient read the mask alone; usually reported as dense, 3 f_D.
    Defaults: `decay` is the paper's; `n` and `m` follow the run's sparsity. The start is the dense one, not rescaled,
        as in the code: the weights that are not read live on.
    Ambiguous: the code cuts the flattened tensor into groups, across filters where M does not divide a row: here that
        is refused. Consecutive means torch's order, positions of the kernel before input channels; hardware wants
        channels first. The pull joins the gradient before momentum or Adam, as in the code, and after clipping. Among
        ties the first in memory order is read.
    Reference: Zhou et al., arXiv 2102.04010, and its code.
    """

    n: int = 1
    m: int = 0
    decay: float = 2e-4

    name: ClassVar[str] = "nm"
    family: ClassVar[str] = "structured"
    citation: ClassVar[str] = "Zhou et al., ICLR 2021, arXiv 2102.04010"
    grown: ClassVar[str] = "at its own value: weights that no pass reads keep learning"

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, decay=(0, math.inf), m=(0, math.inf))
        if not self.m and self.n != 1:
            raise ValueError(f"nm: n is {self.n} and m 0; give both, or neither for the pattern of the run's sparsity")
        valid(self, n=(1, self.m or 1))

    @property
    def pattern(self) -> tuple[int, int] | None:
        """N and M, resolved, or None where the sparsity has none."""
        return (self.n, self.m) if self.m else pattern(self.sparsity)

    def skip(self, task: Task) -> str | None:
        return refusal(SparseModel(task.build(0), task.example(), task.dense).layers, self.sparsity, self.pattern)

    def setup(self, gradients: Gradients) -> None:
        if reason := refusal(self.layers, self.sparsity, self.pattern):
            raise ValueError(reason)
        self.declare()

    def step(self, t: int) -> None:
        for layer in self.layers:
            pull(layer, self.decay)
        super().step(t)
        self.declare()

    def declare(self) -> None:
        """Passes read the N largest of every group."""
        n, m = self.pattern or (1, 1)
        for layer in self.layers:
            if row_length(layer) % m == 0:
                layer.forward_mask = leading(layer.weight.abs().reshape(-1, m), n).view(layer.shape)

    def finish(self) -> None:
        """What no pass reads is no part of the model."""
        for layer in self.layers:
            layer.grad_mask = layer.forward_mask
