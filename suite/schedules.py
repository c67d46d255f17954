"""Schedules of the learning rate: the factor at step t, a pure function of t, the recipe's steps and its shares."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dstbench.suite.recipe import Recipe

START = 1 / 25  # of OneCycle, as torch's OneCycleLR begins


def factor(recipe: Recipe, t: int) -> float:
    """The factor on the learning rate at step t.

    Over the first `warmup` of the steps it rises in a line from 1 / (steps of warm-up) to 1; the schedule takes the
    rest of the run, or, where it has milestones, counts them from the start of the run.

    Args:
        recipe: Whose `schedule`, `steps`, `warmup`, `milestones`, `gamma`, `power`, `last` and `peak` say which.
        t: The step, from 0 on; beyond the last one the schedule stays where it ended.

    Returns:
        The factor, 1 at the top of a schedule.
    """
    warm = round(recipe.warmup * recipe.steps)
    if t < warm:
        return 1 / warm + t * ((1 - 1 / warm) / warm)
    if recipe.schedule in DROPS:
        return recipe.gamma ** DROPS[recipe.schedule](recipe, t)
    n = max(1, recipe.steps - warm)
    return SHAPES[recipe.schedule](recipe, min(t - warm, n), n)


def _every(recipe: Recipe, t: int) -> int:
    """Drops until t, one at every multiple of the one milestone."""
    return t // max(1, round(recipe.milestones[0] * recipe.steps))


def _at(recipe: Recipe, t: int) -> int:
    """Drops until t, one at each milestone."""
    return sum(t >= round(share * recipe.steps) for share in recipe.milestones)


def _constant(recipe: Recipe, t: int, n: int) -> float:
    return 1.0


def _linear(recipe: Recipe, t: int, n: int) -> float:
    return 1 + (recipe.last - 1) * t / n


def _cosine(recipe: Recipe, t: int, n: int) -> float:
    return recipe.last + 0.5 * (1 - recipe.last) * (1 + math.cos(math.pi * t / n))


def _poly(recipe: Recipe, t: int, n: int) -> float:
    return recipe.last + (1 - recipe.last) * (1 - t / n) ** recipe.power


def _tanh(recipe: Recipe, t: int, n: int) -> float:
    """Hsueh et al. 2019, arXiv 1806.01593, between -7 and 3 as timm has it."""
    done = t / n
    shape = 0.5 * (1 - recipe.last) * (1 - math.tanh(-7 * (1 - done) + 3 * done))
    return recipe.last + (shape if t < n else 0.0)


def _onecycle(recipe: Recipe, t: int, n: int) -> float:
    """Smith & Topin 2018, arXiv 1708.07120, as torch's OneCycleLR has it: two half cosines, 1 in between."""
    top = recipe.peak * n - 1
    if t <= top:
        return _between(START, 1.0, t / top) if top > 0 else 1.0
    return _between(1.0, recipe.last, min(1.0, (t - top) / (n - 1 - top)))


def _between(start: float, end: float, done: float) -> float:
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * done))


DROPS: dict[str, Callable[[Recipe, int], int]] = {"step": _every, "multistep": _at}
SHAPES: dict[str, Callable[[Recipe, int, int], float]] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "onecycle": _onecycle,
    "poly": _poly,
    "tanh": _tanh,
}
SCHEDULES = ("cosine", "constant", "step", "multistep", "linear", "onecycle", "poly", "tanh")
