"""Logs: what a run prints, in a file of its own beside its records."""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path


def path(results: str | Path, key: str) -> Path:
    """The log of all attempts at a run."""
    return Path(results) / "logs" / f"{key}.log"


@contextmanager
def kept(log: Path, title: str) -> Iterator[None]:
    """In the process of a run, for the rest of its life: what it prints goes to the end of the log.

    File descriptors are moved, so that C code and child processes write there too. A run that printed nothing leaves
    no trace.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab", buffering=0) as file:
        before = file.tell()
        file.write(f"---- {datetime.now(UTC).isoformat(timespec='seconds')} {title} ----\n".encode())
        begun = file.tell()
        _flush()
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)  # a process that is killed flushes nothing
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
    """Processes that are started meanwhile print to the end of this file; see `tidied`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    _flush()
    before = [os.dup(descriptor) for descriptor in (1, 2)]
    try:
        with open(log, "ab", buffering=0) as file:
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
            if not log.stat().st_size:
                log.unlink()


def add(log: Path, text: str) -> None:
    """Add a line, of what the run's process could not say itself."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"{text}\n")


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
