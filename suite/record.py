"""Record: the immutable JSON file of one finished run, and the folder of them."""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dstbench.suite.plan import SCHEMA, Run, key_of

STATUSES = ("ok", "diverged", "collapsed", "off_target", "timeout", "oom", "error", "interrupted", "skipped")
BLOCKS = ("params", "score", "sparsity", "flops", "time", "energy", "memory", "curve", "hashes", "machine", "code")
NAME = re.compile(r"([0-9a-f]{12})-([0-9]+)\.json")


def empty(run: Run, status: str = "error", reason: str = "", traceback: str = "") -> dict[str, Any]:
    """The record of a run that reached nothing: identity, status and stamps, every other block null."""
    if status not in STATUSES:
        raise ValueError(f"status is {status!r}; choose one of {', '.join(STATUSES)}")
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {
        "schema": SCHEMA,
        "id": {"key": run.key, **run.identity()},
        "status": {"name": status, "reason": reason, "traceback": traceback},
        **dict.fromkeys(BLOCKS),
        "stamps": {"started": now, "finished": now, "resumed": 0, "shared": False},
    }


def write(record: Mapping[str, Any], results: str | Path) -> Path:
    """Add a record to `results` as the next attempt of its key, whole or not at all, even when killed.

    Returns its path. OSError where the folder cannot be written, ValueError where a number is not finite.
    """
    # A plugin may have hyper-parameters of any type.
    text = json.dumps(record, indent=1, allow_nan=False, default=str)
    folder = folder_of(results)
    folder.mkdir(parents=True, exist_ok=True)
    key = record["id"]["key"]
    temporary = folder / f".{key}.{os.getpid()}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    path = folder / f"{key}-{1 + max(attempts(results, key), default=0)}.json"
    temporary.rename(path)
    _sync(folder)
    return path


def load(results: str | Path) -> tuple[list[dict[str, Any]], list[tuple[Path, str]]]:
    """The newest readable attempt of each key, and what was set aside: (path, reason)."""
    newest: dict[str, dict[str, Any]] = {}
    set_aside: list[tuple[Path, str]] = []
    for path in _files(results):
        try:
            record = read(path)
        except (OSError, ValueError) as error:
            set_aside.append((path, str(error)))
        else:
            newest[record["id"]["key"]] = record
    return list(newest.values()), set_aside


def read(path: Path) -> dict[str, Any]:
    """One record; ValueError says why a file is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    name = NAME.fullmatch(path.name)
    if name is None or not isinstance(record, dict) or "schema" not in record:
        raise ValueError("not a record of dstbench")
    if record["schema"] != SCHEMA:
        raise ValueError(f"schema {record['schema']!r}; this version reads {SCHEMA}")
    try:
        key, status = record["id"]["key"], record["status"]["name"]
    except (KeyError, TypeError):
        raise ValueError("the key or the status is missing") from None
    if key != name[1]:
        raise ValueError(f"holds key {key!r}, its name says {name[1]}")
    if status not in STATUSES:
        raise ValueError(f"unknown status {status!r}")
    identity = {k: v for k, v in record["id"].items() if k != "key"}
    if key_of(identity) != key:
        raise ValueError(
            "the identity is not the one that its key was made of: it was changed by hand, or is no record"
        )
    for block in BLOCKS:
        if not isinstance(record.get(block), list if block == "energy" else dict) and record.get(block) is not None:
            raise ValueError(f"block {block!r} is {record[block]!r}")
    return record


def done(results: str | Path) -> dict[str, str]:
    """Key -> status of every finished run; an interrupted run is not finished."""
    found = {r["id"]["key"]: r["status"]["name"] for r in load(results)[0]}
    return {key: status for key, status in found.items() if status != "interrupted"}


def stale(records: Iterable[Mapping[str, Any]], sources: Mapping[str, Mapping[str, str]]) -> set[str]:
    """The keys of records whose method's or task's source is not today's; `sources`: kind -> name -> today's hash.

    A hash under a record's key goes before that under the method's name. Where a record or today's sources lack a hash,
    nothing is said: records of older versions have none of the task.
    """
    found = set()
    for record in records:
        for kind, hashes in sources.items():
            then = (record.get("code") or {}).get(f"{kind}_source")
            now = hashes.get(record["id"]["key"]) or hashes.get(record["id"][kind])
            if then and now and then != now:
                found.add(record["id"]["key"])
    return found


def attempts(results: str | Path, key: str) -> list[int]:
    """The attempts at a key that have a record, readable or not."""
    names = (NAME.fullmatch(p.name) for p in folder_of(results).glob(f"{key}-*.json"))
    return sorted(int(name[2]) for name in names if name)


def folder_of(results: str | Path) -> Path:
    """Where the records of a results folder lie."""
    return Path(results) / "records"


def _files(results: str | Path) -> Iterator[Path]:
    def order(path: Path) -> tuple[str, int]:
        name = NAME.fullmatch(path.name)
        return (name[1], int(name[2])) if name else (path.name, 0)

    yield from sorted(folder_of(results).glob("*.json"), key=order)


def _sync(folder: Path) -> None:
    with suppress(OSError, AttributeError):  # Windows cannot open folders
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
