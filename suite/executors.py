"""Executors: where runs run. `Local` is this machine: a fresh process for each run, limits kept, crashes contained."""

from __future__ import annotations

import importlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pebble import ProcessExpired, ProcessPool

from dstbench.suite import logs, record
from dstbench.suite.plan import Run
from dstbench.suite.words import told

PRELOAD = (
    "torch",
    "torch._dynamo",
    "torchvision",
    "timm",
    "timm.optim",
    "timm.scheduler",
    "dstbench.suite.run",
    "typer",
)
THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
KILLED = 9
LEFT = 97  # stands for exit code 0 in the midst of a task


class Outcome(NamedTuple):
    """What became of a run: status "running" when it starts, then one of the record's, with its seconds."""

    run: Run
    status: str
    seconds: float


class Executor(Protocol):
    """Runs runs; every one of them ends with a record in `results`, unless it was interrupted."""

    def run(self, runs: Sequence[Run], results: Path) -> Iterator[Outcome]:
        """Yield outcomes as runs start and end; closing the iterator stops what still runs."""
        ...


@dataclass(frozen=True)
class Local:
    """This machine: `jobs` processes at a time, each with `threads` threads and one run.

    Processes come from a forkserver that has `PRELOAD` and `preload` imported, or are spawned where that cannot be.
    The worker writes the record; what it could not write (it ran out of time, it was killed) is written here. A run
    that is interrupted leaves no record: its checkpoint stays and the next call goes on from there.
    """

    jobs: int
    threads: int = 1
    preload: tuple[str, ...] = ()
    worker: str = "dstbench.suite.run:execute"

    def run(self, runs: Sequence[Run], results: Path) -> Iterator[Outcome]:
        """See `Executor.run`."""
        left = {run.key: run for run in runs}
        if not left:
            return
        log = logs.path(results, "workers")
        with self.pinned(), logs.tidied(log):
            context = self.context(next(iter(left.values())).device, log)
            while left:
                before = len(left)
                try:
                    for outcome in self._pool(list(left.values()), Path(results), context):
                        if outcome.status != "running":
                            del left[outcome.run.key]
                        yield outcome
                except BrokenProcessPool:  # a worker that dies between two runs takes pebble's pool with it
                    if len(left) == before:
                        raise

    def _pool(self, runs: list[Run], results: Path, context: BaseContext) -> Iterator[Outcome]:
        jobs = min(self.jobs, len(runs))
        method = context.get_start_method() or ""
        pool = ProcessPool(max_workers=jobs, max_tasks=1, context=context)
        try:
            watches: dict[Future[str], _Watch] = {}
            for run in runs:
                arguments = (self.worker, run.to_json(), str(results), jobs > 1, method)
                watches[pool.schedule(work, arguments, timeout=run.timeout)] = _Watch(run, results)
            while watches:
                ended = wait(watches, timeout=0.1, return_when=FIRST_COMPLETED).done
                for future, watch in watches.items():
                    if not watch.started and (future.running() or future in ended):
                        yield watch.start()
                for future in sorted(ended, key=lambda f: watches[f].started):
                    if isinstance(future.exception(), BrokenProcessPool):
                        raise BrokenProcessPool
                    yield watches.pop(future).end(future)
        finally:
            with _ignoring_interrupts():
                pool.stop()
                pool.join()

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """The environment of workers: the number of threads, which torch reads once, and a safe path.

        Without a safe path a new interpreter looks into the working directory first: a `torch.py` or a `random.py`
        there would be imported in place of the real one.
        """
        pins = dict.fromkeys(THREADS, str(self.threads))
        pins |= {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "PYTHONSAFEPATH": "1"}
        old = {name: os.environ.get(name) for name in pins}
        os.environ.update(pins)
        try:
            yield
        finally:
            for name, value in old.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def context(self, device: str, log: Path | None = None) -> BaseContext:
        """A forkserver, or spawn on Windows and where its children cannot use the device.

        What the server, and a worker before its run begins, would print goes to `log`: modules that are imported there
        may print, and a worker that is not needed any more may be stopped while it starts.
        """
        if "forkserver" not in multiprocessing.get_all_start_methods():
            return multiprocessing.get_context("spawn")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*PRELOAD, *self.preload])
        # Both are inherited; a Ctrl-C while it imports would make it print a traceback.
        with _blocking_interrupts(), logs.inherited(log) if log else nullcontext():
            multiprocessing.forkserver.ensure_running()
        if device.startswith("cuda"):
            probe = context.Process(target=_use_cuda)
            probe.start()
            probe.join()
            if probe.exitcode:
                return multiprocessing.get_context("spawn")
        return context


