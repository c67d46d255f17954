"""S2ViTE: attention heads and hidden neurons of a transformer are dropped and grown as wholes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from methods.allocate import random_mask, top
from methods.dynamic import SET, grow
from suite import heads
from suite.heads import Units
from suite.layer import Layer
from suite.method import Gradients
from suite.model import SparseModel
from suite.task import Task


@dataclass
class S2ViTE(SET):
    """SET on whole heads (rows of queries, keys and values, columns of the output) and hidden neurons of transformers.

    Each attention and each pair of linear layers starts with random units, and an update drops the least important and
    grows as many: heads by the Taylor score |A dL/dA|, A what the head hands to the output, neurons by the sum of the
    sizes of their weights; both grow by the sum of the sizes of their gradients. All other Layers stay dense. Heads
    have the density that the target leaves them, one an attention at least; neurons make up for the rest.

    Passes: read the weights of active units and compute their gradients. That of an update also reads the rows of the
        others and computes the gradients of their columns, which are zero: what it computes is the same.
    FLOPs: 3 f_S a step, and at an update the rows and columns of all units besides, as for `rigl`; the paper reports
        inference alone.
    Defaults: the code's: `alpha` 0.5 and `floor` 0.005 (DeiT-Small), updates follow the step and end at 0.8 of the run.
        Its period, 15 000 steps, is 1 % of its run: here the recipe's. Its cosine ends with the run, here with updates.
    Ambiguous: the code drops rows of queries, keys and values alone and leaves the output dense, and lets all weights
        of a neuron start at zero, where they have no gradient but by a bias. Here rows start as they were when last
        read, or at first, and columns one step off zero: the update's pass computes their gradients for that. The
        score of heads is summed over the batch before its size is taken: then it is |w dL/dw| summed over the head's
        columns, exactly. Counts are rounded up, as in the code. What just went may come back, with value and state.
    Reference: Chen et al., arXiv 2106.04533, section 3.3, and its code.
    """

    alpha: float = 0.5
    stop: float = 0.8
    floor: float = 0.005
    after_step: bool = True
    allocation: ClassVar[str] = "uniform"  # type: ignore[misc]
    init: ClassVar[str] = "dense"  # type: ignore[misc]

    name: ClassVar[str] = "s2vite"
    family: ClassVar[str] = "structured"
    citation: ClassVar[str] = "Chen et al., NeurIPS 2021, arXiv 2106.04533"
    keeps: ClassVar[dict[str, str]] = {"weight": "the rows of units that are off, until they come back"}
    grown: ClassVar[str] = "at its own value: rows as they were, columns one step off zero"

    def skip(self, task: Task) -> str | None:
        return refusal(SparseModel(task.build(0), task.example(), task.dense), self.sparsity)

    @property
    def grain(self) -> int:
        return max(weight(self.model, part) for part in parts(self.model)[1])

    def setup(self, gradients: Gradients) -> None:
        for part, number in plan(self.model, self.sparsity).items():
            turn_on(self.model, part, random_mask((part.number,), number, self.rng))

    def begin(self, t: int) -> None:
        if self.due(t):
            look(self.model)

    def update(self, t: int) -> None:
        for part in units(self.model):
            turn_on(self.model, part, chosen(self.model, part, self.fraction(t)))

    def finish(self) -> None:
        for layer in self.layers:
            clear(layer)


# ---- units of the network --------------------------------------------------------------------------------------------


def parts(model: SparseModel) -> tuple[list[Units], list[Units]]:
    """Attentions, and pairs of linear layers, all of whose weights are Layers."""
    names = {layer.name for layer in model.layers}
    found = (heads.attention(model.net), heads.hidden(model.net))
    attentions, pairs = ([p for p in some if {*p.inputs, p.output} <= names] for some in found)
    return attentions, pairs


def units(model: SparseModel) -> list[Units]:
    """All parts."""
    attentions, pairs = parts(model)
    return attentions + pairs


def weight(model: SparseModel, part: Units) -> int:
    """How many weights one unit has."""
    return sum(model[name].numel for name in (*part.inputs, part.output)) // part.number


def plan(model: SparseModel, sparsity: float) -> dict[Units, int]:
    """How many units of each part are active: as many weights as nearly as neurons allow; ValueError if too few."""
    if reason := refusal(model, sparsity):
        raise ValueError(reason)
    attentions, pairs = parts(model)
    each = {part: weight(model, part) for part in attentions + pairs}
    total = sum(each[part] * part.number for part in each)
    budget = round((1 - sparsity) * model.maskable) - (model.maskable - total)
    number = {part: min(part.number, max(1, round(budget / total * part.number))) for part in attentions}
    budget -= sum(each[part] * n for part, n in number.items())
    ideal = budget / max(1, sum(each[part] * part.number for part in pairs))
    number |= {part: min(part.number, max(1, math.floor(ideal * part.number))) for part in pairs}
    budget -= sum(each[part] * number[part] for part in pairs)
    while free := [part for part in pairs if number[part] < part.number and 2 * budget > each[part]]:
        behind = min(free, key=lambda part: number[part] - ideal * part.number)
        number[behind] += 1
        budget -= each[behind]
    return number


def refusal(model: SparseModel, sparsity: float) -> str | None:
    """Why this network cannot have this sparsity, or None."""
    attentions, pairs = parts(model)
    if not attentions or not pairs:
        return "s2vite: this network has no attention heads with hidden neurons behind them that may be sparse"
    each = {part: weight(model, part) for part in attentions + pairs}
    least = model.maskable - sum(n * (part.number - 1) for part, n in each.items())
    if round((1 - sparsity) * model.maskable) < least:
        most = math.floor(1000 * (1 - least / model.maskable)) / 1000
        return f"s2vite: with one head and one neuron in each block the sparsity is {most:g}; run at that or less"
    return None


# ---- changing which are on -------------------------------------------------------------------------------------------


def look(model: SparseModel) -> None:
    """Let the next pass read the rows of every unit, and compute the gradients of its columns."""
    for part in units(model):
        model[part.output].grad_mask = None
        for name in part.inputs:
            model[name].forward_mask = None


def chosen(model: SparseModel, part: Units, fraction: float) -> Tensor:
    """Which units are active after this share of them was exchanged, (number,)."""
    out = model[part.output]
    assert out.forward_mask is not None
    on = columns(out.forward_mask, part).any(1)
    moved = math.ceil(fraction * int(on.sum()))
    score = taylor(out, part) if part in parts(model)[0] else size(model, part)
    kept = top(score.masked_fill(~on, -math.inf), int(on.sum()) - moved)
    return grow(kept, columns(out.grad, part).abs().sum(1), moved)


def turn_on(model: SparseModel, part: Units, on: Tensor) -> None:
    """Make these units, (number,), the active ones; columns of all others become zero."""
    for name in (*part.inputs, part.output):
        layer = model[name]
        layer.forward_mask = layer.grad_mask = spread(on.to(layer.parameter.device), layer, part)
    clear(model[part.output])


def clear(layer: Layer) -> None:
    """Forget what no pass reads."""
    if layer.forward_mask is not None:
        layer.forget(~layer.forward_mask)


def spread(on: Tensor, layer: Layer, part: Units) -> Tensor:
    """The mask of a Layer in which the weights of these units, (number,), are active."""
    return on[:, None].expand(part.axes(layer.name, layer.shape)).reshape(layer.shape)


# ---- scores ----------------------------------------------------------------------------------------------------------


def columns(tensor: Tensor, part: Units) -> Tensor:
    """What a tensor of the output's shape has of each unit, (number, entries)."""
    return tensor.t().reshape(part.number, -1)


def taylor(out: Layer, part: Units) -> Tensor:
    """|sum of A dL/dA| over what each unit hands to the output, (number,): by Euler's theorem that of w dL/dw."""
    return (columns(out.weight, part) * columns(out.grad, part)).sum(1).abs()


def size(model: SparseModel, part: Units) -> Tensor:
    """The sum of |w| over all weights of each unit, (number,)."""
    total = columns(model[part.output].weight, part).abs().sum(1)
    for name in part.inputs:
        total = total + model[name].weight.abs().view(part.repeats, part.number, -1).sum((0, 2))
    return total
