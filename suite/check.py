"""Check a method against the contract on a short real run; each verdict says what a plugin's author can act on."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from suite import registry
from suite.layer import Layer
from suite.method import Method
from suite.task import Task
from suite.train import Training

STEPS = 96


@dataclass(frozen=True)
class Verdict:
    """One check's outcome: its name, whether it held, and what was seen."""

    name: str
    ok: bool
    text: str


class Subject:
    """The method under test, and how to make fresh trainings of it on a shortened task."""

    def __init__(self, name: str, task: str, kernel: str, plugins: Sequence[str]) -> None:
        self.name, self.plugins, self.kernel = name, plugins, kernel
        found: Task = registry.task(task, plugins=plugins)
        found.prepare()
        self.task = replace(found, recipe=replace(found.recipe, steps=STEPS))

    def method(self) -> Method:
        return registry.method(self.name, plugins=self.plugins)

    def training(self, kernel: str = "", method: Method | None = None, ready: bool = True) -> Training:
        training = Training(self.task, method or self.method(), seed=0, kernel=kernel or self.kernel)
        if ready:
            training.setup()
        return training


def check(target: str, task: str = "digits/mlp", kernel: str = "masked") -> list[Verdict]:
    """Run every check on a method's name or on each method of a plugin FILE; RegistryError for an unknown name."""
    plugins = [target] if target.endswith(".py") else []
    names = [target]
    if plugins:
        names = [n for n, entry in registry.methods(plugins).items() if Path(target).name in entry.target]
    return [verdict for name in names for verdict in _check(name, task, kernel, plugins)]


def _check(name: str, task: str, kernel: str, plugins: Sequence[str]) -> Iterator[Verdict]:
    subject = Subject(name, task, kernel, plugins)
    if reason := subject.method().skip(subject.task):
        yield Verdict(f"{name}: skip", True, reason)
        return
    for title, test in CHECKS.items():
        try:
            seen = test(subject)
            yield Verdict(f"{name}: {title}", not seen, seen or "holds")
        except Exception as error:  # a plugin may raise anything: that is the verdict
            yield Verdict(f"{name}: {title}", False, f"{type(error).__name__}: {error}")


# ---- the checks: each returns what is wrong, or "" ----


def parameters_survive_json(subject: Subject) -> str:
    values = subject.method().hyperparameters()
    again = registry.method(subject.name, plugins=subject.plugins, **json.loads(json.dumps(values)))
    changed = [k for k, v in again.hyperparameters().items() if v != values[k]]
    return f"hyper-parameters change on a round trip through JSON: {', '.join(changed)}" if changed else ""


def declarations_hold(subject: Subject) -> str:
    """After every step: zero gradient outside grad_mask; zero values and state outside both masks."""
    training = subject.training()
    method, wrong = training.method, []

    def watch(step: Callable[[int], None]) -> Callable[[int], None]:
        def watched(t: int) -> None:
            for layer in method.layers:
                if layer.grad_mask is not None and layer.grad[~layer.grad_mask].any():
                    wrong.append(f"{layer.name}: gradient outside grad_mask at step {t}")
            step(t)
            for layer in method.layers:
                wrong.extend(f"{layer.name}: {what} at step {t}" for what in _strays(layer, method))

        return watched

    method.step = watch(method.step)  # type: ignore[method-assign, assignment]
    training.run()
    return "; ".join(wrong[:3])


def _strays(layer: Layer, method: Method) -> Iterator[str]:
    if layer.stored is None:
        return
    outside = ~layer.stored
    for name, tensor in layer.tensors().items():
        if name not in method.keeps and tensor[outside].any():
            yield f"{name} is not zero outside forward_mask | grad_mask (declare it in `keeps`, or let project() run)"


def unread_weights_have_no_influence(subject: Subject) -> str:
    training = subject.training()
    training.run(until=STEPS // 2)
    batch = next(subject.task.batches("valid", 0))[0]
    for mode in ("train", "evaluation"):
        training.model.net.train(mode == "train")
        saved, outputs = [layer.parameter.detach().clone() for layer in training.model.layers], []
        for value in (0.0, 1e3):
            with torch.no_grad():
                for layer, stored in zip(training.model.layers, saved, strict=True):
                    layer.parameter.copy_(stored)
                    if layer.forward_mask is not None:
                        layer.parameter.masked_fill_(layer.kernel.store(layer, ~layer.forward_mask), value)
                torch.manual_seed(0)
                outputs.append(training.model(batch))
        if not torch.equal(*outputs):
            return f"in {mode} mode the output changes with weights outside forward_mask"
    return ""


def sparsity_is_on_target(subject: Subject) -> str:
    training = subject.training()
    training.run()
    model, method = training.model, training.method
    empty = [layer.name for layer in model.layers if not layer.nnz()]
    if empty:
        return f"no weight left in {', '.join(empty)}"
    if not method.sparse:
        return ""
    active, wanted = sum(y.nnz() for y in model.layers), round((1 - method.sparsity) * model.maskable)
    return (
        "" if abs(active - wanted) <= max(1, 0.01 * wanted) else f"{active} weights are active, the target is {wanted}"
    )


def resuming_is_bit_exact(subject: Subject) -> str:
    whole, half = subject.training(), subject.training()
    whole.run()
    half.run(until=STEPS // 2 + 1)
    file = io.BytesIO()
    torch.save(half.state(), file)
    file.seek(0)
    again = subject.training(ready=False)
    again.load(torch.load(file, weights_only=True))
    again.run()
    if again.curve != whole.curve or again.book != whole.book:
        return "curve or FLOPs differ after a resume: keep what lasts in Layers, optimiser, rng or memory"
    pairs = zip(whole.model.layers, again.model.layers, strict=True)
    moved = [a.name for a, b in pairs if not torch.equal(a.weight, b.weight)]
    return f"weights differ after a resume in {', '.join(moved)}" if moved else ""


def storages_agree(subject: Subject) -> str:
    curves: list[list[Any]] = []
    for kernel in ("masked", "compact"):
        training = subject.training(kernel)
        training.run(until=STEPS // 2)
        curves.append(training.curve["loss"])
    worst = max(abs(a - b) for a, b in zip(*curves, strict=True))
    return (
        ""
        if worst < 1e-2
        else f"losses under `masked` and `compact` differ by {worst:.3g}: touch weights through Layer"
    )


CHECKS: dict[str, Callable[[Subject], str]] = {
    "hyper-parameters survive JSON": parameters_survive_json,
    "declared masks hold": declarations_hold,
    "unread weights have no influence": unread_weights_have_no_influence,
    "sparsity is on target": sparsity_is_on_target,
    "resuming is bit-exact": resuming_is_bit_exact,
    "storages agree": storages_agree,
}
