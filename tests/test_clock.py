"""Clock: phases and steps against a clock that the test moves by hand, and the sum over sittings."""

import json
import pickle
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dstbench.suite.meters import clock as module
from dstbench.suite.meters.clock import Clock


class Hands:
    """Stands in for the time module: seconds pass only when a test says so."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def perf_counter(self) -> float:
        return self.seconds

    def tick(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def hands(monkeypatch):
    hands = Hands()
    monkeypatch.setattr(module, "time", hands)
    return hands


def train(clock: Clock, hands: Hands, steps) -> None:
    """Steps of the given seconds: a tenth waits for data, a fifth is the method's."""
    with clock("train"):
        for seconds in steps:
            with clock("data"):
                hands.tick(0.1 * seconds)
            hands.tick(0.7 * seconds)
            with clock("overhead"):
                hands.tick(0.2 * seconds)
            clock.step_done()


def test_data_and_overhead_lie_inside_train(hands):
    clock = Clock(warmup_steps=0)
    hands.tick(5.0)
    train(clock, hands, [1.0, 2.0, 3.0])
    block = clock.block(3, simulated=True)
    assert block["wall"] == pytest.approx(11.0)
    assert block["train"] == pytest.approx(6.0)
    assert block["data"] == pytest.approx(0.6)
    assert block["overhead"] == pytest.approx(1.2)
    assert block["evaluation"] == 0.0
    assert (block["steps"], block["simulated"]) == (3, True)


def test_evaluation_inside_train_is_taken_out_of_train_and_of_its_step(hands):
    clock = Clock(warmup_steps=0)
    with clock("train"):
        hands.tick(1.0)
        clock.step_done()
        with clock("evaluation"):
            hands.tick(50.0)
            assert clock.state()["seconds"]["train"] == pytest.approx(1.0)
        hands.tick(1.0)
        clock.step_done()
    block = clock.block(2, False)
    assert block["train"] == pytest.approx(2.0)
    assert block["evaluation"] == pytest.approx(50.0)
    assert block["step_p90"] == pytest.approx(1.0, rel=1e-3)


def test_train_may_be_opened_for_each_step(hands):
    clock = Clock(warmup_steps=0)
    for _ in range(4):
        with clock("train"):
            hands.tick(2.0)
        clock.step_done()
        hands.tick(9.0)
    assert clock.block(4, False)["train"] == pytest.approx(8.0)
    assert clock.quantile(0.5) == pytest.approx(2.0, rel=1e-3)


def test_warmup_steps_count_as_training_but_not_in_median_and_p90(hands):
    clock = Clock(warmup_steps=2)
    train(clock, hands, [30.0, 20.0, *[1.0] * 8])
    block = clock.block(10, False)
    assert block["warmup"] == pytest.approx(50.0)
    assert block["train"] == pytest.approx(58.0)
    assert block["step_median"] == pytest.approx(1.0, rel=1e-3)
    assert block["step_p90"] == pytest.approx(1.0, rel=1e-3)


def test_a_run_within_its_warmup_has_no_median(hands):
    clock = Clock(warmup_steps=5)
    train(clock, hands, [1.0])
    assert clock.block(1, False)["step_median"] is None


@given(st.lists(st.floats(1e-5, 1e3), min_size=1, max_size=200), st.sampled_from([0.5, 0.9]))
def test_quantiles_equal_numpy_to_a_thousandth(steps, q):
    clock, hands = Clock(warmup_steps=0), Hands()
    clock.now = hands.perf_counter
    clock._open["train"] = hands.seconds
    measured = []
    for seconds in steps:
        before = hands.seconds
        hands.tick(seconds)
        measured.append(hands.seconds - before)
        clock.step_done()
    expected = np.quantile(measured, q, method="inverted_cdf")
    assert clock.quantile(q) == pytest.approx(expected, rel=1.1e-3)


def test_memory_stays_bounded(hands):
    clock = Clock(warmup_steps=0)
    times = np.random.default_rng(0).lognormal(np.log(4e-3), 0.2, 20_000)
    with clock("train"):
        for seconds in times:
            hands.tick(seconds)
            clock.step_done()
    assert len(clock.state()["bins"]) < 1_000
    assert clock.quantile(0.9) == pytest.approx(np.quantile(times, 0.9), rel=2e-3)


def test_resumed_clock_reports_the_sum(hands, tmp_path):
    first = Clock(warmup_steps=1)
    train(first, hands, [5.0, 1.0, 2.0])
    torch.save(first.state(), tmp_path / "checkpoint.pt")
    hands.tick(1_000.0)  # the machine was off: in no sum of the resumed run
    second = Clock(warmup_steps=0)
    second.load(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    train(second, hands, [3.0, 4.0])
    resumed = second.block(5, False)
    whole = Clock(warmup_steps=1)
    train(whole, hands, [5.0, 1.0, 2.0, 3.0, 4.0])
    assert resumed == pytest.approx(whole.block(5, False))
    assert resumed["wall"] == pytest.approx(15.0)


def test_first_step_after_resuming_is_not_charged_for_earlier_sittings(hands):
    first = Clock(warmup_steps=0)
    train(first, hands, [100.0])
    second = Clock(warmup_steps=1)
    second.load(first.state())
    train(second, hands, [1.0, 1.0])
    assert second.block(3, False)["warmup"] == pytest.approx(1.0)


def test_state_in_the_middle_of_a_phase_holds_its_seconds(hands):
    clock = Clock(warmup_steps=0)
    with clock("train"):
        hands.tick(3.0)
        state = clock.state()
    assert state["seconds"]["train"] == pytest.approx(3.0)
    assert json.loads(json.dumps(state))["wall"] == pytest.approx(3.0)


def test_phase_closes_when_its_body_raises(hands):
    clock = Clock()
    with pytest.raises(ZeroDivisionError), clock("train"):
        hands.tick(2.0)
        _ = 1 / 0
    with clock("train"):
        hands.tick(1.0)
    assert clock.block(0, False)["train"] == pytest.approx(3.0)


def test_unknown_and_doubled_phases_are_errors(hands):
    clock = Clock()
    with pytest.raises(ValueError, match=r"unknown phase 'evaluate'.*did you mean evaluation"):
        clock("evaluate")
    with clock("train"), pytest.raises(RuntimeError, match="open already"), clock("train"):
        pass
    with pytest.raises(ValueError, match="warmup_steps is -1"):
        Clock(warmup_steps=-1)


def test_device_is_synchronised_at_every_edge(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "synchronize", calls.append)
    clock = Clock("cuda:0")
    with clock("train"):
        assert len(calls) == 1
        clock.step_done()
        assert len(calls) == 2
    assert calls == [torch.device("cuda:0")] * 3


def test_an_error_of_the_body_is_not_hidden_by_a_dead_device(monkeypatch):
    alive = [True]

    def synchronise(device):
        if not alive:
            raise RuntimeError("CUDA error")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronise)
    clock = Clock("cuda:0")
    with pytest.raises(ZeroDivisionError), clock("train"):
        alive.clear()
        _ = 1 / 0


def test_other_devices_have_their_own_synchronisation():
    assert module.synchroniser("cpu") is None
    assert module.synchroniser("mps") is torch.mps.synchronize


def test_real_clock_is_monotonic_and_picklable():
    clock = pickle.loads(pickle.dumps(Clock(warmup_steps=0)))
    with clock("train"):
        time.sleep(0.02)
        clock.step_done()
    block = clock.block(1, False)
    assert block["wall"] >= block["train"] >= 0.02
    assert 0.02 / 1.002 <= block["step_median"] <= block["train"] * 1.002
