"""Processes: a function in a process and a process group of its own, which end whole, whatever the function started."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import multiprocessing.util
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import psutil

from dstbench.suite.words import told

SERVER_GONE = 255  # the exit code that a parent sees of a child whose forkserver has died
PATIENCE = 10.0  # seconds that a killed process may take to end
LONGEST = 70  # bytes of a temporary folder's path: a socket's path has 103 on macOS, 107 on Linux, 32 of them its name


class Ended(Exception):
    """The process ended without an answer; `code` is its exit code, negative for a signal."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the process ended with exit code {code}")
        self.code = code


class Failed(Exception):
    """The function raised an error of the type named `kind`; the text says what."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Child:
    """A new process that calls `function(*arguments)`, sends what it returns or raises, and leaves at once.

    It waits for no thread and no process that the function has started: those end with it. It leads a session of its
    own, dies with its parent, and processes that it starts are forked where the system can fork safely.
    """

    def __init__(self, context: BaseContext, function: Callable[..., Any], *arguments: Any) -> None:
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_lead, args=(theirs, function, arguments))  # type: ignore[attr-defined]
        try:
            self._process.start()
            self._ours.send(True)
        except BaseException:  # a process that was forked all the same sees it, and leaves
            self._ours.close()
            raise
        finally:
            theirs.close()
        self.sentinel: int = self._process.sentinel

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal, or None while the process runs."""
        return self._process.exitcode

    def answer(self, timeout: float | None = 0.0) -> Any:
        """What the function returned.

        Raises:
            TimeoutError: It has neither answered nor ended within `timeout` seconds.
            Failed: It raised.
            Ended: The process is gone without a word.
        """
        until = None if timeout is None else time.monotonic() + timeout
        open_: list[Any] = [self._ours, self.sentinel]
        while True:
            ready = connection.wait(open_, None if until is None else max(0.0, until - time.monotonic()))
            if self._ours in ready:
                try:
                    found, error = self._ours.recv()
                except (EOFError, OSError, pickle.UnpicklingError):  # closed by what runs there, or torn
                    open_.remove(self._ours)
                    continue
                if error is not None:
                    raise Failed(*error)
                return found
            if self.code is not None:
                raise Ended(self.code)
            if until is not None and time.monotonic() >= until:
                raise TimeoutError
            time.sleep(0.01 if ready else 0.0)  # a sentinel that was closed by what runs there is always ready

    def end(self) -> int:
        """Kill the process, where it still runs, and all that it started; its exit code."""
        pid, strays = self._process.pid, []
        if self.code in (None, SERVER_GONE):
            with suppress(psutil.Error):  # those in a session of their own are in no group of ours
                strays = psutil.Process(pid).children(recursive=True)
            with suppress(OSError):
                os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
        if hasattr(os, "killpg"):
            with suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
        for stray in strays:
            with suppress(psutil.Error):
                stray.kill()
        self._process.join(PATIENCE)
        return SERVER_GONE if self.code is None else self.code


def _lead(theirs: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """In the child, which begins when the parent knows of it."""
    try:
        theirs.recv()
    except (EOFError, OSError):
        os._exit(1)
    with suppress(AttributeError, OSError):
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    if "fork" in multiprocessing.get_all_start_methods() and sys.platform != "darwin":  # its libraries break by that
        # Else processes started there, a DataLoader's above all, import everything anew and find no plugin's classes.
        multiprocessing.set_start_method("fork", force=True)
    found, error = None, None
    try:
        found = function(*arguments)
    except BaseException as why:
        error = type(why).__name__, told(why)
    with suppress(BaseException):
        theirs.send((found, error))
    with suppress(BaseException):
        for child in psutil.Process().children(recursive=True):
            child.kill()
    os._exit(0)


def _follow(parent: Any) -> None:
    """Die with the parent; where what tells of its end was closed, by looking whether it is there."""
    with suppress(psutil.Error):
        there = psutil.Process(parent.pid)
        while parent.join() is None and there.is_running() and there.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.5)
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def serving() -> bool:
    """Whether this process has a forkserver that runs."""
    pid = getattr(multiprocessing.forkserver._forkserver, "_forkserver_pid", None)  # type: ignore[attr-defined]
    with suppress(psutil.Error):
        return pid is not None and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def room_for_sockets() -> bool:
    """Whether a forkserver can have its socket; in a temporary folder with a long path it goes to a shorter one."""
    here = Path(tempfile.gettempdir())
    for folder in (here, Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")):
        if len(os.fsencode(folder)) <= LONGEST and os.access(folder, os.W_OK | os.X_OK):
            with _temporary_folder(folder):
                found = multiprocessing.util.get_temp_dir()  # kept, and handed down to children
            return len(os.fsencode(found)) <= LONGEST + len("/pymp-xxxxxxxx")
    return False


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[None]:
    old, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = old
