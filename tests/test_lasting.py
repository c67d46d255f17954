"""State that networks hold in odd places: it is in the checkpoint, or the run says that it cannot be resumed."""

from __future__ import annotations

import collections
import functools
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conftest import Blobs
from dstbench.suite import conformance, lasting, record, registry, run
from dstbench.suite.checks.resume import differences, frozen, thawed
from dstbench.suite.plan import Run
from dstbench.suite.train import Training

CODE = {"method_source": "a", "task_source": "b", "versions": {}}


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.h = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.begin()

    def begin(self) -> None:
        pass

    def mid(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.h(F.relu(self.b(self.mid(F.relu(self.a(x))))))


class Expanded(Base):
    def begin(self) -> None:
        self.register_buffer("scale", torch.ones(1).expand(16))

    def mid(self, x: Tensor) -> Tensor:
        if self.training:
            self.scale = (self.scale[:1] * 0.99).expand(16)
        return x * self.scale


class Overlapping(Base):
    def begin(self) -> None:
        self.register_buffer("scale", torch.linspace(1, 2, 17).unfold(0, 2, 1))

    def mid(self, x: Tensor) -> Tensor:
        return x * self.scale[:, 0]


class Growing(Base):
    """A bank of past activations, empty at first."""

    def begin(self) -> None:
        self.register_buffer("bank", torch.zeros(0, 16))

    def mid(self, x: Tensor) -> Tensor:
        if self.training:
            self.bank = torch.cat([self.bank, x.detach()[:2]])
        return x + self.bank.mean(0) if len(self.bank) else x


class Lazy(Base):
    """A buffer that the first pass of training makes, and one that is None until then."""

    def begin(self) -> None:
        self.register_buffer("mean", None)

    def mid(self, x: Tensor) -> Tensor:
        if self.training and self.mean is None:
            self.mean = x.detach().mean(0)
            self.register_buffer("extra", torch.full((16,), 0.1), persistent=False)
        if self.training:
            self.extra.mul_(1.01)
        return x if self.mean is None else x - self.mean + self.extra


class Counting(Base):
    """A number, a list and a tensor in plain attributes."""

    def begin(self) -> None:
        self.calls, self.past, self.last = 0, [], torch.zeros(16)

    def mid(self, x: Tensor) -> Tensor:
        if x.is_meta:  # where passes are measured
            return x
        if self.training:
            self.calls += 1
            self.past = [*self.past[-3:], float(x.detach().mean())]
            self.last = 0.9 * self.last + x.detach().mean(0)
        return x * (1 + self.calls / 100) + sum(self.past) - 0.01 * self.last


class Aliases(Base):
    """Attributes that only name what is kept elsewhere."""

    def begin(self) -> None:
        self.parts, self.view = [self.a, self.b], self.b.weight.detach()[0]

    def mid(self, x: Tensor) -> Tensor:
        return x if x.is_meta else x + self.view


class Extra(Base):
    """State of its own, as quantised and 8-bit layers have it."""

    def begin(self) -> None:
        object.__setattr__(self, "hidden", lambda: None)
        self.hidden.scale = 1.0  # type: ignore[attr-defined]

    def get_extra_state(self) -> Any:
        return {"scale": self.hidden.scale}

    def set_extra_state(self, state: Any) -> None:
        self.hidden.scale = state["scale"]

    def mid(self, x: Tensor) -> Tensor:
        if self.training:
            self.hidden.scale *= 1.02
        return x * self.hidden.scale


class Chance(Base):
    """Chance from Python's, numpy's and a generator of its own."""

    def begin(self) -> None:
        self.noise = torch.Generator().manual_seed(3)

    def mid(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * random.random() * np.random.rand() * np.random.randn() + torch.rand(16, generator=self.noise)


class Freezing(Base):
    """Freezes a bias, and switches its dropout off, for good or until the next judging."""

    def begin(self) -> None:
        self.drop, self.calls = nn.Dropout(0.3), 0

    def mid(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            self.h.bias.requires_grad_(self.calls < 2)
            self.drop.train(self.calls % 5 < 2)
        return self.drop(x)


class Sharing(Base):
    """Two attributes of one memory, changed in place."""

    def begin(self) -> None:
        self.sum, self.part = torch.zeros(16), torch.zeros(4)

    def mid(self, x: Tensor) -> Tensor:
        if x.is_meta:
            return x
        if self.training:
            if self.part._base is not self.sum:
                self.part = self.sum[:4]
            self.sum += x.detach().mean(0)
        return x + self.sum.sum() / 100 - self.part.sum() / 10


NETS = [Base, Expanded, Overlapping, Growing, Lazy, Counting, Aliases, Extra, Chance, Freezing, Sharing]


class ShutDice(Base):
    def begin(self) -> None:
        self.dice = random.Random(0)

    def mid(self, x: Tensor) -> Tensor:
        return x * self.dice.random() if self.training else x


class Queue(Base):
    def begin(self) -> None:
        self.queue = collections.deque([1.0], maxlen=4)

    def mid(self, x: Tensor) -> Tensor:
        if self.training:
            self.queue.append(float(x.detach().mean()))
        return x * sum(self.queue)


class NumpyScale(Base):
    def begin(self) -> None:
        self.scale = np.float32(1)

    def mid(self, x: Tensor) -> Tensor:
        if self.training:
            self.scale = self.scale * np.float32(0.9)
        return x * float(self.scale)


class OddExtra(Extra):
    def get_extra_state(self) -> Any:
        return [object()]


class OfTheClass(Base):
    calls = 0

    def mid(self, x: Tensor) -> Tensor:
        type(self).calls += self.training
        return x * (1 + self.calls / 100)


class Yielding(Base):
    def begin(self) -> None:
        self.rates = (1 + 0.1 * i for i in range(10**6))

    def mid(self, x: Tensor) -> Tensor:
        return x * next(self.rates) if self.training else x


class Experts(Base):
    """The expert of the day, and the others in another order."""

    def begin(self) -> None:
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.current = self.experts[0]

    def mid(self, x: Tensor) -> Tensor:
        if self.training:
            self.current = self.experts[1]
            self.experts[1], self.experts[2] = self.experts[2], self.experts[1]
        return self.current(x)


class LateNorm(Base):
    def mid(self, x: Tensor) -> Tensor:
        if self.training and len(x) > 1 and not hasattr(self, "norm"):
            self.norm = nn.BatchNorm1d(16, affine=False)
        return self.norm(x) if hasattr(self, "norm") else x


class Anew(Base):
    """A part of the same kind in the place of another, and a parameter that no optimiser knows."""

    def mid(self, x: Tensor) -> Tensor:
        if self.training:
            self.b = nn.Linear(16, 16)
            self.h.bias = nn.Parameter(self.h.bias.detach() + 1)
        return x


class Hooked(Base):
    def mid(self, x: Tensor) -> Tensor:
        if self.training and not self.h._forward_hooks:
            self.h.register_forward_hook(lambda module, inputs, out: 2 * out)
        return x


class Sliding(Base):
    """A view that slides over a bias."""

    def begin(self) -> None:
        self.view = self.b.bias.detach()[:1]

    def mid(self, x: Tensor) -> Tensor:
        if self.training and not x.is_meta:
            self.view = self.b.bias.detach()[3:4]
        return x + self.view


class Ring(Base):
    def begin(self) -> None:
        self.ring: list[Any] = [0]

    def mid(self, x: Tensor) -> Tensor:
        if self.training:
            self.ring = [len(self.ring)]
            self.ring.append(self.ring)
        return x


FORGETFUL = [
    (Yielding, "attribute 'rates' of module 'net' (Yielding) changes and holds a generator"),
    (Experts, "modules current of module 'net' (Experts): they are not those that it was built with"),
    (LateNorm, "modules norm of module 'net' (LateNorm): they are not those that it was built with"),
    (Anew, "modules b of module 'net' (Anew): they are not those that it was built with"),
    (Hooked, "forward hooks "),
    (Sliding, "attribute 'view' of module 'net' (Sliding) changes and holds a view of b.bias"),
    (Ring, "attribute 'ring' of module 'net' (Ring) changes and holds a list"),
    (ShutDice, "attribute 'dice' of module 'net' (ShutDice) changes and holds a random.Random"),
    (Queue, "attribute 'queue' of module 'net' (Queue) changes and holds a collections.deque"),
    (NumpyScale, "attribute 'scale' of module 'net' (NumpyScale) changes and holds a numpy.float32"),
    (OddExtra, "get_extra_state() of module 'net' holds a object"),
]


@dataclass(frozen=True)
class Holding(Blobs):
    kind: Any = Base

    def build(self, seed: int, width: float = 1.0) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.kind()


def start(kind: Any, method: str = "static") -> Training:
    task = Holding(recipe=replace(Blobs().recipe, steps=12), kind=kind)
    return Training(task, registry.method(method, sparsity=0.5) if method != "dense" else registry.method(method))


@pytest.mark.parametrize("kind", NETS)
def test_a_network_resumes_bit_for_bit(kind: Any) -> None:
    whole = start(kind)
    whole.setup()
    saved = []
    whole.run(after=lambda: saved.append(frozen(whole.state())) if whole.t in (1, 7) else None)
    assert not whole.forgets()
    wanted, score = thawed(frozen(whole.state())), whole.evaluate("valid")
    for state in saved:
        again = start(kind)
        for _ in range(3):
            random.random(), np.random.rand(), torch.rand(1)  # of other work in this process
        again.load(thawed(state))
        again.run()
        assert differences(wanted, thawed(frozen(again.state()))) == []
        assert again.evaluate("valid") == score


@pytest.mark.parametrize(("kind", "text"), FORGETFUL)
def test_what_no_checkpoint_can_hold_is_named(kind: Any, text: str) -> None:
    training = start(kind)
    training.setup()
    training.run(until=3)
    found = training.forgets()
    assert found[0].startswith(text) and (len(found) == 1 or kind in (Experts, LateNorm, Anew))
    if kind is Anew:
        assert any(one.startswith("parameters bias of module 'h'") for one in found)


def test_what_does_not_change_is_no_hindrance() -> None:
    class Furnished(Base):
        def begin(self) -> None:
            self.act, self.config, self.dice, self.table = F.relu, object(), random.Random(0), np.ones(3)
            self.where, self.roll, self.kinds = lambda x: x, self.mid, [Local(), lambda: 0, Local]
            self.later = functools.partial(lambda x: x, 1)

    class Local:
        pass

    training = start(Furnished)
    training.setup()
    training.run(until=3)
    assert training.forgets() == [] and training.state()["lasting"]["attributes"] == []


@pytest.mark.parametrize("value", [np.float32(1), np.ones(2), lambda: 0, [object()], {"a": collections.deque()}])
def test_memory_that_no_checkpoint_can_hold_is_named(value: Any) -> None:
    training = start(Base)
    training.setup()
    training.method.memory["odd"] = value
    (text,) = training.forgets()
    assert text.startswith("static: memory['odd'] holds a ")


@pytest.mark.parametrize("value", [{1, 2}, (1, [2.5]), collections.OrderedDict(a=None), torch.ones(2), b"x", "y", 1j])
def test_what_is_held_to_be_storable_is(value: Any) -> None:
    assert lasting.foreign(value) == ""
    frozen({"a": value}) and thawed(frozen({"a": value}))


@pytest.mark.parametrize(("kind", "parts"), [(Queue, ["Queue"]), (Growing, None)])
def test_a_run_says_that_it_cannot_be_resumed(
    kind: Any, parts: Any, tmp_path: Path, monkeypatch: Any, capfd: Any
) -> None:
    task = Holding(recipe=replace(Blobs().recipe, steps=12), kind=kind)
    monkeypatch.setattr(run, "build", lambda asked: (task, registry.method("static")))
    monkeypatch.setattr(run._Execution, "_code", lambda self: CODE)
    monkeypatch.setattr(run, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(run, "CHECKPOINT_SHARE", 1e9)
    assert run.execute(Run("static", task.name, 0.9).to_json(), str(tmp_path)) == "ok"
    (found,) = record.load(tmp_path)[0]
    said = found["stamps"].get("unsaved")
    if parts is None:
        assert said is None
    else:
        assert len(said) == 1 and all(part in said[0] for part in parts)
        assert "no checkpoint from step 1 on: attribute 'queue'" in capfd.readouterr().err


# ---- what `dstbench check` says --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "text"), [(Counting, ""), (OfTheClass, "resumed after step 10, "), *FORGETFUL])
def test_the_check_of_a_task_tells_whether_it_resumes(kind: Any, text: str) -> None:
    found = conformance.CHECKS["resuming is exact"](Holding(kind=kind))
    assert text in found and bool(found) == bool(text)
