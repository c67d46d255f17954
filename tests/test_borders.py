"""What plugins hand over (scores, losses, rates, counts, texts): converted at the border, or refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import Blobs
from dstbench.suite import lasting, record, registry, run, values, words
from dstbench.suite.plan import Run
from dstbench.suite.train import Diverged, Training
from records import make

CODE = {"method_source": "a", "task_source": "b", "versions": {}}
SCALARS = [
    np.float32(0.5),
    np.float64(0.5),
    np.array(0.5),
    np.array([0.5], dtype=np.float16),
    torch.tensor(0.5),
    torch.tensor([0.5], dtype=torch.bfloat16),
    torch.tensor(0.5, requires_grad=True),
    0.5,
]
NO_NUMBERS = [None, "0.7", True, np.bool_(True), 1j, np.zeros(3), torch.zeros(2), {"accuracy": 1.0}, 10**400]


@pytest.mark.parametrize("value", SCALARS, ids=repr)
def test_a_scalar_of_any_library_is_a_number(value: Any) -> None:
    found = values.number(value, "f returned")
    assert type(found) is float and found == 0.5
    assert values.plain({"a": [value]}) in ({"a": [0.5]}, {"a": [[0.5]]})
    faults: list[str] = []
    assert json.dumps(values.stored({"a": value}, faults)) == '{"a": 0.5}' and not faults


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda v: repr(v)[:20])
def test_what_is_no_number_is_refused_by_name_and_value(value: Any) -> None:
    with pytest.raises(TypeError) as error:
        values.number(value, "digits/mlp: evaluate('valid') returned")
    text = f"digits/mlp: evaluate('valid') returned {words.shown(value)}; a number is expected"
    assert str(error.value) == text


def test_what_json_cannot_hold_is_named_with_its_place() -> None:
    faults: list[str] = []
    odd = {"flops": {"charged": float("inf")}, "curve": {"loss": [1, np.float32("nan")]}, "a": {"b": object}}
    found = values.stored(odd, faults)
    assert found["flops"] == {"charged": None} and found["curve"] == {"loss": [1, None]}
    assert faults[0] == "flops.charged is inf" and faults[1].startswith("curve.loss[1] is ") and len(faults) == 3
    json.dumps(found, allow_nan=False)


def test_plain_keeps_what_it_can_of_odd_content() -> None:
    found = values.plain({"text": "\ud800", "nan": float("nan"), "array": np.arange(3), "tensor": torch.ones(2)})
    assert found == {"text": "'\\ud800'", "nan": "NaN", "array": [0, 1, 2], "tensor": [1.0, 1.0]}
    json.dumps(found).encode()


# ---- texts -----------------------------------------------------------------------------------------------------------


class Silent(Exception):
    def __str__(self) -> str:
        raise KeyError("no text")

    __repr__ = __str__


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (Silent(), "Silent: (its text cannot be had: KeyError)"),
        (ValueError("\x00\ud800\x1b[2J"), "ValueError: \\x00\\ud800\\x1b[2J"),
        (ValueError("two\nlines"), "ValueError: two\nlines"),
        (MemoryError(), "MemoryError: "),
    ],
)
def test_the_text_of_an_error_can_be_printed_anywhere(error: Exception, text: str) -> None:
    assert words.told(error) == text
    words.told(error).encode("utf-8")


def test_texts_are_bounded() -> None:
    text = words.told(RuntimeError("z" * 10_000_000))
    assert len(text) < 2100 and text.endswith("z…")
    assert len(words.shown("z" * 10_000_000)) <= 60 and words.shown(Silent()) == "a value of type Silent"


# ---- a run ----------------------------------------------------------------------------------------------------------


class Scored(Blobs):
    """A task whose evaluate returns a value of the test's choice in place of the accuracy."""

    def evaluate(self, model: Any, split: str, device: Any) -> Any:
        return self.metric_of(super().evaluate(model, split, device))


def execute(task: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str = "static") -> dict[str, Any]:
    """The record of a run of the task, in this process."""
    monkeypatch.setattr(run, "build", lambda asked: (task, registry.method(method)))
    monkeypatch.setattr(run._Execution, "_code", lambda self: CODE)
    run.execute(Run(method, task.name, 0.9).to_json(), str(tmp_path))
    (found,), set_aside = record.load(tmp_path)
    assert not set_aside
    return found


def scored(metric_of: Any, **fields: Any) -> Blobs:
    task = Scored(recipe=replace(Blobs().recipe, steps=200), **fields)
    object.__setattr__(task, "metric_of", metric_of)
    return task


