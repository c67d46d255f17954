"""What is checked under which name, and that every breach of a task is caught by its own check."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import Blobs
from dstbench.suite import check, conformance, registry
from dstbench.suite.check import Verdict, judge
from dstbench.suite.task import Batch, Task

FAILING = Path(__file__).with_name("failing.py")


class Good(Blobs):
    """Healthy: what the breaches below start from."""

    def build(self, seed: int, width: float = 1.0) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(12, round(24 * width)), nn.ReLU(), nn.Linear(round(24 * width), 4))


class NarrowPrint(Good):
    def fingerprint(self) -> str:
        return "v1"


class RestlessPrint(Good):
    def fingerprint(self) -> str:
        return f"{torch.randint(10**9, ()):012d}"


class Unseeded(Good):
    def build(self, seed: int, width: float = 1.0) -> nn.Module:
        return nn.Linear(12, round(4 * width))


class Seeding(Good):
    def build(self, seed: int, width: float = 1.0) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Linear(12, round(4 * width))


class Deaf(Good):
    def build(self, seed: int, width: float = 1.0) -> nn.Module:
        return super().build(0, width)


class Rigid(Good):
    def build(self, seed: int, width: float = 1.0) -> nn.Module:
        return super().build(seed)


class WithoutWidth(Good):
    def build(self, seed: int) -> nn.Module:  # type: ignore[override]
        return super().build(seed)


class OddExample(Good):
    def example(self) -> Tensor:
        return torch.zeros(2, 3, 4)


class Short(Good):
    def batches(self, split: str, seed: int, start: int = 0) -> Iterator[Batch]:
        found = super().batches(split, seed, start)
        return (next(found) for _ in range(4))


class Forgetful(Good):
    def batches(self, split: str, seed: int, start: int = 0) -> Iterator[Batch]:
        return super().batches(split, seed, 0 if split == "calibration" else start)


class Stuck(Good):
    def batches(self, split: str, seed: int, start: int = 0) -> Iterator[Batch]:
        found = super().batches(split, seed)
        return cycle([next(found)]) if split == "train" else found


class Wavering(Good):
    def batches(self, split: str, seed: int, start: int = 0) -> Iterator[Batch]:
        return ((x + seed, y) for x, y in super().batches(split, seed, start))


class Empty(Good):
    def batches(self, split: str, seed: int, start: int = 0) -> Iterator[Batch]:
        return iter(()) if split == "test" else super().batches(split, seed, start)


class Leaky(Good):
    def batches(self, split: str, seed: int, start: int = 0) -> Iterator[Batch]:
        return super().batches("valid" if split == "test" else split, seed, start)


class OneSplit(Good):
    """Judges the optimisation: every split is one batch, again and again."""

    one_split = True

    def batches(self, split: str, seed: int, start: int = 0) -> Iterator[Batch]:
        whole = next(super().batches("valid", 0))
        return cycle([whole]) if split in ("train", "calibration") else iter([whole])


class Infinite(Good):
    def loss(self, model: Any, batch: Batch) -> Tensor:
        return super().loss(model, batch) / 0


class Noisy(Good):
    def evaluate(self, *_: Any) -> float:
        return float(torch.rand(()))


def wrong(task: Task) -> dict[str, str]:
    return {title: text for title, test in conformance.CHECKS.items() if (text := test(task))}


def test_a_healthy_task_passes() -> None:
    assert wrong(Good()) == {}


@pytest.mark.parametrize(
    ("kind", "title", "text"),
    [
        (NarrowPrint, "fingerprint is steady", "is 'v1'; give 12 hex digits"),
        (RestlessPrint, "fingerprint is steady", "another value"),
        (Unseeded, "network is of the seed alone", "gives other weights when called again"),
        (Seeding, "network is of the seed alone", "moves the global generator"),
        (Deaf, "network is of the seed alone", "build(1) give the same weights"),
        (Rigid, "width scales the network", "no more weights"),
        (OddExample, "example fits the batches", "an input of train has shape (12,), one of example() (3, 4)"),
        (Infinite, "example fits the batches", "the loss of the first batch is inf"),
        (Short, "batches are of seed and step", "end after 4"),
        (Forgetful, "batches are of seed and step", "batches('calibration', 0, start=5) begin with another"),
        (Stuck, "batches are of seed and step", "repeat one batch"),
        (Wavering, "judging splits are whole and fixed", "the batches of 'valid' depend on the seed"),
        (Empty, "judging splits are whole and fixed", "batches('test', 0) are empty"),
        (Leaky, "splits share no input", "64 inputs of valid are in test too"),
        (Noisy, "a short training is finite", "the metric on valid is"),
    ],
)
def test_each_breach_is_caught(kind: type[Good], title: str, text: str) -> None:
    assert text in conformance.CHECKS[title](kind())


def test_a_task_of_one_split_may_repeat_its_batch_and_a_few_duplicates_are_no_leak(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not any(test(OneSplit()) for test in conformance.CHECKS.values())
    monkeypatch.setattr(conformance, "SHARED", 0.99)
    assert "64 inputs of valid are in test too, of 64" in conformance.splits_share_no_input(Leaky())
    monkeypatch.setattr(conformance, "SHARED", 1.0)
    assert conformance.splits_share_no_input(Leaky()) == ""


def test_a_task_without_layers_is_named(blobs: Blobs) -> None:
    assert "no Layer is found" in conformance.CHECKS["example fits the batches"](replace(Good(), dense=("*",)))


def test_a_network_of_one_width_says_so_by_a_value_error() -> None:
    assert conformance.CHECKS["width scales the network"](registry.task("digits/mlp")) == ""
    one_width = replace(registry.task("digits/mlp"), widths={})
    assert conformance.CHECKS["width scales the network"](one_width) == ""


# ---- what is checked -------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The calls of `check_all`; every method is well."""
    calls: list[tuple[Any, ...]] = []

    def check_all(names: Sequence[str], task: str, kernel: str, jobs: int, *others: Any) -> Iterator[check.Result]:
        plugins, root = others
        calls.append((list(names), task, kernel, jobs, list(plugins)))
        assert root is None
        yield from ((name, [Verdict(name, True, "holds")], 0.0) for name in names)

    monkeypatch.setattr(check, "check_all", check_all)
    return calls


