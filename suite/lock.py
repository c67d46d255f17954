"""Lock: one writer at a time for a results folder."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil


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
                f"{Path(results)} is in use by process {held['pid']} on {held['host']}; "
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
    temporary.write_text(json.dumps(mine))
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True


def _remove(path: Path, held: dict[str, Any] | None, pid: int) -> None:
    """Remove a stale lock, unless another process was faster and holds a new one by now."""
    aside = path.with_name(f".lock.stale.{pid}")
    with suppress(FileNotFoundError):
        path.rename(aside)
        if _read(aside) != held:
            with suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _alive(held: dict[str, Any]) -> bool:
    """Whether the holder runs; on another host nobody can know, so it does."""
    if held.get("host") != platform.node():
        return True
    try:
        return abs(psutil.Process(held["pid"]).create_time() - held["created"]) < 1
    except (psutil.NoSuchProcess, KeyError):
        return False
