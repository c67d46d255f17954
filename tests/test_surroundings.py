"""Closed or narrow streams, a user without a name, threads that stay."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dstbench import surroundings
from dstbench.suite.kernels import build

ROOT = Path(__file__).parents[1]
CODE = """
import multiprocessing, os, sys, threading, time
from dstbench import streams, surroundings
streams.usable().__enter__()
print("\\ud800 gr\\u00fc\\u00df")
print("to the other", file=sys.stderr)
file = open("kept", "w")
os.write(1, b""), os.write(2, b"")
file.write(str(file.fileno()))
file.close()
stays = sys.argv[1]
if stays == "thread":
    threading.Thread(target=time.sleep, args=(600,)).start()
else:
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,)).start()
surroundings.leave(3)
"""


@pytest.mark.parametrize(
    ("closed", "stays"),
    [("", "thread"), (">&-", "thread"), ("2>&-", "process"), ("<&- >&- 2>&-", "thread"), ("", "process")],
)
def test_streams_may_be_closed_or_narrow_and_a_thread_or_a_process_may_stay(
    closed: str, stays: str, tmp_path: Path
) -> None:
    (tmp_path / "code.py").write_text(CODE)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    command = ["sh", "-c", f"exec {sys.executable} code.py {stays} {closed}"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert done.stdout == ("" if " >&-" in f" {closed}" else "\\ud800 gr\\xfc\\xdf\n")
    assert done.stderr == ("" if "2>&-" in closed else "to the other\n")
    assert int((tmp_path / "kept").read_text()) > 2, "no file stands in for a stream"


def test_a_user_without_a_name_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    pwd = pytest.importorskip("pwd")

    def missing(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", missing)
    surroundings.name_user()
    assert getpass.getuser() == f"uid{os.getuid()}"
    monkeypatch.delenv("LOGNAME")


def test_a_user_without_a_home_is_told_where_kernels_may_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("DSTBENCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(build.NotBuilt, match="no home folder: set DSTBENCH_CACHE"):
        build.cache()
    monkeypatch.setenv("DSTBENCH_CACHE", "/somewhere")
    assert build.cache() == Path("/somewhere")
