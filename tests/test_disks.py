"""Disks that are full, read-only or gone, files that killed calls left, and file systems that lack something."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dstbench import streams
from dstbench.suite import executors, lock, logs, record, watch
from dstbench.suite.executors import Outcome
from dstbench.suite.plan import Run
from dstbench.suite.processes import Failed
from dstbench.suite.tidy import tidy
from records import ended, make
from test_manners import call

PLAN = ["run", "--methods", "dense,static", "--tasks", "digits/mlp", "--sparsity", "0.5", "--seeds", "0-1"]
PLAN += ["--device", "cpu"]
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Runs that end at once; "after": what happens after each, given the run and its record's file."""
    how: dict[str, Any] = {"after": lambda run, path: None}

    class Fake:
        def __init__(self, *_: object) -> None: ...

        def run(self, runs: Any, results: Path) -> Any:
            for run in runs:
                path = record.write(ended(run), results)
                how["after"](run, path)
                yield Outcome(run, "ok", 0.1)

    monkeypatch.setattr(executors, "Local", Fake)
    yield how


def test_ok_is_counted_from_the_records_that_lie_there(fake: dict[str, Any]) -> None:
    def gone(run: Run, path: Path) -> None:
        if (run.method, run.seed) == ("static", 0):
            shutil.rmtree("results")

    fake["after"] = gone
    result = call(*PLAN)
    lost = [line for line in result.stderr.splitlines() if "no record of it lies in results" in line]
    assert result.exit_code == 1 and "2 lost, 2 ok" in result.stdout and len(lost) == 2
    assert "error: dense digits/mlp dense seed 0: it ended" in lost[0]
    fake["after"] = lambda run, path: None
    again = call(*PLAN)
    assert again.exit_code == 0 and "2 done, 2 left" in again.stdout and "2 ok" in again.stdout


def test_a_repeated_run_whose_record_is_lost_is_not_the_old_one(fake: dict[str, Any]) -> None:
    call(*PLAN)
    fake["after"] = lambda run, path: path.unlink()
    result = call(*PLAN, "--retry", "ok")
    assert result.exit_code == 1 and "4 lost" in result.stdout.splitlines()


def test_a_record_that_cannot_be_written_is_one_line(fake: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise FULL

    monkeypatch.setattr(os, "fsync", full)
    result = call(*PLAN)
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 1 and line.startswith("error: results/records: the record of run ")
    assert line.endswith("cannot be written: No space left on device")
    assert not [path for path in Path("results").rglob("*") if path.is_file()], "no temporary file, no lock"


def test_the_parent_leaves_a_run_whose_record_the_worker_could_not_write_for_the_next_call(tmp_path: Path) -> None:
    class Child:
        code = 0

        def end(self) -> int:
            return self.code

        def answer(self) -> str:
            raise Failed("Unwritable", "Unwritable: no room")

    run = watch.Watch(Run("m", "t"), tmp_path)
    run.child = Child()  # type: ignore[assignment]
    with pytest.raises(record.Unwritable, match=r"^no room$"):
        run.end(alone=True)
    assert record.load(tmp_path) == ([], [])


def test_a_record_that_nobody_could_read_ends_no_plan(tmp_path: Path) -> None:
    run = watch.Watch(Run("m", "t", budget=0.0), tmp_path)
    assert run.end(alone=True) == "error" and record.load(tmp_path) == ([], [])
    assert "no record can hold the run: ValueError: id.budget is 0.0" in logs.path(tmp_path, run.run.key).read_text()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_at_the_start_is_one_line(
    fake: dict[str, Any], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "touch", fail)
    result = call(*PLAN)
    assert result.exit_code == 1
    assert result.stderr == f"error: --results: results cannot be written: {os.strerror(number)}\n"


@pytest.mark.parametrize(("name", "folder"), [("figures", False), ("index.html", True), ("leaderboard.md", True)])
def test_what_stands_in_the_way_of_a_report_costs_none_of_the_old_one(tmp_path: Path, name: str, folder: bool) -> None:
    from dstbench.reports import page

    out = tmp_path / "report"
    out.mkdir()
    (out / "cells.csv").write_text("old")
    (out / name).mkdir() if folder else (out / name).write_text("mine")
    with pytest.raises(OSError, match=name), page.replaced(out) as new:
        for file in ("cells.csv", "index.html", "leaderboard.md", "figures/a.svg"):
            (new / file).parent.mkdir(exist_ok=True)
            (new / file).write_text("new")
    assert (out / "cells.csv").read_text() == "old"
    assert {path.name for path in out.iterdir()} - {"figures", name} == {"cells.csv"}


def test_a_full_disk_leaves_no_lock_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write = Path.write_text

    def full(self: Path, text: str, *rest: Any) -> int:
        write(self, text[:5], *rest)
        raise FULL

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"No space.*lock"), lock.lock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


