"""Recipe: the rules under which a task trains, the same for every method."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from dstbench.suite.values import number, typed
from dstbench.suite.words import shown

LARGEST = 10**12  # of steps, and of images in a batch
KINDS = ("sgd", "adam")
SCHEDULES = ("cosine", "poly", "tanh")  # timm's that are pure functions of the step


@dataclass(frozen=True)
class Recipe:
    """Steps, batch, optimiser and schedule of a task at full budget.

    `lr` and `weight_decay` have an entry for each kind of optimiser, `sgd` and `adam`, tuned on dense training alone;
    `plain_scale` caps lr / (1 - momentum), the rate of rules without momentum. `optimizer` is the kind that methods
    without a kind of their own use. `warmup` is a share of the steps, `clip` a bound on the gradient's norm (0: none),
    `accumulate` the number of micro-batches a step, `precision` fp32, bf16 or fp16. ValueError for an unknown name and
    for sizes that do not fit.
    """

    steps: int
    batch: int
    lr: Mapping[str, float]
    weight_decay: Mapping[str, float] = field(default_factory=lambda: {"sgd": 5e-4, "adam": 0.05})
    plain_scale: float = 1.0
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    schedule: str = "cosine"
    warmup: float = 0.0
    label_smoothing: float = 0.0
    clip: float = 0.0
    accumulate: int = 1
    precision: str = "fp32"
    compile: bool = False

    def __post_init__(self) -> None:
        typed("recipe", self)
        for name in ("lr", "weight_decay"):
            if not isinstance(given := getattr(self, name), Mapping):
                raise ValueError(
                    f"recipe.{name} is {shown(given)}; give one for each kind: {{'sgd': ..., 'adam': ...}}"
                )
            object.__setattr__(self, name, {kind: _rate(name, kind, r) for kind, r in given.items()})
        for name, choices in (("optimizer", KINDS), ("precision", ("fp32", "bf16", "fp16"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"recipe.{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"recipe.schedule is {self.schedule!r}; choose one of {', '.join(SCHEDULES)}")
        for name, good, wanted in (
            ("momentum", 0 <= self.momentum < 1, "a factor in [0, 1)"),
            ("warmup", 0 <= self.warmup < 1, "a share of the steps in [0, 1)"),
            ("clip", 0 <= self.clip < math.inf, "a norm, or 0 for none"),
            ("plain_scale", 0 < self.plain_scale < math.inf, "a factor above 0"),
            ("label_smoothing", 0 <= self.label_smoothing <= 1, "a share in [0, 1]"),
        ):
            if not good:
                raise ValueError(f"recipe.{name} is {getattr(self, name)}; give {wanted}")
        for name in ("steps", "batch", "accumulate"):
            if not 1 <= getattr(self, name) <= LARGEST:
                raise ValueError(
                    f"recipe.{name} is {shown(getattr(self, name))}; at least 1 is needed, at most {LARGEST}"
                )
        if self.batch % self.accumulate:
            raise ValueError(f"recipe.batch {self.batch} does not split into {self.accumulate} equal micro-batches")

    def scaled(self, budget: float) -> Recipe:
        """The same recipe with `budget` times the steps, at least one."""
        return replace(self, steps=max(1, round(self.steps * budget)))

    @property
    def period(self) -> int:
        """Steps from one update of the topology to the next: 100, or fewer so that 30 updates fit, but at least 4."""
        return max(4, min(100, self.steps // 30))

    @cached_property
    def _probe(self) -> tuple[torch.optim.Optimizer, Any]:
        from timm.scheduler import create_scheduler_v2

        probe = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        warmup = round(self.warmup * self.steps)
        scheduler, _ = create_scheduler_v2(
            probe,
            sched=self.schedule,
            num_epochs=max(1, self.steps - warmup),
            warmup_epochs=warmup,
            warmup_prefix=True,
            warmup_lr=1.0 / max(1, warmup),
            cooldown_epochs=0,
            min_lr=0.0,
            updates_per_epoch=1,
            step_on_epochs=False,
        )
        return probe, scheduler

    def factor(self, t: int) -> float:
        """The schedule's factor on the learning rate at step t, a pure function of t."""
        probe, scheduler = self._probe
        scheduler.step_update(t)
        return probe.param_groups[0]["lr"]

    def make_optimizer(self, groups: list[dict[str, Any]], kind: str) -> torch.optim.Optimizer:
        """SGD with momentum or AdamW through timm's factory, on parameter groups of ours."""
        from timm.optim import create_optimizer_v2

        name = "adamw" if kind == "adam" else "sgd" if self.nesterov else "momentum"
        decay = self.weight_decay[kind]
        return create_optimizer_v2(groups, opt=name, lr=self.lr[kind], weight_decay=decay, momentum=self.momentum)


def _rate(name: str, kind: str, value: Any) -> float:
    try:
        found = value if type(value) is int else number(value, f"recipe.{name}[{kind!r}] is")
    except TypeError as error:
        raise ValueError(str(error)) from None
    if not math.isfinite(found):
        raise ValueError(f"recipe.{name}[{kind!r}] is {found}; give a finite number")
    return found
