"""S2ViTE: attention heads and hidden neurons of a transformer are dropped and grown as wholes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dstbench.methods.allocate import random_mask, top
from dstbench.methods.checks import valid
from dstbench.methods.dynamic import SET, grow
from dstbench.suite import heads
from dstbench.suite.heads import Units
from dstbench.suite.layer import Layer
from dstbench.suite.method import Gradients
from dstbench.suite.model import SparseModel
from dstbench.suite.task import Task

REGROW = ("output", "columns")  # whose gradient heads grow by


@dataclass
class S2ViTE(SET):
    """SET on whole heads (rows of queries, keys and values, columns of the output) and hidden neurons of transformers.

    Each attention and each pair of linear layers starts with random units, and an update drops the least important and
    grows as many: heads by the Taylor score |A dL/dA|, A what the head hands to the output, neurons by the sum of the
    sizes of their weights. Heads grow by the sum of |dL/dA| over the batch, what A enters being as it was when last
    read, or, with `regrow` "columns", by that of their columns' gradients, as neurons do. All other Layers stay dense.
    Heads have the density that the target leaves them, one an attention at least; neurons make up for the rest, and
    where there are not enough of them, heads.

    Passes: read the weights of active units and compute their gradients. That of an update also reads the rows of the
        other neurons and computes the gradients of their columns, which are zero: what it computes is the same.
    FLOPs: 3 f_S a step, and at an update the rows and columns of all neurons besides, as for `rigl`, and the product
        that gives dL/dA; the paper reports inference alone.
    Defaults: the code's: `alpha` 0.5 and `floor` 0.005 (DeiT-Small), updates end at 0.8 of the run. Its
        period, 15 000 steps, is 1 % of its run: here the recipe's. Its cosine ends with the run, here with updates.
    Ambiguous: the code drops rows of queries, keys and values alone and leaves the output dense, and lets all weights
        of what grows start at zero, where neurons have no gradient but by a bias, and queries and keys of heads none
        of each other. Here heads come back whole, rows and columns, as they were when last read, or at first; neurons
        have rows as they were, but for weight decay at updates, and columns one step off zero: the update's pass
        computes their gradients for that. In the code the columns of a head that is off are trained on. Taylor scores
        are summed over the batch before their size is taken, which the code does by sample: then it is |sum of w
        dL/dw| over the head's columns. Scores are taken before the step, which an update follows. Counts are rounded
        up, as in the code. What just went may come back, with value and state.
    Reference: Chen et al., arXiv 2106.04533, section 3.3, and its code (`Attention._score`).
    """

    alpha: float = 0.5
    stop: float = 0.8
    floor: float = 0.005
    regrow: str = "output"
    after_step: ClassVar[bool] = False  # type: ignore[misc]
    allocation: ClassVar[str] = "uniform"  # type: ignore[misc]
    init: ClassVar[str] = "dense"  # type: ignore[misc]

    name: ClassVar[str] = "s2vite"
    family: ClassVar[str] = "structured"
    citation: ClassVar[str] = "Chen et al., NeurIPS 2021, arXiv 2106.04533"
    version: ClassVar[int] = 2
    keeps: ClassVar[dict[str, str]] = {"weight": "heads and rows of neurons that are off, until they come back"}
    grown: ClassVar[str] = "at its own value: heads and rows as they were, columns of neurons one step off zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        valid(self, regrow=REGROW)

    def skip(self, task: Task) -> str | None:
        if task.recipe.compile and self.regrow == "output":
            return "torch.compile leaves out hooks, by which s2vite sees dL/dA; set recipe.compile to false"
        return refusal(SparseModel(task.build(0), task.example(), task.dense), self.sparsity)

    @property
    def grain(self) -> int:
        return max(weight(self.model, part) for part in parts(self.model)[1])

    def setup(self, gradients: Gradients) -> None:
        for part, number in plan(self.model, self.sparsity).items():
            turn_on(self.model, part, random_mask((part.number,), number, self.rng))
        clear_columns(self.model)

    def due(self, t: int) -> bool:
        return super().due(t + 1)  # an update follows the step of t

    def begin(self, t: int) -> None:
        if self.due(t):
            attentions, pairs = parts(self.model)
            heard = attentions if self.regrow == "output" else []
            look(self.model, pairs if heard else attentions + pairs)
            self.ears = [Ear(self.model, part, self.charge) for part in heard]

    def update(self, t: int) -> None:
        scores, growths = (
            importance(self.model),
            {part: slope(self.model[part.output], part) for part in units(self.model)},
        )
        growths |= {ear.part: ear.close() for ear in self.ears}
        self.optimizer.step()
        exchange(self.model, scores, growths, self.fraction(t + 1))

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


def look(model: SparseModel, some: Sequence[Units]) -> None:
    """Let the next pass read the rows of every unit of these parts, and compute the gradients of its columns."""
    for part in some:
        model[part.output].grad_mask = None
        for name in part.inputs:
            model[name].forward_mask = None


def exchange(
    model: SparseModel, scores: Mapping[Units, Tensor], growths: Mapping[Units, Tensor], fraction: float
) -> None:
    """Drop this share of the active units of each part, those of least score, and grow as many, of largest growth."""
    for part, score in scores.items():
        turn_on(model, part, chosen(model[part.output], part, score, growths[part], fraction))
    clear_columns(model)


def chosen(out: Layer, part: Units, score: Tensor, growth: Tensor, fraction: float) -> Tensor:
    """Which units, (number,), are active after this share of them, those of least score, was exchanged."""
    assert out.forward_mask is not None
    on = columns(out.forward_mask, part).any(1)
    moved = math.ceil(fraction * int(on.sum()))
    kept = top(score.masked_fill(~on, -math.inf), int(on.sum()) - moved)
    return grow(kept, growth, moved)


def turn_on(model: SparseModel, part: Units, on: Tensor) -> None:
    """Make these units, (number,), the active ones."""
    for name in (*part.inputs, part.output):
        layer = model[name]
        layer.forward_mask = layer.grad_mask = spread(on.to(layer.parameter.device), layer, part)


def clear_columns(model: SparseModel) -> None:
    """Forget the columns of neurons that are off."""
    clear([model[part.output] for part in parts(model)[1]])


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


def slope(out: Layer, part: Units) -> Tensor:
    """The sum of |dL/dw| over each unit's columns, (number,); zero where the pass did not compute them."""
    return columns(out.grad, part).abs().sum(1)


