"""Streams: standard output and error that are closed, full, or cannot hold a text, and what becomes of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def usable() -> Iterator[None]:
    """Let nothing that is printed raise for want of a stream or of a character; exit with 1 where output was lost."""
    for descriptor in (0, 1, 2):  # else the next file that is opened gets the number, and what is printed
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        if not all([_flushed(sys.stdout), _flushed(sys.stderr)]):
            raise SystemExit(1)


def _flushed(stream: object) -> bool:
    try:
        stream.flush()  # type: ignore[attr-defined]
        return True
    except (OSError, ValueError):
        with suppress(OSError, ValueError):  # what is left of it goes nowhere, so that Python does not try once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # type: ignore[attr-defined]
        return False
