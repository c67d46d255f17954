"""Clock: where the seconds of a run went, and how long a training step takes."""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any

import torch

PHASES = ("train", "evaluation", "data", "overhead")
RESOLUTION = math.log(1.002)  # step times are counted in bins 0.2 % wide: 10^6 steps take the room of a few hundred


class Clock:
    """Seconds of a run by phase on a monotonic clock; `with clock("train"): ...` opens a phase.

    "data" (waiting for the batch) and "overhead" (`begin` and `step` of the method) lie inside "train" and are part of
    its seconds; an "evaluation" opened inside "train" is taken out of them. The device is synchronised at the edges of
    phases and steps. The first `warmup_steps` steps of each sitting are part of "train", but not of median and p90.
    """

    def __init__(self, device: torch.device | str = "cpu", warmup_steps: int = 5) -> None:
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps is {warmup_steps}; give the number of steps to keep apart, 0 or more")
        self._synchronise = synchroniser(device)
        self._warmup_left = warmup_steps
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._open: dict[str, float] = {}
        self._phases = {name: _Phase(self, name) for name in PHASES}
        self._bins: dict[int, int] = {}
        self._warmup = 0.0
        self._mark = 0.0  # seconds of "train" when the last step was done
        self._start = time.perf_counter()

    def __call__(self, name: str) -> _Phase:
        """The context manager of the phase `name`; ValueError for an unknown phase."""
        try:
            return self._phases[name]
        except KeyError:
            near = difflib.get_close_matches(name, PHASES, 1) or PHASES
            raise ValueError(f"unknown phase {name!r} of the clock; did you mean {' or '.join(near)}?") from None

    def now(self) -> float:
        """The monotonic clock in seconds, read after the device has finished its work."""
        if self._synchronise is not None:
            self._synchronise()
        return time.perf_counter()

    def step_done(self) -> None:
        """Close a training step: it took the seconds of "train" since the last step was closed."""
        done = self._until("train", self.now())
        seconds, self._mark = done - self._mark, done
        if self._warmup_left:
            self._warmup_left -= 1
            self._warmup += seconds
        else:
            index = round(math.log(max(seconds, 1e-9)) / RESOLUTION)
            self._bins[index] = self._bins.get(index, 0) + 1

    def _until(self, name: str, now: float) -> float:
        """Seconds of a phase up to `now`, whether it is open or not."""
        if name not in self._open:
            return self._seconds[name]
        if name == "train":
            now = self._open.get("evaluation", now)
        return self._seconds[name] + now - self._open[name]

    def quantile(self, q: float) -> float | None:
        """Seconds that a share `q` of the steps after warm-up does not exceed, to 0.1 %; None if there are none."""
        rank = math.ceil(q * sum(self._bins.values()))
        for index in sorted(self._bins):
            rank -= self._bins[index]
            if rank <= 0:
                return math.exp(index * RESOLUTION)
        return None

    def state(self) -> dict[str, Any]:
        """Plain numbers for a checkpoint, open phases included."""
        now = self.now()
        seconds = {name: self._until(name, now) for name in PHASES}
        return {"wall": now - self._start, "seconds": seconds, "warmup": self._warmup, "bins": dict(self._bins)}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Add what earlier sittings measured, as their last `state` says; the time between sittings is in no sum."""
        self._start -= saved["wall"]
        self._warmup += saved["warmup"]
        self._mark += saved["seconds"]["train"]
        for name in PHASES:
            self._seconds[name] += saved["seconds"][name]
        for index, count in saved["bins"].items():
            self._bins[index] = self._bins.get(index, 0) + count

    def block(self, steps: int, simulated: bool) -> dict[str, Any]:
        """The record's "time", seconds; `simulated`: masked-dense arithmetic, whose time says nothing of sparsity."""
        state = self.state()
        return {
            "wall": state["wall"],
            "train": state["seconds"]["train"],
            "warmup": state["warmup"],
            "evaluation": state["seconds"]["evaluation"],
            "data": state["seconds"]["data"],
            "overhead": state["seconds"]["overhead"],
            "step_median": self.quantile(0.5),
            "step_p90": self.quantile(0.9),
            "steps": steps,
            "simulated": simulated,
        }


class _Phase:
    """One phase of a clock as a context manager, made once, so that a step pays for no object."""

    def __init__(self, clock: Clock, name: str) -> None:
        self.clock, self.name = clock, name

    def __enter__(self) -> None:
        clock = self.clock
        if self.name in clock._open:
            raise RuntimeError(f'the clock\'s phase "{self.name}" is open already; close it before opening it again')
        clock._open[self.name] = clock.now()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        clock = self.clock
        # After an error the device may refuse to synchronise; the first error is the one to show.
        now = clock.now() if kind is None else time.perf_counter()
        seconds = clock._until(self.name, now) - clock._seconds[self.name]
        del clock._open[self.name]
        clock._seconds[self.name] += seconds
        if self.name == "evaluation" and "train" in clock._open:
            clock._open["train"] += seconds


def synchroniser(device: torch.device | str) -> Callable[[], None] | None:
    """What waits until the device has finished its work, or None where work is finished when a call returns (CPU)."""
    device = torch.device(device)
    if device.type in ("cpu", "meta"):
        return None
    if device.type == "cuda":
        return partial(torch.cuda.synchronize, device)
    return torch.get_device_module(device).synchronize
