"""Checkpoint: the state of a run in one file, with a digest of its content; what does not match is not read."""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

MARK = b"\ndstbench checkpoint, sha256 "
TAIL = len(MARK) + 64
BLOCK = 2**20


class Damaged(ValueError):
    """A file is not the checkpoint that was written, or that of another run."""


def write(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values; its "key" is the run's) whole or not at all; OSError where it cannot."""
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb+") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # what torch makes of a full disk
                raise OSError("torch could not write the file; is the disk full?") from error
            file.write(MARK + _digest(file, file.tell()).encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def read(path: Path, key: str) -> dict[str, Any]:
    """The state that `write` was given for the run of this key; Damaged says why it is not to be had."""
    try:
        if not path.is_file():
            raise Damaged("it is no plain file")
        with open(path, "rb") as file:
            content = max(0, os.fstat(file.fileno()).st_size - TAIL)
            file.seek(content)
            tail = file.read()
            if not tail.startswith(MARK):
                raise Damaged("it has no digest: it was cut short, or is of an older version")
            if tail[len(MARK) :] != _digest(file, content).encode():
                raise Damaged("its digest is not that of its content")
    except OSError as error:
        raise Damaged(f"it cannot be read: {error.strerror or error}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["key"]
    except Exception:  # torch's own text would say how to load it all the same
        raise Damaged("it holds more, or less, than the state of a run") from None
    if found != key:
        raise Damaged(f"it is that of another run, {str(found)[:12]!r}")
    return state


def take(path: Path, key: str) -> tuple[dict[str, Any] | None, str]:
    """The state to go on from, or None and what the record should say: a file that must not be used is set aside."""
    if not os.path.lexists(path):
        return None, ""
    try:
        return read(path, key), ""
    except Damaged as why:
        return None, aside(path, str(why))


def aside(path: Path, why: str) -> str:
    """Set a file aside that must not be used; what the record should say."""
    to = path.with_name(f"checkpoint.aside.{time.time_ns()}")
    try:
        path.rename(to)
    except OSError as error:
        return f"{path.name} was not used, and not set aside ({error.strerror or error}): {why}"
    return f"{path.name} was set aside as {to.name}: {why}"


def _digest(file: Any, size: int) -> str:
    """The sha256 of the first `size` bytes; the file stands after them."""
    file.seek(0)
    found = hashlib.sha256()
    while block := file.read(min(BLOCK, size)):
        found.update(block)
        size -= len(block)
    return found.hexdigest()
