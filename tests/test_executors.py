import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dstbench.suite import executors, record
from dstbench.suite.executors import Executor, Local
from dstbench.suite.plan import Run

WORKER = """
import os, signal, sys, time
from dstbench.suite import record
from dstbench.suite.plan import Run
from records import ended

def execute(run, results, shared, start_method):
    run = Run.from_json(run)
    if run.method == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if run.method == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    if run.method == "leave0":
        os._exit(0)
    if run.method == "leave3":
        os._exit(3)
    if run.method == "exit":
        sys.exit("bye")
    if run.method == "raise":
        raise ValueError("no record from here")
    if run.method == "hang":
        time.sleep(600)
    found = ended(run)
    found["params"] = {
        "pid": os.getpid(), "shared": shared, "method": start_method, "threads": os.environ["OMP_NUM_THREADS"]
    }
    record.write(found, results)
    if run.method == "late":
        time.sleep(600)
    return "ok"
"""


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Local]:
    (tmp_path / "fake_worker.py").write_text(WORKER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(executors, "PRELOAD", ())

    def make(jobs: int = 2, threads: int = 1) -> Local:
        return Local(jobs, threads, worker="fake_worker:execute")

    return make


def ended(executor: Executor, runs: list[Run], results: Path) -> dict[str, str]:
    return {o.run.method: o.status for o in executor.run(runs, results) if o.status != "running"}


def reasons(results: Path) -> dict[str, str]:
    return {r["id"]["method"]: r["status"]["reason"] for r in record.load(results)[0]}


def test_every_way_to_fail_has_its_status_and_harms_no_other(local: Callable[..., Local], tmp_path: Path) -> None:
    names = ["kill", "ok", "leave0", "segv", "raise", "leave3", "exit", "hang", "late", "fine"]
    runs = [Run(name, "t", timeout=1.5 if name in ("hang", "late") else 60.0) for name in names]
    found = ended(local(), runs, tmp_path)
    assert found == {
        **dict.fromkeys(["kill", "leave0", "segv", "raise", "leave3", "exit"], "error"),
        **dict.fromkeys(["ok", "fine", "late"], "ok"),
        "hang": "timeout",
    }
    assert record.done(tmp_path) == {run.key: found[run.method] for run in runs}
    why = reasons(tmp_path)
    assert why["kill"] == "process killed by signal 9 (SIGKILL)"
    assert why["segv"] == "process killed by signal 11 (SIGSEGV)"
    assert why["leave0"] == "process ended with exit code 0 in the midst of the run"
    assert why["leave3"] == "process ended with exit code 3 in the midst of the run"
    assert why["raise"] == "ValueError: no record from here" and "bye" in why["exit"]
    assert why["hang"] == "stopped after 1.5 s"
    assert all(len(record.attempts(tmp_path, run.key)) == 1 for run in runs)


@pytest.mark.parametrize("jobs", [1, 2])
def test_each_run_has_a_process_of_its_own(local: Callable[..., Local], tmp_path: Path, jobs: int) -> None:
    before = dict(os.environ)
    runs = [Run("ok", "t", seed=seed) for seed in range(4)]
    outcomes = list(local(jobs).run(runs, tmp_path))
    params = [r["params"] for r in record.load(tmp_path)[0]]
    assert len({p["pid"] for p in params} | {os.getpid()}) == 5
    assert {p["shared"] for p in params} == {jobs > 1}
    assert {p["method"] for p in params} == {"forkserver"} and {p["threads"] for p in params} == {"1"}
    assert dict(os.environ) == before
    for run in runs:
        assert [o.status for o in outcomes if o.run == run] == ["running", "ok"]
    assert all(o.seconds >= 0 for o in outcomes)


def test_a_single_run_is_not_shared(local: Callable[..., Local], tmp_path: Path) -> None:
    assert ended(local(2), [Run("ok", "t")], tmp_path) == {"ok": "ok"}
    assert record.load(tmp_path)[0][0]["params"]["shared"] is False


def test_spawn_where_there_is_no_forkserver(
    local: Callable[..., Local], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn"])
    assert ended(local(), [Run("ok", "t")], tmp_path) == {"ok": "ok"}
    assert record.load(tmp_path)[0][0]["params"]["method"] == "spawn"


def test_spawn_where_children_cannot_use_the_gpu(local: Callable[..., Local], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("children can use the GPU of this machine")
    assert local().context("cuda").get_start_method() == "spawn"
    assert local().context("cpu").get_start_method() == "forkserver"


def test_no_runs_start_nothing(local: Callable[..., Local], tmp_path: Path) -> None:
    assert list(local().run([], tmp_path)) == []


def test_closing_stops_what_runs_and_leaves_no_record(local: Callable[..., Local], tmp_path: Path) -> None:
    outcomes = local().run([Run("hang", "t", seed=s) for s in range(3)], tmp_path)
    assert next(outcomes).status == "running"
    began = time.monotonic()
    outcomes.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < 15 and record.load(tmp_path) == ([], [])


def test_a_broken_pool_is_replaced(
    local: Callable[..., Local], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from concurrent.futures.process import BrokenProcessPool

    real, calls = Local._pool, []

    def flaky(self: Local, runs: list[Run], *rest: object) -> object:
        calls.append(len(runs))
        for outcome in real(self, runs, *rest):  # type: ignore[arg-type]
            yield outcome
            if len(calls) == 1 and outcome.status != "running":
                raise BrokenProcessPool

    monkeypatch.setattr(Local, "_pool", flaky)
    assert len(ended(local(1), [Run("ok", "t"), Run("fine", "t"), Run("late", "t", timeout=1.0)], tmp_path)) == 3
    assert calls[0] == 3 and calls[1] == 2


def test_a_pool_that_never_works_is_an_error(
    local: Callable[..., Local], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from concurrent.futures.process import BrokenProcessPool

    def broken(*_: object) -> object:
        raise BrokenProcessPool("never")

    monkeypatch.setattr(Local, "_pool", broken)
    with pytest.raises(BrokenProcessPool, match="never"):
        list(local().run([Run("ok", "t")], tmp_path))


def test_exit_codes_and_signals() -> None:
    assert executors.expired(-9, out_of_memory=True)[0] == "oom"
    assert executors.expired(-9, out_of_memory=False) == ("error", "process killed by signal 9 (SIGKILL)")
    assert executors.expired(-signal.SIGTERM, out_of_memory=True)[0] == "error"
    assert executors.expired(97, True)[1] == executors.expired(0, True)[1]
    assert executors.expired(-77, False) == ("error", "process killed by signal 77")


def test_kills_for_want_of_memory_are_counted(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_text("nr_free_pages 12\noom_kill 3\n")
    (tmp_path / "events").write_text("low 0\noom 9\noom_kill 2\noom_group_kill 7\n")
    files = [str(tmp_path / name) for name in ("vmstat", "events", "none")]
    assert executors.oom_kills(files) == 5 and executors.oom_kills(files[2:]) == 0


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    """A parent that is killed leaves no process that goes on writing to its results."""
    (tmp_path / "fake_worker.py").write_text(
        "import os, pathlib, time\n"
        "def execute(run, results, shared, start_method):\n"
        "    pathlib.Path(results, 'pid').write_text(str(os.getpid()))\n"
        "    time.sleep(600)\n"
    )
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from dstbench.suite import executors\nfrom dstbench.suite.plan import Run\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "executors.PRELOAD = ()\n"
        "if __name__ == '__main__':\n"
        f"    list(executors.Local(1, worker='fake_worker:execute').run([Run('m', 't')], Path({str(tmp_path)!r})))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        pid = int(_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    finally:
        parent.kill()
        parent.wait()
    assert _until(lambda: not _alive(pid))


def _until(condition: Callable[[], object], seconds: float = 60.0) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return str(found)
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def _alive(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
