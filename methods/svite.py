"""S2ViTE: attention heads and hidden neurons of a transformer are dropped and grown as wholes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dstbench.methods.allocate import random_mask, top
from dstbench.methods.dynamic import SET, grow
from dstbench.suite import heads
from dstbench.suite.heads import Units
from dstbench.suite.layer import Layer
from dstbench.suite.method import Gradients
from dstbench.suite.model import SparseModel
from dstbench.suite.task import Task


@dataclass
class S2ViTE(SET):
    """SET on whole heads (rows of queries, keys and values, columns of the output) and hidden neurons of transformers.

    Each attention and each pair of linear layers starts with random units, and an update drops the least important and
    grows as many: heads by the Taylor score |A dL/dA|, A what the head hands to the output, neurons by the sum of the
    sizes of their weights; both grow by the sum of the sizes of their gradients. All other Layers stay dense. Heads
    have the density that the target leaves them, one an attention at least; neurons make up for the rest, and where
    there are not enough of them, heads.

    Passes: read the weights of active units and compute their gradients. That of an update also reads the rows of the
        others and computes the gradients of their columns, which are zero: what it computes is the same.
    FLOPs: 3 f_S a step, and at an update the rows and columns of all units besides, as for `rigl`; the paper reports
        inference alone.
    Defaults: the code's: `alpha` 0.5 and `floor` 0.005 (DeiT-Small), updates end at 0.8 of the run. Its
        period, 15 000 steps, is 1 % of its run: here the recipe's. Its cosine ends with the run, here with updates.
    Ambiguous: the code drops rows of queries, keys and values alone and leaves the output dense, and lets all weights
        of a neuron start at zero, where they have no gradient but by a bias. Here rows start as they were when last
        read, or at first, but for weight decay at updates, and columns one step off zero: the update's pass computes
        their gradients for that. The score of heads is summed over the batch before its size is taken: then it is |sum
        of w dL/dw| over the head's columns. Scores are taken before the step, which an update follows. Counts are
        rounded up, as in the code. What just went may come back, with value and state.
    Reference: Chen et al., arXiv 2106.04533, section 3.3, and its code.
    """

    alpha: float = 0.5
    stop: float = 0.8
    floor: float = 0.005
    after_step: ClassVar[bool] = False  # type: ignore[misc]
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
        scores = importance(self.model)
        self.optimizer.step()
        exchange(self.model, scores, self.fraction(t))

    def finish(self) -> None:
        clear(self.layers)


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
    """How many units of each part are active, one at least; ValueError where that misses by more than a neuron."""
    attentions, pairs = parts(model)
    if not attentions or not pairs:
        raise ValueError(
            "s2vite: this network has no attention heads with hidden neurons behind them that may be sparse"
        )
    each = {part: weight(model, part) for part in attentions + pairs}
    total = sum(each[part] * part.number for part in each)
    wanted = round((1 - sparsity) * model.maskable) - (model.maskable - total)
    number = {part: min(part.number, max(1, round(wanted / total * part.number))) for part in attentions}
    least, most = sum(each[part] for part in pairs), sum(each[part] * part.number for part in pairs)
    budget = wanted - sum(each[part] * n for part, n in number.items())
    while moves := [(p, d) for p in attentions for d in (1, -1) if 1 <= number[p] + d <= p.number]:
        part, d = min(moves, key=lambda move: beyond(budget - move[1] * each[move[0]], least, most))
        if beyond(budget - d * each[part], least, most) >= beyond(budget, least, most):
            break
        number[part], budget = number[part] + d, budget - d * each[part]
    ideal = budget / most
    number |= {part: min(part.number, max(1, math.floor(ideal * part.number))) for part in pairs}
    budget -= sum(each[part] * number[part] for part in pairs)
    while free := [part for part in pairs if number[part] < part.number and 2 * budget > each[part]]:
        behind = min(free, key=lambda part: number[part] - ideal * part.number)
        number[behind] += 1
        budget -= each[behind]
    if abs(budget) > max(each[part] for part in pairs):
        near = 1 - (round((1 - sparsity) * model.maskable) - budget) / model.maskable
        raise ValueError(
            f"s2vite: whole heads and neurons of this network, one of each a block at least, cannot have a sparsity of "
            f"{sparsity:g}; the nearest found is {near:.4f}, run at that"
        )
    return number


def refusal(model: SparseModel, sparsity: float) -> str | None:
    """Why this network cannot have this sparsity, or None."""
    try:
        plan(model, sparsity)
    except ValueError as why:
        return str(why)
    return None


def beyond(value: int, least: int, most: int) -> int:
    """How far a number is from a range."""
    return max(least - value, value - most, 0)


# ---- changing which are on -------------------------------------------------------------------------------------------


def look(model: SparseModel) -> None:
    """Let the next pass read the rows of every unit, and compute the gradients of its columns."""
    for part in units(model):
        model[part.output].grad_mask = None
        for name in part.inputs:
            model[name].forward_mask = None


def exchange(model: SparseModel, scores: Mapping[Units, Tensor], fraction: float) -> None:
    """Drop this share of the active units of each part, those of least score, and grow as many."""
    for part, score in scores.items():
        turn_on(model, part, chosen(model[part.output], part, score, fraction))


def chosen(out: Layer, part: Units, score: Tensor, fraction: float) -> Tensor:
    """Which units, (number,), are active after this share of them, those of least score, was exchanged."""
    assert out.forward_mask is not None
    on = columns(out.forward_mask, part).any(1)
    moved = math.ceil(fraction * int(on.sum()))
    kept = top(score.masked_fill(~on, -math.inf), int(on.sum()) - moved)
    return grow(kept, columns(out.grad, part).abs().sum(1), moved)


def turn_on(model: SparseModel, part: Units, on: Tensor) -> None:
    """Make these units, (number,), the active ones; columns of all others become zero."""
    for name in (*part.inputs, part.output):
        layer = model[name]
        layer.forward_mask = layer.grad_mask = spread(on.to(layer.parameter.device), layer, part)
    clear([model[part.output]])


def clear(layers: Sequence[Layer]) -> None:
    """Forget what no pass reads."""
    for layer in layers:
        if layer.forward_mask is not None:
            layer.forget(~layer.forward_mask)


def spread(on: Tensor, layer: Layer, part: Units) -> Tensor:
    """The mask of a Layer in which the weights of these units, (number,), are active."""
    return on[:, None].expand(part.axes(layer.name, layer.shape)).reshape(layer.shape)


# ---- scores ----------------------------------------------------------------------------------------------------------


def importance(model: SparseModel) -> dict[Units, Tensor]:
    """What units of each part are dropped by, (number,)."""
    attentions, pairs = parts(model)
    found = {part: taylor(model[part.output], part) for part in attentions}
    return found | {part: size(model, part) for part in pairs}


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
