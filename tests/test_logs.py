"""What a run prints, from Python, C and child processes, lands in its log, in order, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dstbench.suite import executors, logs, processes, progress, record
from dstbench.suite.executors import Local
from dstbench.suite.plan import Run

WORKER = """
import ctypes, os, subprocess, sys, time, warnings
from dstbench.suite import record
from dstbench.suite.plan import Run
from records import ended

def execute(run, results, shared, start_method):
    run = Run.from_json(run)
    if run.method != "silent":
        print("from python")
        sys.stdout.flush()
        ctypes.CDLL(None).dprintf(1, b"from C\\n")
        subprocess.run([sys.executable, "-c", "print('from a child')"])
        os.write(2, b"from the error stream\\n")
        warnings.warn("from a warning")
        print("unflushed", end="")
    if run.method == "dies":
        os.kill(os.getpid(), 11)
    record.write(ended(run, "ok"), results)
    return "ok"
"""


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Local:
    (tmp_path / "printing_worker.py").write_text(WORKER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(executors, "PRELOAD", ())
    return Local(1, worker="printing_worker:execute")


PARTS = ("from python", "from C", "from a child", "from the error stream", "UserWarning: from a warning", "unflushed")


def test_everything_a_run_prints_is_in_its_log_and_not_between_the_lines_of_progress(
    local: Local, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    talks, silent = Run("talks", "t"), Run("silent", "t")
    progress.follow(local, [talks, silent], tmp_path, bars=False)
    shown = capfd.readouterr()
    assert [line[:5] for line in shown.out.splitlines()] == ["[1/2]", "[2/2]"] and "from" not in shown.err
    text = logs.path(tmp_path, talks.key).read_text()
    places = [text.index(part) for part in PARTS]
    assert places == sorted(places) and text.startswith("---- 20") and str(talks) in text.splitlines()[0]
    assert [path.name for path in (tmp_path / "logs").iterdir()] == [f"{talks.key}.log"], "silence leaves no file"


def test_attempts_are_appended_and_a_crash_leaves_its_words(
    local: Local, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Run("dies", "t")
    for _ in range(2):
        progress.follow(local, [run], tmp_path, bars=False)
    log = logs.path(tmp_path, run.key)
    assert log.read_text().count("from C") == log.read_text().count("---- 20") == 2
    assert log.read_text().count("Segmentation fault") == 2, "with the line where it happened"
    assert log.read_text().endswith("error: process killed by signal 11 (SIGSEGV)\n")
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 2 and all(f"SIGSEGV); log: {log}" in line for line in lines)
    assert len(record.attempts(tmp_path, run.key)) == 2


def test_what_a_forkserver_prints_is_in_a_log_of_its_own(tmp_path: Path) -> None:
    """A module that is imported there prints; without a word there is no file."""
    (tmp_path / "loud_module.py").write_text("print('imported ahead', flush=True)\n")
    code = (
        "import sys; sys.path.insert(0, {0!r})\nfrom pathlib import Path\n"
        "from dstbench.suite import executors\nfrom dstbench.suite.plan import Run\n"
        "from dstbench.suite.executors import Local\nexecutors.PRELOAD = ()\n"
        "local = Local(1, preload={1!r}, worker='quiet_worker:execute')\n"
        "print([o.status for o in local.run([Run('m', 't')], Path({0!r}) / 'results')])\n"
    )
    (tmp_path / "quiet_worker.py").write_text("def execute(*arguments):\n    return 'no record'\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for preload in (("loud_module",), ()):
        command = [sys.executable, "-c", code.format(str(tmp_path), preload)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], env=environment)
        assert done.stdout == "['running', 'error']\n" and not done.stderr, done.stderr
        log = logs.path(tmp_path / "results", "workers")
        assert log.exists() == bool(preload) and (not preload or log.read_text() == "imported ahead\n")
        log.unlink(missing_ok=True)


def test_streams_are_moved_for_a_server_alone_that_has_to_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    server = subprocess.Popen(["sleep", "600"])
    monkeypatch.setattr(processes.multiprocessing.forkserver._forkserver, "_forkserver_pid", server.pid)
    assert processes.serving()
    monkeypatch.setattr(logs, "inherited", None)  # not to be called
    Local(1)._serve(Path("x"))
    server.kill()
    for _ in range(100):
        if not processes.serving():
            break
        time.sleep(0.05)
    assert not processes.serving(), "a server that nobody has waited for runs no more"
    server.wait()
    assert not processes.serving()


def test_a_plugin_that_prints_when_loaded_spoils_no_output(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(
        "from dstbench import Method, register\nprint('hello')\n@register\nclass Loud(Method): ...\n"
    )
    root = Path(__file__).parents[1]
    command = [sys.executable, str(root / "run_all.py"), "list", "methods", "--plugin", "loud.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"})
    assert "loud" in done.stdout and "hello" not in done.stdout and "hello" in done.stderr
