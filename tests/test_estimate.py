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
    runs = [Run("dense", "digits/mlp", data="0" * 12), Run("rigl", "digits/mlp", 0.9, data="0" * 12)]
    lines = estimate.describe(runs, runs[1:], [], 2).splitlines()
    assert lines[0] == f"{runs[0]}  (done)" and lines[1] == str(runs[1])
    assert lines[2] == "2 runs, 1 left, 2 at a time"
    assert (
        "estimated by a closed form (one multiply-add = 2 FLOPs)" in lines[3]
        and "no run of this device yet" in lines[4]
    )


def test_time_without_records_of_the_task_comes_from_those_of_the_device_or_is_assumed() -> None:
    runs = [Run("dense", "digits/mlp"), Run("rigl", "digits/mlp", 0.9)]
    dense = estimate.dense_flops(runs)
    assert dense == 2 * 6 * sum(SIZES) * STEPS * BATCH  # masked kernels compute all of it
    low, high, how = estimate.expected_span(runs, [], 2) or (0, 0, "")
    slow, fast = estimate.ASSUMED["cpu"]
    assert (low, high) == pytest.approx((dense / fast / 2, dense / slow / 2)) and "assumed" in how
    other = [of("a", 10.0) | {"flops": {"dense_total": total}} for total in (1e9, 4e9)]
    low, high, how = estimate.expected_span(runs, other, 1) or (0, 0, "")
    assert (low, high) == pytest.approx((dense / 4e8, dense / 1e8)) and how.endswith("on cpu, as in earlier runs")
    same = [*other, of("digits/mlp", 7200.0)]
    assert estimate.expected_span(runs, same, 2) == (7200, 7200, "earlier runs of the same tasks")
    assert estimate.told(7200, 7200, "x") == "2:00:00 (2 hours; x)"
    assert estimate.told(60, 5400, "x") == "1:00 to 1:30:00 (0.017 to 1.5 hours; x)"
    assert estimate.expected_span([Run("dense", "digits/mlp", device="tpu")], [], 1) is None
    assert estimate.told(*estimate.expected_span([], [], 1)) == "none"


def test_tasks_with_records_and_without_add_up() -> None:
    runs = [Run("dense", "digits/mlp"), Run("dense", "digits/resnet")]
    low, high, how = estimate.expected_span(runs, [of("digits/resnet", 50.0)], 1) or (0, 0, "")
    assert 50 < low < high and how.count(";") == 1


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3600, "1:00:00"), (59.6, "1:00")])
def test_clock(seconds: float, text: str) -> None:
    assert estimate.clock(seconds) == text