class _Watch:
    """A scheduled run, as seen from the parent."""

    def __init__(self, run: Run, results: Path) -> None:
        self.run, self.results = run, results
        self.before = set(record.paths(results, run.key))
        self.started = 0.0

    def start(self) -> Outcome:
        self.started, self.kills = time.monotonic(), oom_kills()
        return Outcome(self.run, "running", 0.0)

    def end(self, future: Future[str]) -> Outcome:
        return Outcome(self.run, self._status(future), time.monotonic() - self.started)

    def _status(self, future: Future[str]) -> str:
        try:
            return future.result()
        except TimeoutError:
            status, reason = "timeout", f"stopped after {self.run.timeout:g} s" if self.run.timeout else "timed out"
        except ProcessExpired as error:
            status, reason = expired(error.exitcode, oom_kills() > self.kills)
        except record.Unwritable:  # no fault of the run's: it is left for the next call
            raise
        except BaseException as error:  # the worker raised, a SystemExit of a plugin included
            status, reason = "error", told(error)
        for path in record.paths(self.results, self.run.key):
            with suppress(ValueError):
                if path not in self.before:  # It had ended before it was stopped.
                    return record.read(path)["status"]["name"]
        record.write(record.empty(self.run, status, reason), self.results)
        logs.add(logs.path(self.results, self.run.key), f"{status}: {reason}")
        return status


def work(worker: str, run: dict[str, Any], results: str, shared: bool, start_method: str) -> str:
    """In the child: call `worker` ("module:function") on the run; what it prints goes to the run's log."""
    module, _, function = worker.partition(":")
    asked = Run.from_json(run)
    with logs.kept(logs.path(results, asked.key), str(asked)), contained():
        return getattr(importlib.import_module(module), function)(run, results, shared, start_method)


@contextmanager
def contained() -> Iterator[None]:
    """In the child: die with the parent, and let no exit pass for the end of the task."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent, os._exit), daemon=True).start()
    leave = os._exit
    # pebble waits for ever for a worker that leaves with exit code 0 in the midst of its task.
    os._exit = lambda status: leave(status or LEFT)  # type: ignore[assignment, return-value]
    try:
        yield
    finally:
        os._exit = leave


def expired(code: int, out_of_memory: bool) -> tuple[str, str]:
    """Status and reason of a process that ended by itself with this exit code (negative: the signal).

    A SIGKILL is "oom" where the kernel counted a kill for want of memory while the run ran, else "error".
    """
    if code >= 0:
        return "error", f"process ended with exit code {0 if code == LEFT else code} in the midst of the run"
    if -code == KILLED and out_of_memory:
        return "oom", "process killed by the kernel for want of memory (its oom_kill counter grew during the run)"
    with suppress(ValueError):
        return "error", f"process killed by signal {-code} ({signal.Signals(-code).name})"
    return "error", f"process killed by signal {-code}"


def oom_kills(files: Sequence[str] = ("/proc/vmstat", "/sys/fs/cgroup/memory.events")) -> int:
    """How many processes the kernel has killed for want of memory so far; 0 where it does not say."""
    count = 0
    for file in files:
        with suppress(OSError, ValueError):
            for line in Path(file).read_text().splitlines():
                name, _, value = line.partition(" ")
                count += int(value) if name == "oom_kill" else 0
    return count


def _follow(parent: Any, leave: Any) -> None:
    parent.join()
    leave(1)


def _use_cuda() -> None:
    import torch

    torch.zeros(1, device="cuda")


@contextmanager
def _blocking_interrupts() -> Iterator[None]:
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)