def names(*arguments: Any, **options: Any) -> list[str]:
    return [name for name, *_ in conformance.results(*arguments, **options)]


def test_a_method_and_all_methods_go_to_the_check_of_methods(asked: list[tuple[Any, ...]]) -> None:
    assert names("rigl", "digits/vit", "compact") == ["rigl"]
    assert names("", "digits/mlp", "masked", 3) == list(registry.methods())
    assert asked == [
        (["rigl"], "digits/vit", "compact", 1, []),
        (list(registry.methods()), "digits/mlp", "masked", 3, []),
    ]


def test_a_file_is_checked_whole(asked: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = tmp_path / "mine.py", tmp_path / "other.py"
    path.write_text(FAILING.read_text())
    other.write_text("from dstbench import Method, register\n@register\nclass Mine(Method): ...\n")
    monkeypatch.chdir(tmp_path)
    found = names("mine.py", "blobs", "masked", 2)
    assert found[:3] == ["blobs", "raises_in_setup", "raises_in_step"]
    assert names("other.py", "blobs", "masked", plugins=[str(path)]) == ["mine"]
    assert asked == [
        (found[1:], "blobs", "masked", 2, [str(path)]),
        (["mine"], "blobs", "masked", 1, [str(other), str(path)]),
    ]


def test_a_task_is_checked_by_name(asked: list[tuple[Any, ...]], tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(FAILING.read_text())
    ((name, verdicts, seconds),) = conformance.results("blobs", "", "", plugins=[str(path)])
    assert name == "blobs" and seconds > 0 and len(verdicts) == len(conformance.CHECKS) and not asked
    bad = {v.name: v.text for v in verdicts if not v.ok}
    assert bad["blobs: width scales the network"].startswith("TypeError: ")


def test_names_and_files_that_are_not_there_are_errors(tmp_path: Path) -> None:
    with pytest.raises(registry.RegistryError, match="unknown method 'rigel'; did you mean rigl"):
        list(conformance.results("rigel", "digits/mlp", "masked"))
    with pytest.raises(registry.Broken, match="no such plugin file"):
        list(conformance.results(str(tmp_path / "none.py"), "digits/mlp", "masked"))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(registry.Broken, match="registers nothing"):
        list(conformance.results(str(tmp_path / "empty.py"), "digits/mlp", "masked"))


def test_one_exception_is_told_once_and_others_apart() -> None:
    def fails(text: str) -> str:
        raise ValueError(text)

    tests = {
        "one": lambda: fails("at step 1"),
        "two": lambda: "",
        "four": lambda: 1 / 0,  # type: ignore[dict-item]
        "five": lambda: "wrong",
    }
    tests = {**tests, "three": tests["one"]}
    verdicts = judge("m", tests, {__file__})  # type: ignore[arg-type]
    assert [(v.name, v.ok) for v in verdicts] == [
        ("m: one", False), ("m: two", True), ("m: four", False), ("m: five", False),
    ]  # fmt: skip
    assert verdicts[0].text.startswith("ValueError: at step 1 (test_conformance.py:")
    assert verdicts[0].text.endswith("; 1 more check ended there") and verdicts[3].text == "wrong"
