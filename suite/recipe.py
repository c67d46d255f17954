"""Recipe: the rules under which a task trains, the same for every method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch

from dstbench.suite import schedules
from dstbench.suite.values import number, typed
from dstbench.suite.words import shown

LARGEST = 10**12  # of steps, and of images in a batch
KINDS = ("sgd", "adam")
NEEDS = {
    "step": "one share of the run, after which the rate drops, and drops again, such as [0.25]",
    "multistep": "the shares of the run at which the rate drops, such as [0.5, 0.75]",
}


@dataclass(frozen=True)
class Recipe:
    """Steps, batch, optimiser and schedule of a task at full budget.

    `lr` and `weight_decay` have an entry for each kind of optimiser, `sgd` and `adam`, tuned on dense training alone;
    `plain_scale` caps lr / (1 - momentum), the rate of rules without momentum. `optimizer` is the kind that methods
    without a kind of their own use, `betas` are the decays of AdamW's two means. `warmup` is a share of the steps,
    `clip` a bound on the gradient's norm (0: none), `accumulate` the number of micro-batches a step, `precision` fp32,
    bf16 or fp16. ValueError for an unknown name and for sizes that do not fit.

    `schedule` is one of `constant`, `step`, `multistep`, `linear`, `cosine`, `onecycle`, `poly` and `tanh`, all shares
    of the run, so that a budget stretches it: `milestones` are where `multistep` multiplies the rate by `gamma`, or the
    one share after which `step` does so again and again; `power` is the exponent of `poly`, `last` the factor at the
    end of `linear`, `cosine`, `onecycle`, `poly` and `tanh`, `peak` where `onecycle` is at its top.
    """

    steps: int
    batch: int
    lr: Mapping[str, float]
    weight_decay: Mapping[str, float] = field(default_factory=lambda: {"sgd": 5e-4, "adam": 0.05})
    plain_scale: float = 1.0
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "cosine"
    warmup: float = 0.0
    label_smoothing: float = 0.0
    clip: float = 0.0
    accumulate: int = 1
    precision: str = "fp32"
    compile: bool = False
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    power: float = 1.0
    last: float = 0.0
    peak: float = 0.3

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
        if self.schedule not in schedules.SCHEDULES:
            raise ValueError(f"recipe.schedule is {self.schedule!r}; choose one of {', '.join(schedules.SCHEDULES)}")
        for name, good, wanted in (
            ("momentum", 0 <= self.momentum < 1, "a factor in [0, 1)"),
            ("warmup", 0 <= self.warmup < 1, "a share of the steps in [0, 1)"),
            ("clip", 0 <= self.clip < math.inf, "a norm, or 0 for none"),
            ("plain_scale", 0 < self.plain_scale < math.inf, "a factor above 0"),
            ("label_smoothing", 0 <= self.label_smoothing <= 1, "a share in [0, 1]"),
            ("gamma", 0 < self.gamma < math.inf, "a factor above 0"),
            ("power", 0 < self.power < math.inf, "an exponent above 0"),
            ("last", 0 <= self.last <= 1, "a factor in [0, 1]"),
            ("peak", 0 < self.peak < 1, "a share of the steps in (0, 1)"),
            ("nesterov", not self.nesterov or self.momentum > 0, "false, or a momentum above 0"),
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
        object.__setattr__(self, "betas", _decays(self.betas))
        object.__setattr__(self, "milestones", _shares(self.milestones))
        count = len(self.milestones)
        if (self.schedule == "step" and count != 1) or (self.schedule == "multistep" and not count):
            given = list(self.milestones)
            raise ValueError(f"recipe.milestones is {given}; {self.schedule} takes {NEEDS[self.schedule]}")

    def scaled(self, budget: float) -> Recipe:
        """The same recipe with `budget` times the steps, at least one."""
        return replace(self, steps=max(1, round(self.steps * budget)))

    @property
    def period(self) -> int:
        """Steps from one update of the topology to the next: 100, or fewer so that 30 updates fit, but at least 4."""
        return max(4, min(100, self.steps // 30))

    def factor(self, t: int) -> float:
        """The schedule's factor on the learning rate at step t, a pure function of t."""
        return schedules.factor(self, t)

    def make_optimizer(self, groups: list[dict[str, Any]], kind: str) -> torch.optim.Optimizer:
        """SGD with momentum or AdamW through timm's factory, on parameter groups of ours."""
        from timm.optim import create_optimizer_v2

        name = "adamw" if kind == "adam" else "sgd" if self.nesterov else "momentum"
        own: dict[str, Any] = {"betas": self.betas} if kind == "adam" else {"momentum": self.momentum}
        return create_optimizer_v2(groups, opt=name, lr=self.lr[kind], weight_decay=self.weight_decay[kind], **own)


def _rate(name: str, kind: str, value: Any) -> float:
    try:
        found = value if type(value) is int else number(value, f"recipe.{name}[{kind!r}] is")
    except TypeError as error:
        raise ValueError(str(error)) from None
    if not math.isfinite(found):
        raise ValueError(f"recipe.{name}[{kind!r}] is {found}; give a finite number")
    return found


def _decays(given: Any) -> tuple[float, ...]:
    """Adam's betas as a tuple; ValueError for what are no two decays."""
    several = isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 2
    if not several or not all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in given):
        raise ValueError(f"recipe.betas is {shown(given)}; give two decays in [0, 1), such as [0.9, 0.999]")
    return tuple(map(float, given))


def _shares(given: Any) -> tuple[float, ...]:
    """Milestones as a tuple; ValueError for what are no rising shares of a run."""
    several = isinstance(given, Sequence) and not isinstance(given, str)
    found = tuple(given) if several else (given,)
    good = all(isinstance(share, int | float) and 0 < share < 1 for share in found)
    if not good or any(a >= b for a, b in pairwise(found)):
        raise ValueError(f"recipe.milestones is {shown(given)}; give rising shares of the run in (0, 1)")
    return tuple(map(float, found))


def in_epochs(
    epochs: float,
    images: int,
    batch: int,
    *,
    drop_at: Sequence[float] = (),
    drop_every: float | None = None,
    warmup_epochs: float | None = None,
    **fields: Any,
) -> Recipe:
    """A recipe in epochs, as papers write them; an epoch is the whole batches that the images fill.

    Args:
        epochs: Length of the run.
        images: Training images, those of the valid split apart.
        batch: Images a step.
        drop_at: Epochs at which the rate is multiplied by `gamma`: the schedule is `multistep`.
        drop_every: Epochs from one such drop to the next: the schedule is `step`.
        warmup_epochs: Epochs of warm-up.
        fields: Those of `Recipe`; `milestones`, `warmup` and `peak` are shares of the run, as there.

    Returns:
        The recipe, of epochs * (images // batch) steps.

    Raises:
        ValueError: For epochs beyond the run, fewer images than a batch, and all that `Recipe` refuses.
    """
    if not 1 <= batch <= images:
        raise ValueError(f"an epoch of {images} images has no batch of {batch}; give a batch of 1 to {images}")
    named = [*drop_at, *([] if drop_every is None else [drop_every])]
    for epoch in (*named, *([] if warmup_epochs is None else [warmup_epochs])):
        if not 0 <= epoch < epochs:
            raise ValueError(f"epoch {epoch} is named in a recipe of {epochs} epochs; give one below {epochs}")
    if named:
        fields |= {"schedule": "step" if drop_every else "multistep", "milestones": tuple(e / epochs for e in named)}
    if warmup_epochs is not None:
        fields["warmup"] = warmup_epochs / epochs
    return Recipe(steps=round(epochs * (images // batch)), batch=batch, **fields)
