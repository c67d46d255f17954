from typing import Any

import pytest

from dstbench.suite import estimate, record
from dstbench.suite.plan import Run

SIZES = (64 * 100, 100 * 100, 100 * 10)  # digits/mlp
STEPS, BATCH = 480, 50


def test_the_closed_form_of_an_mlp() -> None:
    from dstbench.suite import registry

    recipe = registry.task("digits/mlp").recipe
    dense = 2 * sum(SIZES)
    samples = recipe.steps * recipe.batch
    assert estimate.training_flops(Run("dense", "digits/mlp")) == (3 * dense * samples,) * 2
    low, high = estimate.training_flops(Run("rigl", "digits/mlp", 0.9))
    assert low == pytest.approx(3 * 0.1 * dense * samples) and high == pytest.approx((0.2 + 1) * dense * samples)


def test_budgets_multiply() -> None:
    whole = estimate.training_flops(Run("dense", "digits/mlp"))[0]
    assert estimate.training_flops(Run("dense", "digits/mlp", budget=0.5))[0] == pytest.approx(whole / 2)
    half = Run("dense", "digits/mlp", hyperparameters={"budget": 0.5}, budget=0.5)
    assert estimate.training_flops(half)[0] == pytest.approx(whole / 4)
    assert estimate.training_flops(Run("dense", "digits/mlp", recipe={"steps": 1, "batch": 1}))[0] == 6 * sum(SIZES)


def test_totals_are_sums() -> None:
    one = estimate.training_flops(Run("dense", "digits/mlp"))[0]
    assert estimate.total_flops([Run("dense", "digits/mlp", seed=s) for s in range(3)]) == (3 * one, 3 * one)


def of(task: str, wall: float | None, budget: float = 1.0) -> dict[str, Any]:
    return {**record.empty(Run("m", task, budget=budget)), "time": None if wall is None else {"wall": wall}}


def test_time_is_expected_from_records_of_the_same_task() -> None:
    records = [of("a", 10.0), of("a", 15.0, 0.5), of("a", None), of("b", 6.0)]
    runs = [Run("m", "a", budget=2.0), Run("m", "b")]
    assert estimate.expected_seconds(runs, records, 2) == (20 * 2 + 6) / 2
    assert estimate.expected_seconds([*runs, Run("m", "c")], records, 2) is None
    assert estimate.expected_seconds([Run("m", "a", device="cuda:0")], records, 1) is None


def test_the_description_says_what_is_estimated() -> None:
    runs = [Run("dense", "digits/mlp"), Run("rigl", "digits/mlp", 0.9)]
    lines = estimate.describe(runs, runs[1:], [], 2).splitlines()
    assert lines[0] == f"{runs[0]}  (done)" and lines[1] == str(runs[1])
    assert lines[2] == "2 runs, 1 left, 2 at a time"
    assert (
        "estimated by a closed form (one multiply-add = 2 FLOPs)" in lines[3] and lines[4] == "expected time: unknown"
    )


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3600, "1:00:00"), (59.6, "1:00")])
def test_clock(seconds: float, text: str) -> None:
    assert estimate.clock(seconds) == text
