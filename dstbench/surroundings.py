"""Surroundings: what a shell, a container or a cluster may leave out, and how a command leaves."""

from __future__ import annotations

import atexit
import getpass
import os
import sys
import threading
from contextlib import suppress


def prepare() -> None:
    """Make up for closed standard streams, for narrow ones (any text can be printed), and for a user without a name."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one: no file that is opened later can take it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):  # libraries ask for the name, to put it into the names of folders
        os.environ["LOGNAME"] = f"uid{os.getuid()}" if hasattr(os, "getuid") else "nobody"


def leave(status: int) -> None:
    """End the process, whatever threads a plugin has started in it."""
    if all(thread.daemon or thread is threading.main_thread() for thread in threading.enumerate()):
        sys.exit(status)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    atexit._run_exitfuncs()
    os._exit(status)
