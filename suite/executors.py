"""Executors: where runs run. `Local` is this machine: a fresh process for each run, limits kept, crashes contained."""

from __future__ import annotations

import importlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from dstbench.suite import logs, record, settings
from dstbench.suite.plan import Run
from dstbench.suite.processes import SERVER_GONE, Child, Ended, Failed, room_for_sockets
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
CHECKOUT = Path(__file__).resolve().parents[1]
KILLED = 9
LOST = "lost"  # of a run whose process was not watched any more
LOOK = 60.0  # seconds from one look at all processes to the next, at most
STARTS = 3  # tries to start a process


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
        """See `Executor.run`.

        A run whose process was lost because another one killed the forkserver is done again, alone: then the one that
        kills it is known.
        """
        left = list({run.key: run for run in runs}.values())
        if not left:
            return
        results, lost = Path(results).absolute(), list[Run]()
        log = logs.path(results, "workers")
        with self.pinned(), logs.tidied(log):
            start = partial(self._start, self.context(left[0].device, log), log, results)
            yield from self._side_by_side(left, results, min(self.jobs, len(left)), start, lost)
            for run in lost:
                yield from self._side_by_side([run], results, 1, start, None)

    def _side_by_side(
        self, runs: list[Run], results: Path, jobs: int, start: Callable[..., Child], lost: list[Run] | None
    ) -> Iterator[Outcome]:
        waiting, active = deque(runs), list[_Watch]()
        try:
            while waiting or active:
                while waiting and len(active) < jobs:
                    active.append(_Watch(waiting.popleft(), results))
                    yield Outcome(active[-1].run, "running", 0.0)
                    active[-1].start(start, jobs > 1)
                ready = wait([w.child.sentinel for w in active if w.child], min(w.left for w in active))
                over = [w for w in active if w.over]
                if ready and not over:  # a process closed what tells of its end: it has to be asked
                    time.sleep(0.05)
                for watch in over:
                    active.remove(watch)
                    if (status := watch.end(alone=lost is None)) == LOST and lost is not None:
                        lost.append(watch.run)
                    else:
                        yield Outcome(watch.run, status, time.monotonic() - watch.started)
        finally:
            with _ignoring_interrupts():
                for watch in active:
                    if watch.child:
                        watch.child.end()

    def _start(self, context: BaseContext, log: Path, results: Path, run: Run, shared: bool) -> Child:
        if context.get_start_method() == "forkserver":
            self._serve(log)
        with _blocking_interrupts():
            return Child(context, work, self.worker, run.to_json(), str(results), shared, context.get_start_method())

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """The environment of workers: the number of threads, which torch reads once, and a safe path.

        Without a safe path a new interpreter looks into the working directory first: a `torch.py` or a `random.py`
        there would be imported in place of the real one. A forkserver knows nothing of this process's search path: of
        a checkout it would find the copy that is installed, if any.
        """
        pins = dict.fromkeys(THREADS, str(self.threads))
        pins |= {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "PYTHONSAFEPATH": "1"}
        if (CHECKOUT / "run_all.py").exists():
            pins["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))
        with settings.untouched():
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
        """A forkserver, or spawn on Windows, without room for its socket, and where its children cannot use the device.

        What the server, and a worker before its run begins, would print goes to `log`: modules that are imported there
        may print, and a worker that is not needed any more may be stopped while it starts.
        """
        if "forkserver" not in multiprocessing.get_all_start_methods() or not room_for_sockets():
            return multiprocessing.get_context("spawn")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*PRELOAD, *self.preload])
        self._serve(log)
        # The first process waits until the server has imported all; an interrupt may end that.
        probe = context.Process(target=_use_cuda if device.startswith("cuda") else _nothing)
        with suppress(OSError, EOFError):
            probe.start()
            probe.join()
        return multiprocessing.get_context("spawn") if device.startswith("cuda") and probe.exitcode else context

    def _serve(self, log: Path | None) -> None:
        """Start the forkserver, where none runs, or none any more."""
        # Both are inherited; a Ctrl-C while it imports would make it print a traceback.
        with _blocking_interrupts(), logs.inherited(log) if log else nullcontext():
            multiprocessing.forkserver.ensure_running()


class _Watch:
    """A run in its process, as seen from the parent."""

    def __init__(self, run: Run, results: Path) -> None:
        self.run, self.results = run, results
        self.before = set(record.paths(results, run.key))
        self.started, self.kills = time.monotonic(), oom_kills()
        self.child: Child | None = None
        self.trouble = ""

    def start(self, start: Callable[..., Child], shared: bool) -> None:
        """Start the process, with a new forkserver where the old one has died at this very moment."""
        for _ in range(STARTS):
            try:
                self.child = start(self.run, shared)
                break
            except (OSError, EOFError) as error:
                self.trouble = told(error)
        self.started = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds until somebody has to look at it again."""
        if self.child is None or self.run.timeout is None:
            return 0.0 if self.child is None else LOOK
        return min(LOOK, max(0.0, self.started + self.run.timeout - time.monotonic()))

    @property
    def over(self) -> bool:
        """Whether the process has ended, or its time has."""
        return self.left <= 0 or (self.child is not None and self.child.code is not None)

    def end(self, alone: bool) -> str:
        """The status of the run, of which there is a record now; or `LOST`, without one, if it was not alone."""
        status, reason = "error", f"its process cannot be started: {self.trouble}"
        if self.child is not None:
            late = self.child.code is None
            code = self.child.end()
            if written := self._written():  # it may have ended before it was stopped
                return written
            if code == SERVER_GONE and not late and not alone:
                return LOST
            status, reason = self._why(late, code)
        record.write(record.empty(self.run, status, reason), self.results)
        logs.add(logs.path(self.results, self.run.key), f"{status}: {reason}")
        return status

    def _written(self) -> str:
        """The status in the record that the process wrote, or ""."""
        for path in record.paths(self.results, self.run.key):
            with suppress(ValueError):
                if path not in self.before:
                    return record.read(path)["status"]["name"]
        return ""

    def _why(self, late: bool, code: int) -> tuple[str, str]:
        assert self.child is not None
        try:
            self.child.answer()
        except Failed as error:  # the worker raised, a SystemExit of a plugin included
            if error.kind == record.Unwritable.__name__:  # no fault of the run's: it is left for the next call
                raise record.Unwritable(str(error).partition(": ")[2]) from None
            return "error", str(error)
        except (Ended, TimeoutError):
            return ("timeout", f"stopped after {self.run.timeout:g} s") if late else expired(code, self._starved())
        return "error", "the run ended without a record"

    def _starved(self) -> bool:
        return oom_kills() > self.kills


def work(worker: str, run: dict[str, Any], results: str, shared: bool, start_method: str) -> str:
    """In the child: call `worker` ("module:function") on the run; what it prints goes to the run's log."""
    module, _, function = worker.partition(":")
    asked = Run.from_json(run)
    with logs.kept(logs.path(results, asked.key), str(asked)):
        return getattr(importlib.import_module(module), function)(run, results, shared, start_method)


def expired(code: int, out_of_memory: bool) -> tuple[str, str]:
    """Status and reason of a process that ended by itself with this exit code (negative: the signal).

    A SIGKILL is "oom" where the kernel counted a kill for want of memory while the run ran, else "error".
    """
    if code == SERVER_GONE:
        return "error", f"process ended with exit code {code} in the midst of the run, or ended the server of processes"
    if code >= 0:
        return "error", f"process ended with exit code {code} in the midst of the run"
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


def _nothing() -> None:
    pass


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
