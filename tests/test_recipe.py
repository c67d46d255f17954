"""Schedules beside torch's and timm's own schedulers, recipes in epochs, and what recipes refuse."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from timm.scheduler import create_scheduler_v2
from torch.optim import lr_scheduler as theirs

from dstbench.suite.plan import Run, key_of
from dstbench.suite.recipe import Recipe, in_epochs
from dstbench.suite.schedules import SCHEDULES
from dstbench.suite.task import Task

N = 120


def recipe(steps=N, **fields):
    return Recipe(**{"steps": steps, "batch": 1, "lr": {}, **fields})


def rates(make, steps):
    """The learning rates that a scheduler of torch's gives a rate of 1, step by step."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler, found = make(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def warmed(make, warm):
    """A scheduler after `warm` steps of a linear rise from 1 / warm."""

    def both(optimizer):
        rise = theirs.LinearLR(optimizer, start_factor=1 / warm, total_iters=warm)
        return theirs.SequentialLR(optimizer, [rise, make(optimizer)], [warm])

    return both


def cycle(steps, **options):
    return lambda o: theirs.OneCycleLR(o, 1.0, total_steps=steps, cycle_momentum=False, **options)


TORCH = {
    "constant": ({"schedule": "constant"}, lambda o, n: theirs.ConstantLR(o, factor=1.0)),
    "step": (
        {"schedule": "step", "milestones": (0.25,), "gamma": 0.2},
        lambda o, n: theirs.StepLR(o, n // 4, gamma=0.2),
    ),
    "multistep": (
        {"schedule": "multistep", "milestones": (0.25, 0.5, 0.75)},
        lambda o, n: theirs.MultiStepLR(o, [n // 4, n // 2, 3 * n // 4], gamma=0.1),
    ),
    "linear": ({"schedule": "linear"}, lambda o, n: theirs.LinearLR(o, 1.0, 0.0, total_iters=n)),
    "linear to 0.2": (
        {"schedule": "linear", "last": 0.2},
        lambda o, n: theirs.LinearLR(o, 1.0, 0.2, total_iters=n),
    ),
    "cosine": ({}, lambda o, n: theirs.CosineAnnealingLR(o, n)),
    "warm cosine to 0.1": (
        {"warmup": 0.05, "last": 0.1},
        lambda o, n: warmed(lambda o: theirs.CosineAnnealingLR(o, n - n // 20, eta_min=0.1), n // 20)(o),
    ),
    "warm linear": (
        {"schedule": "linear", "warmup": 0.1},
        lambda o, n: warmed(lambda o: theirs.LinearLR(o, 1.0, 0.0, total_iters=n - n // 10), n // 10)(o),
    ),
    "onecycle": ({"schedule": "onecycle"}, lambda o, n: cycle(n, final_div_factor=math.inf)(o)),
    "onecycle to 0.01": (
        {"schedule": "onecycle", "peak": 0.23, "last": 0.01},
        lambda o, n: cycle(n, pct_start=0.23, final_div_factor=4.0)(o),
    ),
    "poly": ({"schedule": "poly"}, lambda o, n: theirs.PolynomialLR(o, n)),
    "poly of power 2": (
        {"schedule": "poly", "power": 2.0},
        lambda o, n: theirs.PolynomialLR(o, n, power=2.0),
    ),
}


@pytest.mark.parametrize("budget", [1.0, 1 / 3])
@pytest.mark.parametrize("name", TORCH)
def test_schedules_are_torchs_at_every_budget(name: str, budget: float) -> None:
    fields, make = TORCH[name]
    found = recipe(**fields).scaled(budget)
    assert found.steps == round(N * budget)
    expected = rates(lambda o: make(o, found.steps), found.steps)
    assert [found.factor(t) for t in range(found.steps)] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("steps", [1, 2, 7, 480, 1001])
@pytest.mark.parametrize("schedule", ["cosine", "tanh"])
def test_schedules_of_runs_that_are_published_keep_every_bit(schedule: str, steps: int, warmup: float) -> None:
    """timm's schedulers, as recipes were read before."""
    optimizer, warm = torch.optim.SGD([torch.zeros(1)], lr=1.0), round(warmup * steps)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=schedule,
        num_epochs=max(1, steps - warm),
        warmup_epochs=warm,
        warmup_prefix=True,
        warmup_lr=1.0 / max(1, warm),
        min_lr=0.0,
        updates_per_epoch=1,
        step_on_epochs=False,
    )
    found = recipe(steps, schedule=schedule, warmup=warmup)
    for t in [*range(steps), steps, steps + 5]:
        scheduler.step_update(t)
        assert found.factor(t) == optimizer.param_groups[0]["lr"], t


@pytest.mark.parametrize("steps", [1, 2, 3, 50])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_are_pure_and_finite(schedule: str, steps: int) -> None:
    fields = {"milestones": (0.4,)} if schedule in ("step", "multistep") else {}
    one, other = (recipe(steps, schedule=schedule, warmup=0.1, **fields) for _ in range(2))
    forth = [one.factor(t) for t in range(steps + 3)]
    back = [other.factor(t) for t in reversed(range(steps + 3))]
    assert forth == back[::-1] and all(0 <= factor <= 1 for factor in forth)


def test_milestones_count_from_the_start_and_warm_up_goes_before() -> None:
    found = recipe(100, schedule="multistep", milestones=(0.5,), warmup=0.1)
    assert [found.factor(t) for t in (0, 9, 10, 49)] == pytest.approx([0.1, 0.91, 1, 1])
    assert found.factor(50) == found.factor(99) == pytest.approx(0.1)


def test_recipes_in_epochs() -> None:
    found = in_epochs(160, 45_000, 128, drop_at=(80, 120), lr={"sgd": 0.1}, nesterov=True)
    epoch = 45_000 // 128
    assert (found.steps, found.batch, found.schedule, found.nesterov) == (160 * epoch, 128, "multistep", True)
    drops = [t for t in range(1, found.steps) if found.factor(t) != found.factor(t - 1)]
    assert drops == [80 * epoch, 120 * epoch]
    every = in_epochs(100, 54_000, 100, drop_every=30, lr={})
    assert [t for t in range(1, every.steps) if every.factor(t) < every.factor(t - 1)] == [16_200, 32_400, 48_600]
    warm = in_epochs(300, 1000, 10, warmup_epochs=20, lr={})
    assert warm.schedule == "cosine" and warm.factor(1999) < warm.factor(2000) == 1.0
    assert in_epochs(9.9, 1000, 100, lr={}) == Recipe(steps=99, batch=100, lr={})


@pytest.mark.parametrize(
    "options, wanted",
    [
        ({"batch": 512}, "an epoch of 300 images has no batch of 512"),
        ({"drop_at": (5, 10)}, "epoch 10 is named in a recipe of 10 epochs; give one below 10"),
        ({"warmup_epochs": 12}, "epoch 12 is named in a recipe of 10 epochs"),
        ({"drop_at": (5,), "drop_every": 2}, r"milestones is \(0.5, 0.2\); give rising shares"),
    ],
)
def test_recipes_in_epochs_say_what_is_wrong(options, wanted) -> None:
    with pytest.raises(ValueError, match=wanted):
        in_epochs(**{"epochs": 10, "images": 300, "batch": 10, "lr": {}, **options})


@pytest.mark.parametrize(
    "fields, wanted",
    [
        ({"schedule": "stepp"}, "recipe.schedule is 'stepp'; choose one of cosine, constant, step, multistep, linear"),
        ({"schedule": "step"}, r"recipe.milestones is \[\]; step takes one share of the run"),
        ({"schedule": "step", "milestones": (0.2, 0.4)}, r"recipe.milestones is \[0.2, 0.4\]; step takes one share"),
        ({"schedule": "multistep"}, r"recipe.milestones is \[\]; multistep takes the shares of the run at which"),
        ({"milestones": (80, 120)}, r"recipe.milestones is \(80, 120\); give rising shares of the run in \(0, 1\)"),
        ({"milestones": (0.5, 0.5)}, "give rising shares"),
        ({"milestones": (0.5, math.nan)}, "give rising shares"),
        ({"milestones": "half"}, "recipe.milestones is 'half'; give rising shares"),
        ({"gamma": 0.0}, "recipe.gamma is 0.0; give a factor above 0"),
        ({"power": -1.0}, "recipe.power is -1.0; give an exponent above 0"),
        ({"last": 2.0}, r"recipe.last is 2.0; give a factor in \[0, 1\]"),
        ({"nesterov": True, "momentum": 0.0}, "recipe.nesterov is True; give false, or a momentum above 0"),
        ({"betas": (0.9, 1.0)}, r"recipe.betas is \(0.9, 1.0\); give two decays in \[0, 1\)"),
        ({"betas": 0.9}, r"recipe.betas is 0.9; give two decays"),
        ({"peak": 1.0}, r"recipe.peak is 1.0; give a share of the steps in \(0, 1\)"),
    ],
)
def test_recipes_say_what_is_wrong_with_a_schedule(fields, wanted) -> None:
    with pytest.raises(ValueError, match=wanted):
        recipe(**fields)


def test_betas_reach_adamw_and_may_come_as_a_list() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))]}]
    rates = {"sgd": 0.1, "adam": 0.1}
    found = recipe(betas=[0.8, 0.99], lr=rates)
    assert found.betas == (0.8, 0.99) and found.make_optimizer(groups, "adam").defaults["betas"] == (0.8, 0.99)
    assert found.make_optimizer(groups, "sgd").defaults["momentum"] == 0.9


def test_milestones_may_come_as_a_list_or_as_one_number() -> None:
    assert recipe(milestones=[0.5, 0.75]).milestones == (0.5, 0.75) and recipe(milestones=0.5).milestones == (0.5,)


def test_new_fields_are_in_no_key_and_a_source_in_no_identity() -> None:
    assert Run("set", "digits/mlp", 0.9, data="0" * 12).identity().keys().isdisjoint({"recipe", "source"})
    assert key_of(Run("set", "digits/mlp", 0.9).identity()) == Run("set", "digits/mlp", 0.9).key
    task = Task(name="a/b", recipe=recipe(), source="Evci et al. 2020, table 2")
    assert task.describe()["source"] == task.source and replace(task, source="").describe()["source"] == ""
