"""Checks of what must not matter: storage, loss scale, accumulation, names, odd networks, precision, device."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import field, make_dataclass, replace
from typing import Any

import torch

from dstbench.suite import planfile, registry
from dstbench.suite.checks.bed import MIXED
from dstbench.suite.checks.counts import density_is_near_target, no_layer_is_empty
from dstbench.suite.checks.declared import gradients_are_those_declared, strays, unread_weights_have_no_influence
from dstbench.suite.checks.subject import NotChecked, Recorded, Subject, around_step, few, same_mask
from dstbench.suite.plan import Run, expand
from dstbench.suite.task import Batch, Task
from dstbench.suite.train import Training
from dstbench.suite.values import defaults, plain


def parameters_survive_json(subject: Subject) -> str:
    """Hyper-parameters written to a record and read back build the same method."""
    values = subject.method().hyperparameters()
    again = subject.method(**json.loads(json.dumps(values)))
    changed = [k for k, v in again.hyperparameters().items() if v != values[k]]
    return f"hyper-parameters change on a round trip through JSON: {', '.join(changed)}" if changed else ""


def identity_is_stable(subject: Subject) -> str:
    """A run's key stays when defaults are spelt out, and when the class gets a new field with a default."""
    entry = registry.find("method", subject.name, subject.plugins)
    kind = entry.load()
    if defaults(kind) != defaults(kind):
        return "defaults are others each time they are asked for: give constants as defaults"
    spelt = {k: plain(v) for k, v in {**defaults(kind), **entry.presets}.items() if k != "sparsity" and "." not in k}
    bare = _keys(subject, {})
    for name, value in spelt.items():
        if _keys(subject, {name: value}) != bare:
            return f"to spell out the default {name} = {value!r} changes the key of a run"
    before, after = (
        Run(subject.name, subject.task_name, hyperparameters=registry.nondefault(one, spelt)).key
        for one in (entry, _Longer(**vars(entry)))
    )
    return "" if before == after else "a new field with a default changes the key of old runs"


def _keys(subject: Subject, fields: Mapping[str, Any]) -> list[str]:
    """The keys of the runs that `dstbench run` would make of the method, with these fields set."""
    options = {"methods": [subject.name], "tasks": [subject.task_name], "sparsity": [0.5], "seeds": [0]}
    options |= {"set": {f"{subject.name}.{k}": v for k, v in fields.items()}}  # type: ignore[dict-item]
    found = planfile.read("quick", options, subject.plugins)
    return [run.key for run in expand(found, subject.plugins, subject.data_root)]


class _Longer(registry.Entry):
    """A method whose class has got one more field."""

    def load(self) -> Any:
        kind = super().load()
        longer = make_dataclass(kind.__name__, [("one_more", int, field(default=0, kw_only=True))], bases=(kind,))
        longer.name = kind.name  # type: ignore[attr-defined]
        return longer


def storages_agree(subject: Subject) -> str:
    """Losses and masks are the same under `masked` and `compact`, in float64 where no rounding decides."""
    task = _double(subject.task)
    runs = [Recorded.of(subject.training(task, kernel=k)) for k in ("masked", "compact")]
    return _differ(runs, 1e-6, "touch weights, gradients and state through Layer alone")


def _double(task: Task) -> Task:
    """The task with a network, inputs and targets of float64, whole numbers apart, and no narrower precision."""
    kind = type(task)

    def build(self: Task, seed: int, *width: float) -> torch.nn.Module:
        return kind.build(self, seed, *width).double()

    def batches(self: Task, split: str, seed: int, start: int = 0) -> Iterator[Batch]:
        return ((_wide(x), _wide(y)) for x, y in kind.batches(self, split, seed, start))

    def example(self: Task) -> torch.Tensor:
        return _wide(kind.example(self))

    made: Any = type(kind.__name__, (kind,), {"build": build, "batches": batches, "example": example})
    double = object.__new__(made)
    double.__dict__.update(task.__dict__ | {"recipe": replace(task.recipe, precision="fp32")})
    return double


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _differ(runs: Sequence[Recorded], tolerance: float, mend: str) -> str:
    a, b = runs
    gaps = [abs(x - y) for x, y in zip(a.losses, b.losses, strict=True)]
    first = next((t for t, gap in enumerate(gaps) if gap > tolerance), None)
    if first is not None:
        return f"losses differ by {max(gaps):.3g}, first at step {first}: {mend}"
    return "" if all(map(same_mask, a.masks, b.masks)) else f"masks differ after {len(gaps)} steps: {mend}"


