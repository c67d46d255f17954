"""Checks that a run can be stopped after any step and go on in another process, bit for bit."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dstbench.suite.checks.subject import STEPS, Subject
from dstbench.suite.values import plain
from dstbench.suite.words import told

LASTING = "the state cannot be saved (keep tensors, numbers and text alone in `memory`, optimiser and rng)"
METERS = ("clock", "memory", "devices")  # measurements; and where tensors were, which every process decides anew


def write_states(subject: Subject, file: Path) -> str:
    """Train, and keep what a checkpoint would hold before the first step, after every step, and after `finish`."""
    training, states = subject.training(), list[bytes]()

    def keep() -> None:
        if forgotten := training.forgets():
            raise TypeError(f"after step {training.t} {LASTING}: {forgotten[0]}")
        try:
            states.append(frozen(training.state()))
            thawed(states[-1])
        except Exception as error:  # what torch cannot pickle, or will not load
            raise TypeError(f"after step {training.t} {LASTING}: {told(error).splitlines()[0]}") from error

    keep()
    training.run(after=keep)
    training.method.finish()
    keep()
    with open(file, "wb") as out:
        pickle.dump({"states": states, "defaults": _defaults(subject)}, out)
    return ""


def defaults_are_those_of_another_process(subject: Subject, file: Path) -> str:
    """Defaults are no part of a run's key: they may not depend on time, chance or machine."""
    with open(file, "rb") as source:
        there = pickle.load(source)["defaults"]
    changed = [f"{name} = {value!r}, there {there.get(name)!r}" for name, value in _defaults(subject).items()
               if there.get(name) != value]  # fmt: skip
    return f"defaults differ from process to process ({'; '.join(changed)}): give constants" if changed else ""


def _defaults(subject: Subject) -> dict[str, Any]:
    return {name: plain(value) for name, value in subject.method().hyperparameters().items()}


def resumes_after_any_step(subject: Subject, file: Path) -> str:
    """In this process: from each state anew one step on to the next, and from one in the middle to the end.

    The last state comes first: what a class or module gathers from step to step is not there to be found.
    """
    with open(file, "rb") as source:
        states = pickle.load(source)["states"]
    for t in reversed(range(STEPS + 1)):
        if found := _from(subject, states[t], t + 1, states[t + 1]):
            where = f"after step {t}" if t < STEPS else "finish() after the last step:"
            return f"{where} {found} differ once resumed: keep what lasts in Layers, optimiser, rng or memory"
    middle = STEPS // 2 + 1
    found = _from(subject, states[middle], STEPS, states[STEPS])
    return f"resumed after step {middle}, {found} differ at the end" if found else ""


def _from(subject: Subject, saved: bytes, until: int, wanted: bytes) -> str:
    training = subject.training(ready=False)
    training.load(thawed(saved))
    training.run(until=min(until, STEPS))
    if until > STEPS:
        training.method.finish()
    return ", ".join(differences(thawed(wanted), thawed(frozen(training.state()))))


def frozen(state: dict[str, Any]) -> bytes:
    """A state of a training as a checkpoint holds it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def thawed(saved: bytes) -> dict[str, Any]:
    """The state, as a run reads it back."""
    return torch.load(io.BytesIO(saved), weights_only=True)


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The parts of two states that differ, measurements apart."""
    return [name for name in a if name not in METERS and not _equal(a[name], b[name])]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a.cpu(), b.cpu())
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b