@pytest.mark.parametrize("kind", [np.float32, np.array, lambda v: torch.tensor([v], dtype=torch.bfloat16)])
def test_a_score_of_any_library_is_a_number_in_the_record(kind: Any, tmp_path: Path, monkeypatch: Any) -> None:
    task = scored(kind, chance=np.float32(0.25), target=torch.tensor(0.5), higher_is_better=np.bool_(True))
    found = execute(task, tmp_path, monkeypatch)
    score = found["score"]
    assert found["status"]["name"] == "ok" and type(score["valid"]) is type(score["test"]) is float
    assert score["chance"] == 0.25 and score["target"] == 0.5 and score["higher_is_better"] is True
    assert {type(v) for v in found["curve"]["valid"]} == {type(None), float}


@pytest.mark.parametrize(
    ("value", "status", "text"),
    [
        (float("nan"), "diverged", "the metric accuracy on valid is nan after the last step"),
        (np.float32("-inf"), "diverged", "the metric accuracy on valid is -inf after the last step"),
        (-1e305, "diverged", "the metric accuracy on valid is -1e+305 after the last step"),
        (None, "error", "test/blobs: evaluate('valid') returned None; a number is expected"),
        ("0.715", "error", "test/blobs: evaluate('valid') returned '0.715'; a number is expected"),
    ],
)
def test_a_score_that_is_none_keeps_what_was_measured(
    value: Any, status: str, text: str, tmp_path: Path, monkeypatch: Any
) -> None:
    found = execute(scored(lambda _: value), tmp_path, monkeypatch)
    assert found["status"]["name"] == status and text in found["status"]["reason"]
    assert "evaluate" in found["status"]["traceback"] or "_judge" in found["status"]["traceback"]
    for block in ("params", "flops", "time", "curve", "memory", "machine", "code"):
        assert found[block] is not None, block
    assert found["score"] is None and not any(found["curve"]["valid"])


@pytest.mark.parametrize("field", [{"chance": "0.1"}, {"target": float("nan")}])
def test_a_task_that_cannot_be_judged_is_refused_before_it_trains(field: Any, tmp_path: Path, monkeypatch: Any) -> None:
    found = execute(scored(float, **field), tmp_path, monkeypatch)
    (name,) = field
    assert found["status"]["name"] == "error" and f"test/blobs: {name} is" in found["status"]["reason"]
    assert found["flops"] is None


@pytest.mark.parametrize(
    ("block", "field", "value", "text"),
    [
        ("flops", "charged", float("inf"), "flops.charged is inf"),
        ("time", "wall", 1e305, "time.wall is 1e+305"),
        ("memory", "model_dense", "much", "memory.model_dense is 'much'"),
        ("curve", "loss", [1e305], "curve has columns of lengths"),
        ("machine", "cpu", 3, "machine.cpu is 3"),
        ("params", "own", [[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]], "params is nested deeper than 20 levels"),
        ("code", "commit", "x" * 10**6, "code is 1 MiB"),
    ],
)
def test_what_no_record_can_hold_costs_its_block_alone(
    block: str, field: str, value: Any, text: str, tmp_path: Path, monkeypatch: Any
) -> None:
    measure = run._Execution._measure

    def spoilt(self: Any, training: Training) -> None:
        measure(self, training)
        self.record[block][field] = value

    monkeypatch.setattr(run._Execution, "_measure", spoilt)
    monkeypatch.setattr(record, "LARGEST", 10**6)
    found = execute(Blobs(recipe=replace(Blobs().recipe, steps=4)), tmp_path, monkeypatch)
    assert found["status"]["name"] == "error" and text in found["status"]["reason"]
    assert [b for b in record.BLOCKS if not found[b]] == [block]


def test_a_loss_that_no_record_can_hold_is_a_divergence() -> None:
    training = Training(Blobs(), registry.method("static"))
    training.setup()
    training.method.descend = lambda batch: 1e305  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(Diverged, match=r"the loss is 1e\+305 at step 0"):
        training.run()


@pytest.mark.parametrize("text", ["a\u00a0b", "\u200b", "\U0001f469\u200d\U0001f52c", "\ud800", "\x1b[1m", "t\tn\n"])
def test_texts_of_an_identity_go_into_the_record_as_they_are(text: str, tmp_path: Path) -> None:
    asked = Run("static", "t", 0.9, hyperparameters={"text": text, f"{text} name": 1})
    execution = run._Execution(asked, tmp_path, False, "")
    execution.record["status"].update(name="ok", reason=text)
    execution.record |= {block: make()[block] for block in ("score", "sparsity")}
    execution._make_storable()
    found = record.read(record.write(execution.record, tmp_path))
    assert found["status"]["name"] == "ok" and found["id"]["key"] == asked.key
    assert all(c.isprintable() or c in "\t\n" for c in str(found["id"]) + found["status"]["reason"])


