"""Surroundings: what a container or a cluster may leave out, and what plugins may leave behind."""

from __future__ import annotations

import atexit
import getpass
import multiprocessing
import os
import sys
import threading
from contextlib import suppress


def name_user() -> None:
    """Name a user whom the system does not know: libraries put the name into those of folders."""
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["LOGNAME"] = f"uid{os.getuid()}" if hasattr(os, "getuid") else "nobody"


def leave(status: int) -> None:
    """End the process, whatever threads and processes a plugin has started in it."""
    for child in multiprocessing.active_children():
        child.kill()
    if all(thread.daemon or thread is threading.main_thread() for thread in threading.enumerate()):
        sys.exit(status)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    atexit._run_exitfuncs()
    os._exit(status)
