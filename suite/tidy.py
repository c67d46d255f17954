"""Tidy: what calls that were killed, or that met a full disk, left in a results folder."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from dstbench.suite import record

OURS = re.compile(r"\.(?:lock|lock\.stale|probe)\.([0-9]{1,9})")


def tidy(results: Path, records: Iterable[Mapping[str, Any]], keep: Collection[str] = ()) -> None:
    """Remove temporary files, and the work of runs that have ended; the caller holds the lock of the folder.

    A run that was stopped from outside keeps its checkpoint: it may go on from there. So do the runs of the keys in
    `keep`, which run again: they may have begun a new attempt.
    """
    half = [*record.folder_of(results).glob(".*.tmp"), *(results / "work").glob("*/checkpoint.tmp")]
    half += (results / "models").glob("*.tmp")
    for path in results.glob(".*"):
        name = OURS.fullmatch(path.name)
        if name and not psutil.pid_exists(int(name[1])):
            half.append(path)
    for path in half:
        with suppress(OSError):
            path.unlink()
    for found in records:
        if found["machine"] is not None and found["id"]["key"] not in keep:
            shutil.rmtree(results / "work" / found["id"]["key"], ignore_errors=True)