class Ear:
    """Hears dL/dA of every head in the passes to come: the gradient of the output times its weight, read or not."""

    def __init__(self, model: SparseModel, part: Units, charge: Callable[[int], None]) -> None:
        self.part, self.out, self.charge = part, model[part.output], charge
        path = self.out.key.rpartition(".")[0]
        outer = model.net.get_submodule(path.rpartition(".")[0])
        # torch's own attention reads the weight of its output without calling the module
        speaker = outer if isinstance(outer, nn.MultiheadAttention) else model.net.get_submodule(path)
        self.total = self.out.weight.new_zeros(part.number)
        self.handle = speaker.register_forward_hook(self.listen)

    def listen(self, module: nn.Module, inputs: object, outputs: Any) -> None:
        """Wait for the gradient of what the attention returns."""
        result = outputs[0] if isinstance(outputs, tuple) else outputs
        if result.requires_grad:
            result.register_hook(self.hear)

    @torch.no_grad()
    def hear(self, grad: Tensor) -> None:
        """Add |dL/dA| over samples and places; a pass of fp16 that overflowed is repeated, and not heard."""
        weight = self.out.weight
        rows = grad.reshape(-1, len(weight)).to(weight.dtype)
        found = (rows @ weight).abs().sum(0).view(self.part.number, -1).sum(1)
        self.charge(2 * len(rows) * weight.numel())
        if bool(found.isfinite().all()):
            self.total += found

    def close(self) -> Tensor:
        """What was heard, (number,)."""
        self.handle.remove()
        return self.total


def size(model: SparseModel, part: Units) -> Tensor:
    """The sum of |w| over all weights of each unit, (number,)."""
    total = columns(model[part.output].weight, part).abs().sum(1)
    for name in part.inputs:
        total = total + model[name].weight.abs().view(part.repeats, part.number, -1).sum((0, 2))
    return total