class Full:
    """A file that can be made and not be written."""

    def __init__(self, path: Path) -> None:
        path.touch()

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, text: str) -> None:
        raise FULL


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_the_lock_works_without_hard_links(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int) -> None:
    def none(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    real = Path.open
    monkeypatch.setattr(os, "link", none)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", none)
        with pytest.raises(OSError, match="lock"), lock.lock(tmp_path):
            pass
    with monkeypatch.context() as patch:
        patch.setattr(
            Path, "open", lambda self, *how, **more: Full(self) if how == ("x",) else real(self, *how, **more)
        )
        with pytest.raises(OSError, match="lock"), lock.lock(tmp_path):
            pass
    assert not list(tmp_path.iterdir()), "no empty lock, which others would wait for"
    with lock.lock(tmp_path):
        assert lock.holder(tmp_path)
        with pytest.raises(lock.Busy), lock.lock(tmp_path):
            pass
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"host": 1, "pid": 2}', '{"host": "a", "pid": 1e400, "created": 1.0}', "[" * 100_000, "folder", "pipe"],
)
def test_a_lock_that_is_none_is_taken_over(tmp_path: Path, content: str) -> None:
    path = tmp_path / ".lock"
    if content == "folder":
        path.mkdir()
        (path / "file").touch()
    elif content == "pipe":
        os.mkfifo(path)
    else:
        path.write_text(content)
    assert lock.holder(tmp_path) is None
    with lock.lock(tmp_path):
        assert lock.holder(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_next_call_removes_what_killed_ones_left(fake: dict[str, Any], tmp_path: Path) -> None:
    call(*PLAN)
    results = tmp_path / "results"
    found = record.load(results)[0]
    key, gone = found[0]["id"]["key"], subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name in (
        f"records/.{key}.12.tmp",
        f".lock.{gone.pid}",
        f".lock.stale.{gone.pid}",
        f"work/{key}/checkpoint.tmp",
    ):
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        (results / name).touch()
    (results / f".lock.{os.getppid()}").touch()
    (results / "work" / key / "checkpoint.pt").touch()
    result = call(*PLAN)
    assert f"set aside: results/records/.{key}.12.tmp: left by a write that did not finish" in result.stderr
    left = {
        str(path.relative_to(results)) for path in results.rglob("*") if path.is_file() and "records" not in path.parts
    }
    assert left == {f".lock.{os.getppid()}", f"work/{key}/checkpoint.pt"}, "a stopped run may go on"
    tidy(results, [{**found[0], "machine": {}}], {key})
    assert (results / "work" / key).exists(), "it runs again"
    tidy(results, [{**found[0], "machine": {}}])
    assert not (results / "work" / key).exists(), "one that ended by itself may not"


def test_a_retry_that_was_killed_goes_on(fake: dict[str, Any], tmp_path: Path) -> None:
    """The record of the first attempt is no reason to remove the checkpoint of the second."""
    call(*PLAN)
    found = record.load("results")[0]
    for entry in found:
        entry |= {"machine": make()["machine"], "status": {"name": "error", "reason": "", "traceback": ""}}
        record.write(entry, "results")
        path = Path("results/work", entry["id"]["key"], "checkpoint.pt")
        path.parent.mkdir(parents=True)
        path.write_text("of the next attempt")
    seen = []
    fake["after"] = lambda run, path: seen.append((Path("results/work") / run.key / "checkpoint.pt").exists())
    assert call(*PLAN, "--retry", "error").exit_code == 0 and seen == [True] * len(found)


def test_a_log_that_cannot_be_written_costs_no_run(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    os.mkfifo(tmp_path / "logs" / "pipe.log")
    for log in (tmp_path / "logs", tmp_path / "logs" / "pipe.log"):
        with logs.kept(log, "a run \ud800"):
            ran = True
        logs.add(log, "more")
        for place in (log, log / "below"):
            with logs.inherited(place):
                started = True
    assert ran and started and (tmp_path / "logs" / "pipe.log").exists()
    logs.add(tmp_path / "logs" / "good.log", "half \ud800")
    assert (tmp_path / "logs" / "good.log").read_text() == "half \\ud800\n"


def test_an_old_report_stays_whole_where_the_new_one_cannot_be_written(
    fake: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dstbench.reports import figures, page

    monkeypatch.setattr(figures, "write", lambda folder, *_: (folder / "a.svg").write_text("new"))
    record.write(make(), "results")
    Path("report/figures").mkdir(parents=True)
    old = {path: "old" for path in ("index.html", "cells.csv", "leaderboard.md", "figures/a.svg", "mine.txt")}
    for path, text in old.items():
        Path("report", path).write_text(text)
    monkeypatch.setattr(page, "_render", lambda *_: "new")
    made = page._write

    def full(out: Path, *rest: Any) -> str:
        made(out, *rest)
        (out / "index.html").write_text("half")
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(page, "_write", full)
        result = call("report")
    assert result.exit_code == 1 and result.stderr == "error: report: No space left on device\n"
    assert {str(p.relative_to("report")): p.read_text() for p in Path("report").rglob("*") if p.is_file()} == old
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name in (os.getppid(), os.getpid(), gone.pid, "x"):
        Path(f"report/.new.{name}").mkdir()
    assert call("report").exit_code == 0
    assert Path("report/index.html").read_text() == "new" and Path("report/mine.txt").read_text() == "old"
    assert [path.name for path in Path("report").glob(".new.*")] == [f".new.{os.getppid()}"], "of one that still runs"
    assert Path("report/figures/a.svg").read_text() == "new"


STREAMS = """
import sys
sys.path.insert(0, {root!r})
from dstbench import streams
with streams.usable():
    print("half \\ud800 \\x1b", flush=True)
    print("error", file=sys.stderr)
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_streams_that_are_closed_full_or_narrow_raise_nothing(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text(STREAMS.format(root=str(Path(streams.__file__).parents[1])))
    command = f"PYTHONIOENCODING=ascii {sys.executable} s.py"

    def shell(more: str) -> tuple[int, str, str]:
        done = subprocess.run(["bash", "-c", f"{command} {more}"], capture_output=True, text=True, cwd=tmp_path)
        return done.returncode, done.stdout, done.stderr

    assert shell("") == (0, "half \\ud800 \x1b\n", "error\n")
    assert shell(">&-") == (0, "", "error\n")
    assert shell(">&- 2>&- <&-") == (0, "", "")
    code, out, _ = shell("2>/dev/full")
    assert (code, out) == (1, "half \\ud800 \x1b\n"), "what the error stream has no room for is said by the code"


def test_output_that_cannot_be_written_is_one_line(fake: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    echo = typer.echo

    def full(text: Any = None, err: bool = False, **more: Any) -> None:
        if not err:
            raise FULL
        echo(text, err=err, **more)

    monkeypatch.setattr(typer, "echo", full)
    result = call("status")
    assert (result.exit_code, result.stderr) == (1, "error: No space left on device\n")


def test_odd_names_and_folders_in_the_place_of_ours(fake: dict[str, Any]) -> None:
    for name in ("records", "work"):
        Path("results").mkdir(exist_ok=True)
        Path("results", name).write_text("a file")
    result = call(*PLAN)
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1 and "records" in result.stderr
    assert call("status").exit_code == 0 and json.dumps(record.load("results")) == "[[], []]"
