"""Lock: one writer at a time for a results folder."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from dstbench.suite.words import printable


class Busy(RuntimeError):
    """Another process writes to the results folder."""


@contextmanager
def lock(results: str | Path) -> Iterator[None]:
    """Hold `results/.lock`; Busy names the process that holds it. The lock of a process that is gone is taken over."""
    path = Path(results) / ".lock"
    mine: dict[str, Any] = {"host": platform.node(), "pid": os.getpid(), "created": psutil.Process().create_time()}
    while not _create(path, mine):
        held = _read(path)
        if held is not None and _alive(held):
            raise Busy(
                f"{Path(results)} is in use by process {held['pid']} on {printable(held['host'])}; "
                f"wait for it, give another folder by --results, or remove {path} if that process is gone"
            )
        _remove(path, held, mine["pid"])
    try:
        yield
    finally:
        if _read(path) == mine:
            path.unlink(missing_ok=True)


def holder(results: str | Path) -> dict[str, Any] | None:
    """The process that writes to the folder now ("host", "pid"), or None."""
    held = _read(Path(results) / ".lock")
    return held if held is not None and _alive(held) else None


def _create(path: Path, mine: dict[str, Any]) -> bool:
    """Write the lock whole, then give it its name: nobody ever reads half of one."""
    temporary = path.with_name(f".lock.{mine['pid']}")
    try:
        temporary.write_text(json.dumps(mine))
        return _named(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def _named(file: Path, path: Path) -> bool:
    """Give a file the name of the lock, unless that is taken."""
    try:
        os.link(file, path)
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links: whoever makes the file has the lock, and writes it next
        text = file.read_text()
        try:
            lock = path.open("x")
        except FileExistsError:
            return False
        try:
            with lock:
                lock.write(text)
        except OSError:  # an empty one would stay
            path.unlink(missing_ok=True)
            raise
        return True


def _remove(path: Path, held: dict[str, Any] | None, pid: int) -> None:
    """Remove a stale lock, unless another process was faster and holds a new one by now."""
    aside = path.with_name(f".lock.stale.{pid}")
    with suppress(FileNotFoundError):
        path.rename(aside)
        if _read(aside) != held:
            _named(aside, path)
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside)
        else:
            aside.unlink()


def _read(path: Path) -> dict[str, Any] | None:
    """What a lock says; None where it is none, or stays empty for longer than it takes to write one."""
    for _ in range(20):
        try:
            text = path.read_text() if path.is_file() else "null"
            held = json.loads(text or "null")
        except (OSError, ValueError, RecursionError):
            return None
        if text:
            break
        time.sleep(0.05)
    kinds = {"host": str, "pid": int, "created": float}
    good = isinstance(held, dict) and all(type(held.get(name)) is kind for name, kind in kinds.items())
    return held if good and 0 < held["pid"] < 2**31 else None


def _alive(held: dict[str, Any]) -> bool:
    """Whether the holder runs; on another host nobody can know, so it does."""
    if held.get("host") != platform.node():
        return True
    try:
        return abs(psutil.Process(held["pid"]).create_time() - held["created"]) < 1
    except psutil.NoSuchProcess:
        return False
