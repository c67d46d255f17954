"""Checks of what must not matter: storage, loss scale, accumulation, names, odd networks, precision, device."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import field, make_dataclass, replace
from typing import Any

import torch

from suite import registry
from suite.checks.bed import MIXED
from suite.checks.declared import strays
from suite.checks.subject import STEPS, NotChecked, Recorded, Subject, around_step, few, same_mask
from suite.plan import Run
from suite.task import Batch, Task
from suite.train import Training
from suite.values import defaults, plain


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
    spelt = {k: plain(v) for k, v in {**defaults(kind), **entry.presets}.items()}
    left = registry.nondefault(entry, spelt)
    if left or defaults(kind) != defaults(kind):
        return f"defaults spelt out change the key by {', '.join(left) or 'themselves'}: give constants as defaults"
    longer = make_dataclass(kind.__name__, [("one_more", int, field(default=0, kw_only=True))], bases=(kind,))
    longer.name = kind.name  # type: ignore[attr-defined]
    made = {**entry.presets, "sparsity": 0.5}
    before, after = (Run(subject.name, subject.task_name, hyperparameters=_own(k, made)).key for k in (kind, longer))
    return "" if before == after else "a new field with a default changes the key of old runs"


def _own(kind: type, made: dict[str, Any]) -> dict[str, Any]:
    standard = defaults(kind)
    return {k: plain(v) for k, v in kind(**made).hyperparameters().items() if k not in standard or standard[k] != v}


def storages_agree(subject: Subject) -> str:
    """Losses and masks are the same under `masked` and `compact`, in float64 where no rounding decides."""
    task = _double(subject.task)
    runs = [Recorded.of(subject.training(task, kernel=k), until=STEPS // 2) for k in ("masked", "compact")]
    return _differ(runs, 1e-6, "touch weights, gradients and state through Layer alone")


def _double(task: Task) -> Task:
    """The task with a network and inputs of float64."""
    kind = type(task)

    def build(self: Task, seed: int, width: float = 1.0) -> torch.nn.Module:
        return kind.build(self, seed, width).double()

    def batches(self: Task, split: str, seed: int, start: int = 0) -> Iterator[Batch]:
        return ((inputs.double(), targets) for inputs, targets in kind.batches(self, split, seed, start))

    def example(self: Task) -> torch.Tensor:
        return kind.example(self).double()

    made: Any = type(kind.__name__, (kind,), {"build": build, "batches": batches, "example": example})
    double = object.__new__(made)
    double.__dict__.update(task.__dict__)
    return double


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
        runs.append(Recorded.of(training, until=STEPS // 2))
    return _differ(runs, 0.0, "read gradients in step(t), when they are unscaled")


def accumulation_does_not_matter(subject: Subject) -> str:
    """A batch in two parts gives the losses of the whole, and the masks, until rounding tips a tie."""
    if any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in subject.task.build(0).modules()):
        raise NotChecked("the network has batch norm, and the statistics of half a batch are others")
    if subject.task.recipe.batch % 2:
        raise NotChecked(f"the batch of {subject.task.recipe.batch} has no halves")
    task = _double(subject.task)
    runs = [Recorded.of(subject.training(task, accumulate=n), until=STEPS // 2) for n in (1, 2)]
    return _differ(runs, 1e-5, "read the gradient of the whole batch in step(t), not that of its last part")


def names_do_not_matter(subject: Subject) -> str:
    """The same task under another name gives the identical run."""
    other = Recorded.of(subject.training(replace(subject.task, name="another/name")))
    mend = "a method may not know its task"
    found = _differ([subject.run, other], 0.0, mend)
    return found or ("" if other.training.book == subject.run.training.book else f"FLOPs differ: {mend}")


def odd_networks_train(subject: Subject) -> str:
    """Under bf16, with grouped and dilated convolutions, no bias, a layer used twice and one tied to it."""
    if reason := subject.method().skip(MIXED):
        raise NotChecked(reason)
    training, wrong = subject.training(MIXED), list[str]()

    def look(training: Training, t: int) -> None:
        for layer in training.method.layers:
            wrong.extend(f"{layer.name}: {what} at step {t}" for what in strays(layer, training.method))

    with around_step(training, after=look):
        training.run()
    lost = [n for n, p in training.model.net.named_parameters() if not p.isfinite().all()]
    wrong += [f"{name} is not finite" for name in lost]
    wrong += [f"no weight is left in {y.name}" for y in training.model.layers if not y.nnz()]
    return few(wrong)


def a_gpu_does_the_same(subject: Subject) -> str:
    """On a GPU, where there is one, masks live on the device and counts are those of the CPU."""
    if not torch.cuda.is_available():
        raise NotChecked("no GPU here")
    there = replace(subject, device="cuda", wrong=[])
    run = Recorded.of(there.training())
    off = [y.name for y in run.training.model.layers if y.forward_mask is not None and not y.forward_mask.is_cuda]
    if off:
        return f"the mask of {', '.join(off)} is not on the device"
    worst = max(abs(a - b) for a, b in zip(run.counts, subject.run.counts, strict=True))
    return f"counts differ from those on the CPU by up to {worst}" if worst > run.training.method.grain else ""
