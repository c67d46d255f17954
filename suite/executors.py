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

from dstbench.suite import logs, settings
from dstbench.suite.plan import Run
from dstbench.suite.processes import Child, room_for_sockets, serving
from dstbench.suite.watch import LOST, Watch

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
        waiting, active = deque(runs), list[Watch]()
        try:
            while waiting or active:
                while waiting and len(active) < jobs:
                    active.append(Watch(waiting.popleft(), results))
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
        if serving():
            return
        # Both are inherited; a Ctrl-C while it imports would make it print a traceback.
        with _blocking_interrupts(), logs.inherited(log) if log else nullcontext():
            multiprocessing.forkserver.ensure_running()


def work(worker: str, run: dict[str, Any], results: str, shared: bool, start_method: str) -> str:
    """In the child: call `worker` ("module:function") on the run; what it prints goes to the run's log."""
    module, _, function = worker.partition(":")
    asked = Run.from_json(run)
    with logs.kept(logs.path(results, asked.key), str(asked)):
        return getattr(importlib.import_module(module), function)(run, results, shared, start_method)


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
