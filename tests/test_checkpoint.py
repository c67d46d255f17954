"""A checkpoint is the one that was written, for this run, or is set aside by name and the run begins afresh."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dstbench.suite import checkpoint, record
from dstbench.suite.plan import Run
from dstbench.suite.run import _Execution, execute
from dstbench.suite.sources import suite_hash

BLOCKS = ("hashes", "curve", "score", "sparsity")


class Stopped(BaseException):
    """The process is gone."""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plugin") / "failing.py"
    path.write_text(Path(__file__).with_name("failing.py").read_text())
    return str(path)


def stopped(run: Run, results: Path, step: int) -> Path:
    """The checkpoint of a run that was killed after `step`."""

    def stop(self: Any, training: Any) -> None:
        if training.t == step:
            self._save(training)
            raise Stopped

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(_Execution, "_checkpoint", stop)
        execute(run.to_json(), str(results))
    return results / "work" / run.key / "checkpoint.pt"


def outcome(run: Run, results: Path) -> dict[str, Any]:
    execute(run.to_json(), str(results))
    return record.read(record.paths(results, run.key)[-1])


def sealed(content: bytes) -> bytes:
    """What a file with this content looks like, written by someone who knows how."""
    return content + checkpoint.MARK + hashlib.sha256(content).hexdigest().encode()


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def flipped(content: bytes) -> bytes:
    place = len(content) // 3
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_a_state_is_read_back_for_its_run_alone(tmp_path: Path) -> None:
    path = tmp_path / "work" / "checkpoint.pt"
    checkpoint.write(path, {"key": "a" * 12, "w": torch.arange(5.0)})
    assert torch.equal(checkpoint.read(path, "a" * 12)["w"], torch.arange(5.0))
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.pt"]
    content = path.read_bytes()
    assert content == sealed(content[: -checkpoint.TAIL])
    with pytest.raises(checkpoint.Damaged, match="of another run, 'aaaaaaaaaaaa'"):
        checkpoint.read(path, "b" * 12)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (flipped, "its digest is not that of its content"),
        (lambda content: content[:-1] + b"g", "its digest is not that of its content"),
        (lambda content: content[: len(content) // 2], "it has no digest"),
        (lambda content: b"", "it has no digest"),
        (lambda content: sealed(pickle.dumps({"key": 1})), "more, or less, than the state of a run"),
        (lambda content: sealed(b"not a zip"), "more, or less, than the state of a run"),
    ],
)
def test_what_does_not_match_is_damaged(tmp_path: Path, change: Callable[[bytes], bytes], why: str) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.write(path, {"key": "a" * 12, "w": torch.arange(500.0)})
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(checkpoint.Damaged, match=why) as error:
        checkpoint.read(path, "a" * 12)
    assert "weights_only" not in str(error.value)


def test_what_is_no_file_is_damaged(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for name in (".", "pipe", "link"):
        with pytest.raises(checkpoint.Damaged, match="no plain file"):
            checkpoint.read(tmp_path / name, "a" * 12)


@pytest.mark.parametrize(
    "how", ["flipped", "another run", "bomb", "folder", "other code", "other suite", "lacks a part"]
)
def test_the_run_begins_afresh_and_its_record_says_so(tmp_path: Path, plugin: str, how: str) -> None:
    run = Run("rigl", "blobs", 0.5, plugins=(plugin,))
    whole, results = outcome(run, tmp_path / "whole"), tmp_path / "results"
    path = stopped(run, results, 12)
    if how == "flipped":
        path.write_bytes(flipped(path.read_bytes()))
    elif how == "another run":
        path.write_bytes(stopped(Run("rigl", "blobs", 0.5, seed=1, plugins=(plugin,)), tmp_path / "o", 12).read_bytes())
    elif how == "bomb":
        torch.save({"key": run.key, "x": Bomb(tmp_path / "canary")}, path)
        path.write_bytes(sealed(path.read_bytes()))
    elif how == "folder":
        path.unlink(), path.mkdir()
    else:
        state = checkpoint.read(path, run.key)
        if how == "lacks a part":  # as of a network that made it later
            state["training"]["lasting"]["buffers"]["late.norm"] = torch.ones(3)
        else:
            made_by = state["made_by"]
            made_by[made_by.index(suite_hash()) if how == "other suite" else 0] = "another"
        checkpoint.write(path, state)
    found = outcome(run, results)
    assert found["status"]["name"] == "ok" and found["stamps"]["resumed"] == 0
    said = found["stamps"]["checkpoint"]
    assert said.startswith("checkpoint.pt was set aside as checkpoint.aside.") and "the run began afresh" in said
    assert [found[block] for block in BLOCKS] == [whole[block] for block in BLOCKS]
    assert not (tmp_path / "canary").exists() and not (results / "work" / run.key).exists()


def test_a_file_that_cannot_be_set_aside_is_not_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoint.pt").write_text("torn")

    def fail(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", fail)
    state, note = checkpoint.take(tmp_path / "checkpoint.pt", "a" * 12)
    assert state is None and note.startswith(
        "checkpoint.pt was not used, and not set aside (Permission denied): it has"
    )


def test_all_that_befell_checkpoints_is_said(tmp_path: Path, plugin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run("set", "blobs", 0.5, plugins=(plugin,))
    path = tmp_path / "work" / run.key / "checkpoint.pt"
    path.parent.mkdir(parents=True)
    path.write_text("torn")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write", full)
    monkeypatch.setattr("dstbench.suite.run.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("dstbench.suite.run.CHECKPOINT_SHARE", 1e9)
    said = outcome(run, tmp_path)["stamps"]["checkpoint"]
    assert said.count("was set aside") == said.count("one could not be written: No space left") == 1


def test_a_run_that_cannot_be_saved_asks_as_seldom_as_others_save(tmp_path: Path) -> None:
    execution, asked = _Execution(Run("set", "blobs"), tmp_path, False, ""), []
    training = SimpleNamespace(t=1, forgets=lambda: asked.append(1) or ["a generator"])
    execution.saved_at = execution.saving = 0.0
    for _ in range(5):
        execution._checkpoint(training)  # type: ignore[arg-type]
    assert len(asked) == 1 and execution.record["stamps"]["unsaved"] == ["a generator"]


def test_a_good_checkpoint_goes_on_and_nothing_is_said(tmp_path: Path, plugin: str) -> None:
    run = Run("set", "blobs", 0.5, plugins=(plugin,))
    whole = outcome(run, tmp_path / "whole")
    stopped(run, tmp_path, 9)
    found = outcome(run, tmp_path)
    assert found["stamps"]["resumed"] == 1 and found["stamps"]["checkpoint"] is None
    assert [found[block] for block in BLOCKS] == [whole[block] for block in BLOCKS]


def test_a_run_does_without_checkpoints_that_cannot_be_written(tmp_path: Path, plugin: str) -> None:
    run = Run("set", "blobs", 0.5, plugins=(plugin,))
    (tmp_path / "work").write_text("a file where a folder should be")
    found = outcome(run, tmp_path)
    assert found["status"]["name"] == "ok" and "one could not be written" in found["stamps"]["checkpoint"]


def test_the_record_goes_before_the_checkpoint_where_room_is_short(
    tmp_path: Path, plugin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, write = Run("set", "blobs", 0.5, plugins=(plugin,)), record.write

    def full(found: dict[str, Any], results: Path) -> Path:
        if (tmp_path / "work" / run.key).exists():
            raise record.Unwritable("No space left on device")
        return write(found, results)

    monkeypatch.setattr(record, "write", full)
    assert outcome(run, tmp_path)["status"]["name"] == "ok"