# ---- a training ------------------------------------------------------------------------------------------------------


class Odd(Blobs):
    """A task of which one function returns a value of the test's choice."""

    def loss(self, model: Any, batch: Any) -> Any:
        found = super().loss(model, batch)
        return self.loss_of(found) if hasattr(self, "loss_of") else found

    def batches(self, split: str, seed: int, start: int = 0) -> Any:
        found = super().batches(split, seed, start)
        return self.batches_of(found) if hasattr(self, "batches_of") else found


def train(method: Any = None, **odd: Any) -> Training:
    task = Odd(recipe=replace(Blobs().recipe, steps=8))
    for name, function in odd.items():
        object.__setattr__(task, name, function)
    training = Training(task, method or registry.method("static", sparsity=0.5))
    training.setup()
    training.run()
    return training


def test_a_loss_of_one_value_trains_as_a_scalar() -> None:
    assert train(loss_of=lambda loss: loss[None]).curve == train().curve


@pytest.mark.parametrize(
    ("odd", "text"),
    [
        ({"loss_of": lambda loss: None}, "test/blobs: loss returned None; a tensor of one value"),
        ({"loss_of": lambda loss: loss.item()}, "test/blobs: loss returned "),
        ({"loss_of": lambda loss: loss.expand(4)}, "test/blobs: loss returned tensor("),
        ({"batches_of": lambda found: (x for x, _ in zip(found, range(3), strict=False))}, "ended at step 3"),
        ({"batches_of": lambda found: ({"x": x, "y": y} for x, y in found)}, "batches('train') gave {'x'"),
        ({"batches_of": lambda found: ((x.numpy(), y) for x, y in found)}, "two tensors are expected"),
    ],
)
def test_what_a_task_returns_is_refused_by_name(odd: Any, text: str) -> None:
    with pytest.raises((TypeError, RuntimeError)) as error:
        train(**odd)
    assert text in str(error.value)


def test_a_rate_of_any_library_is_a_number_in_the_checkpoint(tmp_path: Path) -> None:
    for kind in (np.float32, torch.tensor):
        method = registry.method("static", sparsity=0.5)
        method.lr = lambda t, kind=kind: kind(0.01)
        training = train(method)
        torch.save(training.state(), tmp_path / "state")
        torch.load(tmp_path / "state", weights_only=True)
        assert {type(g["lr"]) for g in method.optimizer.param_groups} == {float}
    method = registry.method("static", sparsity=0.5)
    method.lr = lambda t: "fast"
    with pytest.raises(TypeError, match=r"static: lr\(0\) returned 'fast'; a number is expected"):
        train(method)


@pytest.mark.parametrize("flops", [float("nan"), float("inf"), -1, None, "many"])
def test_a_charge_that_is_no_count_is_refused(flops: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="charge was given"):
        registry.method("static").charge(flops)


def test_a_charge_of_any_library_is_a_whole_number() -> None:
    method = train().method
    for flops in (np.float32(3), torch.tensor(4), np.int64(5)):
        method.charge(flops)
    assert type(method.charged) is int and method.charged == 12


# ---- types that numpy lacks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int64, torch.complex64])
def test_the_content_of_a_tensor_is_what_numpy_has(dtype: torch.dtype) -> None:
    for tensor in (torch.ones(3, dtype=dtype), torch.ones((), dtype=dtype), torch.ones(1, dtype=dtype).expand(4)):
        assert lasting.content(tensor) == tensor.contiguous().numpy().tobytes()


def test_a_network_with_types_that_numpy_lacks_is_hashed_and_saved(tmp_path: Path, monkeypatch: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Blobs().build(0)
            self.register_buffer("scale", torch.ones(3, dtype=torch.bfloat16))
            self.register_buffer("small", torch.ones(3).to(torch.float8_e4m3fn))
            self.register_buffer("wave", torch.ones(3, dtype=torch.complex64).conj())

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) * self.scale.float().mean()

    class Narrow(Blobs):
        def build(self, seed: int) -> nn.Module:
            return Net()

    found = execute(Narrow(recipe=replace(Blobs().recipe, steps=8)), tmp_path, monkeypatch)
    assert found["status"]["name"] == "ok", found["status"]
