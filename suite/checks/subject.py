"""The method under test, and trainings of it on a shortened task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from dstbench.suite import check, plan, registry
from dstbench.suite.layer import Layer
from dstbench.suite.method import Method
from dstbench.suite.task import Task
from dstbench.suite.train import Training

SPARSITIES = (0.9, 0.75, 0.5)  # a structure may exist at some only
STEPS = 96  # the recipe's period is then 4: many updates of the topology
Watch = Callable[[Training, int], None]


class NotChecked(Exception):
    """A check that does not apply here, and why."""


@dataclass
class Subject:
    """One method by name, on a task cut to `STEPS` steps, under a kernel; `given` is a task in place of a named one."""

    name: str
    task_name: str
    kernel: str = "masked"
    plugins: Sequence[str] = ()
    data_root: str | None = None
    device: str = "cpu"
    given: Task | None = None

    @classmethod
    def of(cls, given: check.Given) -> Subject:
        """The subject that `dstbench check` was given, on the first of its tasks that the method does not skip."""
        found = [cls(given.method, name, given.kernel, given.plugins, given.data_root) for name in given.tasks]
        return next((subject for subject in found if not subject.skipped()), found[0])

    @cached_property
    def task(self) -> Task:
        """The task, shortened."""
        found = self.given or plan.own_data(registry.task(self.task_name, self.plugins), self.data_root, False)
        found.prepare()
        return replace(found, recipe=replace(found.recipe, steps=STEPS))

    @cached_property
    def files(self) -> set[str]:
        """The files that the method is written in."""
        with suppress(registry.RegistryError):
            return check.files_of(registry.find("method", self.name, self.plugins).load())
        return set(self.plugins)

    @cached_property
    def sparsity(self) -> dict[str, float]:
        """The default sparsity, or the first of `SPARSITIES` at which the method does not skip the task."""
        made = (registry.method(self.name, plugins=self.plugins, sparsity=s).skip(self.task) for s in SPARSITIES)
        return next(({"sparsity": s} for s, why in zip(SPARSITIES, made, strict=True) if why is None), {})

    def skipped(self) -> bool:
        """Whether the method says that it cannot run the task; one that cannot say so does not."""
        with suppress(*check.RAISED):
            return self.method().skip(self.task) is not None
        return False

    def method(self, **fields: Any) -> Method:
        """A new instance, defaults and presets."""
        return registry.method(self.name, plugins=self.plugins, **{**self.sparsity, **fields})

    def training(self, task: Task | None = None, *, ready: bool = True, kernel: str = "", **recipe: Any) -> Training:
        """A new training; `recipe`: other values for the task's; not `ready`: `setup` has not been called."""
        task = task or self.task
        task = replace(task, recipe=replace(task.recipe, **recipe)) if recipe else task
        training = Training(task, self.method(), seed=0, kernel=kernel or self.kernel, device=self.device)
        if ready:
            training.setup()
        return training

    @cached_property
    def run(self) -> Recorded:
        """The undisturbed run that others are compared with."""
        return Recorded.of(self.training())


@dataclass
class Recorded:
    """What a run did: active weights read by each pass, losses, and the training after its last step and `finish`."""

    training: Training
    counts: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, training: Training, until: int | None = None, before: Watch | None = None) -> Recorded:
        """Train; `before` is called before every step."""
        record = cls(training)
        descend = training.method.descend

        def watched(batch: Any) -> Tensor:
            record.counts.append(sum(layer.nnz() for layer in training.model.layers))
            loss = descend(batch)
            record.losses.append(float(loss))
            return loss

        training.method.descend = watched  # type: ignore[method-assign]
        with around_begin(training, before=before or nothing):
            training.run(until=until)
        if until is None:
            training.method.finish()
        return record

    @property
    def masks(self) -> list[Tensor | None]:
        """The forward masks after the last step."""
        return [layer.forward_mask for layer in self.training.model.layers]

    @property
    def weights(self) -> list[Tensor]:
        """The values after the last step, dense."""
        return [layer.weight.clone() for layer in self.training.model.layers]


def nothing(training: Training, t: int) -> None:
    """Watch nothing."""


@contextmanager
def around(hook: str, training: Training, before: Watch = nothing, after: Watch = nothing) -> Iterator[None]:
    """Watch each call of the method's `begin` or `step`, inside."""
    method, call = training.method, getattr(training.method, hook)

    def watched(t: int) -> None:
        before(training, t)
        call(t)
        after(training, t)

    setattr(method, hook, watched)
    try:
        yield
    finally:
        setattr(method, hook, call)


def after_optimizer(training: Training, then: Callable[[], None]) -> None:
    """Call `then` after each step of the training's optimiser."""
    optimizer = training.method.optimizer
    step = optimizer.step

    def watched(*arguments: Any, **named: Any) -> Any:
        out = step(*arguments, **named)
        then()
        return out

    optimizer.step = watched  # type: ignore[method-assign]


around_begin, around_step = partial(around, "begin"), partial(around, "step")


def same_mask(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two masks declare the same entries; None is all."""
    if a is None or b is None:
        return all(m is None or bool(m.all()) for m in (a, b))
    return a.shape == b.shape and torch.equal(a, b)


def active(layers: Sequence[Layer]) -> int:
    """Weights that a pass reads."""
    return sum(layer.nnz() for layer in layers)


def few(found: Sequence[str]) -> str:
    """The first three of what is wrong."""
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")
