"""Checks of the two declarations: what a pass reads, what it computes, and what lives outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from dstbench.suite.checks.subject import STEPS, NotChecked, Subject, around_begin, around_step, few, same_mask
from dstbench.suite.layer import Layer
from dstbench.suite.method import Method
from dstbench.suite.train import Training

Factory = Callable[[list[dict[str, Any]], float], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Factory] = {
    "sgd": lambda groups, lr: torch.optim.SGD(groups, lr, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda groups, lr: torch.optim.AdamW(groups, lr / 10, weight_decay=0.1),
    "rmsprop": lambda groups, lr: torch.optim.RMSprop(groups, lr / 10, momentum=0.9, centered=True, weight_decay=1e-2),
    "nadam": lambda groups, lr: torch.optim.NAdam(groups, lr / 10, weight_decay=1e-2),
}
CLOSE = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 3e-2}  # of the largest gradient of a Layer: sums in another order


def masks_are_not_edited(subject: Subject) -> str:
    """A declared mask stays as it is, edits that torch does not count (`.data`, NumPy) included."""
    training, wrong = subject.training(), list[str]()
    seen: dict[str, tuple[int, list[Tensor | None]]] = {}

    def look(training: Training, t: int) -> None:
        for layer in training.method.layers:
            masks = [layer.forward_mask, layer.grad_mask]
            revision, before = seen.get(layer.name, (-1, masks))
            if layer.revision != revision:
                seen[layer.name] = layer.revision, [None if m is None else m.clone() for m in masks]
            elif not all(map(same_mask, masks, before)):
                wrong.append(f"{layer.name}: a mask was edited after it was declared, by step {t}: assign a new one")

    with around_begin(training, before=look, after=look), around_step(training, after=look):
        training.run()
    return few(wrong)


def gradients_are_those_declared(subject: Subject) -> str:
    """Zero outside grad_mask, and inside it those of autograd at the weights that the pass reads."""
    training, wrong = subject.training(), list[str]()
    if training.book.source == "self-reported":
        raise NotChecked("it makes several passes a step, and `grad` holds what it left there")
    method, closeness = training.method, CLOSE[training.recipe.precision]
    descend = method.descend

    def compared(batch: Any) -> Tensor:
        t, scale, state = training.t, training.scale, torch.get_rng_state()
        buffers = {name: buffer.clone() for name, buffer in training.model.net.named_buffers()}
        loss = descend(batch)
        for layer in method.layers:
            if layer.grad_mask is not None and layer.grad[~layer.grad_mask].any():
                wrong.append(f"{layer.name}: gradient outside grad_mask at step {t}")
        # Where fp16 overflowed the pass was repeated, at another scale and random state.
        if scale == training.scale and (t in (0, 1, STEPS // 2, STEPS - 1) or _special(method)):
            for layer, exact in zip(method.layers, _autograd(training, batch, state, buffers), strict=True):
                # What streams is gone but for what is stored.
                inside = layer.stored if layer.streaming else layer.grad_mask
                exact = exact if inside is None else exact.masked_fill(~inside, 0)
                gap = float((layer.grad - exact).abs().max())
                if gap > closeness * max(1e-3, float(exact.abs().max())):
                    wrong.append(f"{layer.name}: gradient is {gap:.3g} from autograd's at step {t}")
        return loss

    method.descend = compared  # type: ignore[method-assign]
    training.run()
    return few(wrong)


def _special(method: Method) -> bool:
    """Whether the last pass read some weights and computed the gradient of others."""
    return any(layer.grad_mask is not layer.forward_mask for layer in method.layers)


def _read(training: Training) -> dict[str, Tensor]:
    """What a pass reads of every parameter, by its name."""
    layers = {layer.key: layer for layer in training.model.layers}
    found = {}
    for name, parameter in training.model.net.named_parameters():
        layer = layers.get(name)
        value = parameter.detach() if layer is None else layer.weight
        if layer is not None and layer.forward_mask is not None:
            value = value.masked_fill(~layer.forward_mask, 0)
        found[name] = value.clone().requires_grad_()
    return found


def _autograd(training: Training, batch: Any, state: Tensor, buffers: dict[str, Tensor]) -> list[Tensor]:
    """Gradients of the loss by autograd alone, on the same batch, for the Layers."""
    weights = _read(training)

    def outputs(inputs: Tensor) -> Any:
        return torch.func.functional_call(training.model.net, {**weights, **buffers}, (inputs,))

    keys = [weights[layer.key] for layer in training.model.layers]
    total = [torch.zeros_like(key) for key in keys]
    parts, scale, after = training.recipe.accumulate, training.scale, torch.get_rng_state()
    torch.set_rng_state(state)
    for inputs, targets in zip(batch[0].chunk(parts), batch[1].chunk(parts), strict=True):
        with training.autocast():
            loss = training.task.loss(outputs, (inputs, targets)) / parts  # type: ignore[arg-type]
        found = torch.autograd.grad(loss * scale, keys, allow_unused=True, materialize_grads=True)
        total = [a + b / scale for a, b in zip(total, found, strict=True)]
    torch.set_rng_state(after)
    return total


def unread_weights_have_no_influence(subject: Subject) -> str:
    """The output, in train and evaluation mode, does not change with weights outside forward_mask, all run long."""
    training = subject.training()
    for until in (STEPS // 4, STEPS // 2, 3 * STEPS // 4, STEPS):
        training.run(until=until)
        for mode in ("train", "evaluation"):
            if _influenced(training, mode):
                return f"after step {until}, in {mode} mode the output changes with weights outside forward_mask"
    return ""


@torch.no_grad()
def _influenced(training: Training, mode: str) -> bool:
    """Whether the output changes with weights that are not read; leaves the training as it was."""
    model, batch = training.model, training._move(next(training.task.batches("valid", 0)))[0]
    saved = [layer.parameter.detach().clone() for layer in model.layers]
    buffers = {name: buffer.clone() for name, buffer in model.net.named_buffers()}
    model.net.train(mode == "train")
    outputs = []
    for value in (0.0, 1e3):
        for layer, stored in zip(model.layers, saved, strict=True):
            layer.parameter.copy_(stored)
            if layer.forward_mask is not None:
                layer.parameter.masked_fill_(layer.kernel.store(layer, ~layer.forward_mask), value)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            outputs.append(model(batch))
    for layer, stored in zip(model.layers, saved, strict=True):
        layer.parameter.copy_(stored)
    for name, buffer in model.net.named_buffers():
        buffer.copy_(buffers[name])
    model.net.train()
    return not torch.equal(*outputs)


def nothing_lives_outside(subject: Subject) -> str:
    """Values and optimiser state are zero outside both masks, except what `keeps` names, with any optimiser."""
    own = type(subject.method()).make_optimizer is not Method.make_optimizer
    for kind, factory in {"its own": None}.items() if own else OPTIMIZERS.items():
        training, wrong = _with_optimizer(subject, factory), list[str]()

        def look(training: Training, t: int, wrong: list[str] = wrong, kind: str = kind) -> None:
            for layer in training.method.layers:
                wrong.extend(f"{layer.name}: {s} at step {t} ({kind})" for s in strays(layer, training.method))

        with around_step(training, after=look):
            training.run(until=STEPS if kind in ("sgd", "its own") else STEPS // 2)
        if wrong:
            return few(wrong)
    return ""


def _with_optimizer(subject: Subject, factory: Factory | None) -> Training:
    if factory is None:
        return subject.training()
    training = subject.training(ready=False)
    method, model = training.method, training.model
    method.optimizer = factory(model.groups(), training.recipe.lr[method.kind])
    method.lr = lambda t: method.optimizer.defaults["lr"]  # type: ignore[method-assign]
    model.attach(method.optimizer, method.keeps)
    training.setup()
    return training


def strays(layer: Layer, method: Method) -> Iterator[str]:
    """What is not zero outside the Layer's masks and not kept."""
    if layer.stored is None:
        return
    outside = ~layer.stored
    for name, tensor in layer.tensors().items():
        if name not in method.keeps and tensor[outside].any():
            yield f"{name} is not zero outside forward_mask | grad_mask (declare it in `keeps`, or let project() run)"


def finish_prunes_nothing(subject: Subject) -> str:
    """`finish` leaves what is read as it is and keeps the invariant; the last score is that of the trained network."""
    training = subject.training()
    training.run()
    layers = training.method.layers
    before = [(y.forward_mask, _alive(y)) for y in layers]
    training.method.finish()
    wrong = []
    for layer, (mask, alive) in zip(layers, before, strict=True):
        if not same_mask(mask, layer.forward_mask):
            wrong.append(f"{layer.name}: finish() changes forward_mask: choose what is read in begin or step")
        elif (left := _alive(layer)) < alive:
            wrong.append(f"{layer.name}: finish() sets {alive - left} weights to zero: prune in begin or step")
        wrong += [f"{layer.name}: after finish() {what}" for what in strays(layer, training.method)]
    return few(wrong)


def _alive(layer: Layer) -> int:
    """How many weights that a pass reads are not zero."""
    weight = layer.weight if layer.forward_mask is None else layer.weight.masked_fill(~layer.forward_mask, 0)
    return int(weight.count_nonzero())
