"""Logs: what a run prints, in a file of its own beside its records."""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def path(results: str | Path, key: str) -> Path:
    """The log of all attempts at a run."""
    return Path(results) / "logs" / f"{key}.log"


@contextmanager
def kept(log: Path, title: str) -> Iterator[None]:
    """In the process of a run, for the rest of its life: what it prints goes to the end of the log.

    File descriptors are moved, so that C code and child processes write there too. A run that printed nothing leaves
    no trace. Where the log cannot be written, the run goes on without one.
    """
    head = f"---- {datetime.now(UTC).isoformat(timespec='seconds')} {title} ----\n"
    try:
        file = _opened(log)
        before = file.tell()
        file.write(head.encode(errors="backslashreplace"))
    except OSError:
        with tidied(log):
            yield
        return
    with file:
        begun = file.tell()
        _flush()
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A process that is killed flushes nothing; what no encoding holds is no reason to fail.
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    with suppress(OSError, RuntimeError):
        faulthandler.enable(2)
    try:
        yield
    finally:
        _flush()
        with suppress(OSError):
            if log.stat().st_size == begun:
                os.truncate(log, before)
                if not before:
                    log.unlink()


@contextmanager
def inherited(log: Path) -> Iterator[None]:
    """Processes that are started meanwhile print to the end of this file; see `tidied`.

    Where it cannot be written, they print to where this one does.
    """
    try:
        file = _opened(log)
    except OSError:
        yield
        return
    _flush()
    before = [os.dup(descriptor) for descriptor in (1, 2)]
    try:
        with file:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
        yield
    finally:
        _flush()
        for descriptor, old in zip((1, 2), before, strict=True):
            os.dup2(old, descriptor)
            os.close(old)


@contextmanager
def tidied(log: Path) -> Iterator[None]:
    """Remove the log afterwards if it holds nothing."""
    try:
        yield
    finally:
        with suppress(OSError):
            if log.is_file() and not log.stat().st_size:
                log.unlink()


def add(log: Path, text: str) -> None:
    """Add a line, of what the run's process could not say itself; none where the log cannot be written."""
    with suppress(OSError), _opened(log) as file:
        file.write(f"{text}\n".encode(errors="backslashreplace"))


def _opened(log: Path) -> Any:
    """The log, to write at its end; OSError also for a pipe, which would wait for a reader."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and not log.is_file():
        raise OSError(f"{log} is no plain file")
    return open(log, "ab", buffering=0)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