def loss_scale_does_not_matter(subject: Subject) -> str:
    """The scale by which fp16 training keeps gradients from vanishing is out of what a method sees.

    Arithmetic stays fp32 here, in which powers of two come and go without rounding.
    """
    runs = []
    for scale in (2.0**14, 2.0**10):
        training = subject.training(ready=False, precision="fp16")
        training.scale = scale
        training.autocast = nullcontext  # type: ignore[method-assign, assignment]
        training.setup()
        runs.append(Recorded.of(training))
    return _differ(runs, 0.0, "read gradients in step(t), when they are unscaled")


def accumulation_does_not_matter(subject: Subject) -> str:
    """A batch in two parts gives the losses of the whole, and the masks, until rounding tips a tie."""
    modules = list(subject.task.build(0).modules())
    if any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in modules):
        raise NotChecked("the network has batch norm, and the statistics of half a batch are others")
    if any(isinstance(m, torch.nn.modules.dropout._DropoutNd) and m.p for m in modules):
        raise NotChecked("the network has dropout, and halves of a batch drop others")
    if subject.task.recipe.batch % 2:
        raise NotChecked(f"the batch of {subject.task.recipe.batch} has no halves")
    task = _double(subject.task)
    runs = [Recorded.of(subject.training(task, accumulate=n)) for n in (1, 2)]
    return _differ(runs, 1e-5, "read the gradient of the whole batch in step(t), not that of its last part")


def names_do_not_matter(subject: Subject) -> str:
    """The same task under another name gives the identical run."""
    other = Recorded.of(subject.training(replace(subject.task, name="another/name")))
    mend = "a method may not know its task"
    found = _differ([subject.run, other], 0.0, mend)
    return found or ("" if other.training.book == subject.run.training.book else f"FLOPs differ: {mend}")


def odd_networks_train(subject: Subject) -> str:
    """Under bf16, with grouped and dilated convolutions, no bias, a layer used twice and one tied to it.

    Gradients, what is not read, and the target hold there as well.
    """
    odd = replace(subject, given=MIXED)
    if reason := odd.method().skip(MIXED):
        raise NotChecked(reason)
    training, wrong = odd.training(), list[str]()

    def look(training: Training, t: int) -> None:
        for layer in training.method.layers:
            wrong.extend(f"{layer.name}: {what} at step {t}" for what in strays(layer, training.method))

    with around_step(training, after=look):
        training.run()
    lost = [n for n, p in training.model.net.named_parameters() if not p.isfinite().all()]
    wrong += [f"{name} is not finite" for name in lost]
    also = gradients_are_those_declared, unread_weights_have_no_influence, density_is_near_target, no_layer_is_empty
    for test in also:
        with suppress(NotChecked):
            wrong += filter(None, [test(odd)])
    return few(wrong)


def a_gpu_does_the_same(subject: Subject) -> str:
    """On a GPU, where there is one, masks live on the device and counts are those of the CPU."""
    if not torch.cuda.is_available():
        raise NotChecked("no GPU here")
    there = replace(subject, device="cuda")
    run = Recorded.of(there.training())
    off = [y.name for y in run.training.model.layers if y.forward_mask is not None and not y.forward_mask.is_cuda]
    if off:
        return f"the mask of {', '.join(off)} is not on the device"
    worst = max(abs(a - b) for a, b in zip(run.counts, subject.run.counts, strict=True))
    return f"counts differ from those on the CPU by up to {worst}" if worst > run.training.method.grain else ""
