import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from dstbench.suite import executors, record, watch
from dstbench.suite.executors import Executor, Local
from dstbench.suite.plan import Run

WORKER = """
import os, signal, subprocess, sys, threading, time
from pathlib import Path
import psutil
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
    struck = Path(results, "struck")
    if run.method == "server":
        struck.touch()
        if "forkserver" in " ".join(psutil.Process(os.getppid()).cmdline()):  # else another one was faster
            os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
    if run.method == "waits" and not struck.exists():
        time.sleep(600)
    if run.method == "thread":
        threading.Thread(target=time.sleep, args=(600,)).start()
    if run.method == "pool":
        import multiprocessing
        multiprocessing.Process(target=time.sleep, args=(600,)).start()
    if run.method in ("closes", "deaf"):
        os.closerange(0, 256)
        if run.method == "deaf":
            time.sleep(600)
    if run.method in ("children", "orphans"):
        for own in (False, True):
            child = subprocess.Popen(["sleep", "600"], start_new_session=own)
            Path(results, f"{run.method}{own}").write_text(str(child.pid))
        if run.method == "orphans":
            time.sleep(600)
    if run.method == "abandons":
        child = subprocess.Popen(["sleep", "600"])
        Path(results, "abandoned").write_text(str(child.pid))
        os.kill(os.getpid(), signal.SIGKILL)
    if run.method == "moves":
        os.chdir("/")
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
    assert record.finished(record.load(tmp_path)[0]) == {run.key: found[run.method] for run in runs}
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


def test_a_killed_forkserver_costs_the_run_that_killed_it_alone(local: Callable[..., Local], tmp_path: Path) -> None:
    """Runs beside it, whose end nobody would hear of, are done again; two killers, an innocent that was beside one."""
    killers = [Run("server", "t", seed=s) for s in range(2)]
    runs = [Run("waits", "t"), *killers, *(Run("ok", "t", seed=s) for s in range(3))]
    outcomes = [o for o in local().run(runs, tmp_path) if o.status != "running"]
    assert sorted(o.run.key for o in outcomes) == sorted(run.key for run in runs), "each once"
    assert {o.run.method: o.status for o in outcomes} == {"waits": "ok", "server": "error", "ok": "ok"}
    assert "ended the server of processes" in reasons(tmp_path)["server"]
    assert all(record.attempts(tmp_path, run.key) == [1] for run in runs)


def test_a_process_whose_start_failed_does_not_run(
    local: Callable[..., Local], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server dies between forking and telling so: the run is started anew, and only once."""
    start, failed = ForkServerProcess.start, []

    def fail(self: ForkServerProcess) -> None:
        lead = self._target.__name__ == "_lead"  # type: ignore[attr-defined]
        start(self)
        if lead and not failed:
            failed.append(self.pid)
            raise EOFError

    monkeypatch.setattr(ForkServerProcess, "start", fail)
    assert ended(local(), [Run("ok", "t")], tmp_path) == {"ok": "ok"}
    assert _until(lambda: not _alive(failed[0]), 10.0) and len(record.load(tmp_path)[0]) == 1
    assert record.load(tmp_path)[0][0]["params"]["pid"] != failed[0]


def test_nothing_of_a_plugin_keeps_a_finished_run_alive(local: Callable[..., Local], tmp_path: Path) -> None:
    names = ["thread", "pool", "children", "closes", "ok"]
    began = time.monotonic()
    assert ended(local(1), [Run(name, "t") for name in names], tmp_path) == dict.fromkeys(names, "ok")
    assert time.monotonic() - began < 60
    assert _gone(tmp_path / "childrenFalse") and _gone(tmp_path / "childrenTrue")


def test_what_a_stopped_or_killed_run_started_ends_with_it(local: Callable[..., Local], tmp_path: Path) -> None:
    outcomes = local().run([Run("orphans", "t"), Run("abandons", "t")], tmp_path)
    while next(outcomes).status != "error":
        pass
    assert _gone(tmp_path / "abandoned")
    files = [tmp_path / f"orphans{own}" for own in (False, True)]
    _until(lambda: all(file.exists() and file.read_text() for file in files))
    outcomes.close()  # type: ignore[attr-defined]
    assert all(map(_gone, files))


def test_a_run_that_closes_all_files_is_stopped_in_time(local: Callable[..., Local], tmp_path: Path) -> None:
    assert ended(local(), [Run("deaf", "t", timeout=3.0)], tmp_path) == {"deaf": "timeout"}


def test_a_run_that_goes_elsewhere_leaves_its_record_where_it_belongs(
    local: Callable[..., Local], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ended(local(), [Run("moves", "t")], Path("results")) == {"moves": "ok"}
    assert [r["id"]["method"] for r in record.load(tmp_path / "results")[0]] == ["moves"]


@pytest.mark.parametrize("long", [80, 180])
def test_a_temporary_folder_with_a_long_path(tmp_path: Path, long: int) -> None:
    (tmp_path / "fake_worker.py").write_text(WORKER)
    folder = tmp_path / ("x" * long)
    folder.mkdir()
    code = (
        "import sys\nfrom pathlib import Path\nfrom dstbench.suite import executors\n"
        "from dstbench.suite.plan import Run\nexecutors.PRELOAD = ()\n"
        f"local = executors.Local(1, worker='fake_worker:execute')\n"
        f"print([o.status for o in local.run([Run('ok', 't')], Path({str(tmp_path)!r}))])\n"
    )
    environment = {
        **os.environ,
        "TMPDIR": str(folder),
        "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}:{Path(__file__).parent}",
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "['running', 'ok']\n", done.stderr
    assert record.load(tmp_path)[0][0]["params"]["method"] == "forkserver"


def test_a_process_that_cannot_be_started_is_an_error_and_the_rest_runs(
    local: Callable[..., Local], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Local._start

    def refuse(self: Local, context: object, log: Path, results: Path, run: Run, shared: bool) -> object:
        if run.method == "fine":
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return start(self, context, log, results, run, shared)  # type: ignore[arg-type]

    monkeypatch.setattr(Local, "_start", refuse)
    assert ended(local(), [Run("fine", "t"), Run("ok", "t")], tmp_path) == {"fine": "error", "ok": "ok"}
    assert "its process cannot be started: BlockingIOError" in reasons(tmp_path)["fine"]


def test_exit_codes_and_signals() -> None:
    assert watch.expired(-9, out_of_memory=True)[0] == "oom"
    assert watch.expired(-9, out_of_memory=False) == ("error", "process killed by signal 9 (SIGKILL)")
    assert watch.expired(-signal.SIGTERM, out_of_memory=True)[0] == "error"
    assert watch.expired(0, True) == ("error", "process ended with exit code 0 in the midst of the run")
    assert watch.expired(-77, False) == ("error", "process killed by signal 77")


def test_kills_for_want_of_memory_are_counted(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_text("nr_free_pages 12\noom_kill 3\n")
    (tmp_path / "events").write_text("low 0\noom 9\noom_kill 2\noom_group_kill 7\n")
    files = [str(tmp_path / name) for name in ("vmstat", "events", "none")]
    assert watch.oom_kills(files) == 5 and watch.oom_kills(files[2:]) == 0


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


def _gone(file: Path) -> str:
    pid = int(file.read_text())
    return _until(lambda: not _alive(pid), 10.0)


def _alive(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
