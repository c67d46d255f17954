"""Checks that a run can be stopped after any step and go on in another process, bit for bit."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suite.checks.subject import STEPS, Subject

METERS = ("clock", "memory", "devices")  # measurements; and where tensors were, which every process decides anew


def write_states(subject: Subject, file: Path) -> None:
    """Train, and keep what a checkpoint would hold before the first and after every step."""
    training = subject.training()
    states = [_frozen(training.state())]
    training.run(after=lambda: states.append(_frozen(training.state())))
    with open(file, "wb") as out:
        pickle.dump(states, out)


def resumes_after_any_step(subject: Subject, file: Path) -> str:
    """In this process: from each state anew one step on to the next state, and from one in the middle to the end."""
    with open(file, "rb") as source:
        states = pickle.load(source)
    for t in range(STEPS):
        if found := _from(subject, states[t], t + 1, states[t + 1]):
            return f"after step {t} {found} differ once resumed: keep what lasts in Layers, optimiser, rng or memory"
    middle = STEPS // 2 + 1
    found = _from(subject, states[middle], STEPS, states[STEPS])
    return f"resumed after step {middle}, {found} differ at the end" if found else ""


def _from(subject: Subject, saved: bytes, until: int, wanted: bytes) -> str:
    training = subject.training(ready=False)
    training.load(_thawed(saved))
    training.run(until=until)
    return ", ".join(_differences(_thawed(wanted), _thawed(_frozen(training.state()))))


def _frozen(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _thawed(saved: bytes) -> dict[str, Any]:
    return torch.load(io.BytesIO(saved), weights_only=True)


def _differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    return [name for name in a if name not in METERS and not _equal(a[name], b[name])]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a.cpu(), b.cpu())
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b
