"""Watch: a run in its process, as its parent sees it: started, looked after, and told of by a record in any case."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from dstbench.suite import logs, record
from dstbench.suite.plan import Run
from dstbench.suite.processes import SERVER_GONE, Child, Ended, Failed
from dstbench.suite.words import told

KILLED = 9
LOST = "lost"  # of a run whose process was not watched any more
LOOK = 60.0  # seconds from one look at all processes to the next, at most
STARTS = 3  # tries to start a process


class Watch:
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
        try:
            record.write(record.empty(self.run, status, reason), self.results)
        except ValueError as error:  # it is missed at the end; the other runs go on
            reason = f"{reason}; and no record can hold the run: {told(error)}"
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
