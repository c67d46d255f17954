"""The check of where a weight starts that a pass has not read before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dstbench.suite.checks.subject import Subject, after_optimizer, around_begin, few
from dstbench.suite.layer import Layer
from dstbench.suite.method import STARTS
from dstbench.suite.train import Training

LENGTHS = 4  # a method may choose the weights with the longest steps


def grown_weights_start_as_declared(subject: Subject) -> str:
    """At zero, value and state, unless the class says otherwise in `grown`; then as the first words of that say."""
    training = subject.training()
    said = training.method.grown
    rule = next((rule for words, rule in RULES.items() if said.startswith(words)), None)
    if said and rule is None:
        return f"`grown` is {said!r}: begin it with one of {', '.join(map(repr, STARTS))}, which can be checked"
    watch = _Watch(training, rule or _wholly_zero)
    after_optimizer(training, watch.hold)
    with around_begin(training, after=watch.look):
        training.run()
    if said and watch.new and not watch.moved and not watch.wrong:
        return f"`grown` is {said!r}, but all start at zero, value and state: leave it out"
    return few(watch.wrong)


@dataclass
class Start:
    """What one Layer reads for the first time, `new`, and its values: now, a step ago, and after the optimiser's step.

    `kept` is what was read a step ago and is now.
    """

    layer: Layer
    new: Tensor
    kept: Tensor
    now: dict[str, Tensor]
    before: Tensor
    held: Tensor


@dataclass
class _Watch:
    """Looks at every Layer before each pass."""

    training: Training
    rule: Callable[[Start], str]
    wrong: list[str] = field(default_factory=list)
    new: int = 0
    moved: int = 0

    def __post_init__(self) -> None:
        self.hold()
        self.masks = [layer.forward_mask for layer in self.training.method.layers]
        self.before = list(self.held)

    def hold(self) -> None:
        """Remember values as the optimiser leaves them."""
        self.held = [layer.weight.clone() for layer in self.training.method.layers]

    def look(self, training: Training, t: int) -> None:
        """Hold what is new against the rule."""
        for i, layer in enumerate(training.method.layers):
            last, mask, before = self.masks[i], layer.forward_mask, self.before[i]
            self.masks[i], self.before[i] = mask, layer.weight.clone()
            if last is None or mask is last or layer.shape != last.shape:
                continue
            mask = torch.ones_like(last) if mask is None else mask
            start = Start(layer, mask & ~last, mask & last, layer.tensors(), before, self.held[i])
            if count := int(start.new.count_nonzero()):
                self.new += count
                self.moved += sum(int(tensor[start.new].count_nonzero()) for tensor in start.now.values())
                if found := self.rule(start):
                    self.wrong.append(
                        f"{layer.name}: {found}, of {count} weights that step {t} reads for the first time"
                    )
        self.hold()


def _wholly_zero(start: Start) -> str:
    lost = [name for name, tensor in start.now.items() if tensor[start.new].any()]
    return f"{', '.join(lost)} not zero (use Layer.activate, or say in `grown` where they start)" if lost else ""


def _zero(start: Start) -> str:
    return "the value is not zero, as `grown` says" if start.now["weight"][start.new].any() else ""


def _own_value(start: Start) -> str:
    same = torch.equal(start.now["weight"][start.new], start.held[start.new])
    return "" if same else "the value is not what the optimiser's step left there, as `grown` says"


def _one_step(start: Start) -> str:
    """Half of the starts at least lie within some lengths of the longest way that a weight read all along has gone."""
    if start.before[start.new].any():
        return "the value was not zero before, as `grown` says"
    steps = (start.now["weight"] - start.before).abs()
    if not start.kept.any():
        return ""  # nothing to compare with
    size, most = float(steps[start.new].median()), float(steps[start.kept].max())
    if size <= LENGTHS * most:
        return ""
    return f"the value is {size:.3g} from zero, while other weights moved by {most:.3g} at most"


RULES: dict[str, Callable[[Start], str]] = dict(zip(STARTS, (_zero, _own_value, _one_step), strict=True))
