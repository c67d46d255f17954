"""Record: the immutable JSON file of one finished run, and the folder of them. One reader, which trusts nothing."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dstbench.suite import schema
from dstbench.suite.plan import Run, key_of
from dstbench.suite.schema import BLOCKS, STATUSES
from dstbench.suite.words import LONGEST, printable, shown

# Key, attempt and the beginning of the digest, which records of older versions lack.
NAME = re.compile(r"([0-9a-f]{12})-([1-9][0-9]{0,8})(?:-([0-9a-f]{8}))?\.json")
LARGEST = 64 * 2**20  # bytes of a file
DEEPEST = 20  # mappings and lists within each other


class Unwritable(OSError):
    """A record cannot be written: no room, no permission, no folder."""


@dataclass
class Found:
    """What lies in a folder of records: key -> file and record of the newest attempt; all other files, with reasons."""

    newest: dict[str, tuple[Path, dict[str, Any]]] = field(default_factory=dict)
    set_aside: list[tuple[Path, str]] = field(default_factory=list)
    superseded: list[tuple[Path, str]] = field(default_factory=list)


def empty(run: Run, status: str = "error", reason: str = "", traceback: str = "") -> dict[str, Any]:
    """The record of a run that reached nothing: identity, status and stamps, every other block null."""
    if status not in STATUSES:
        raise ValueError(f"status is {status!r}; choose one of {', '.join(STATUSES)}")
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {
        "schema": schema.SCHEMA,
        "id": {"key": run.key, **run.identity()},
        "status": {"name": status, "reason": reason, "traceback": traceback},
        **dict.fromkeys(BLOCKS),
        "stamps": {"started": now, "finished": now, "resumed": 0, "shared": False},
    }


def write(record: Mapping[str, Any], results: str | Path) -> Path:
    """Add a record to `results` as the next attempt of its key, whole or not at all, even when killed.

    Args:
        record: what `read` will take; reason and traceback are cut where they are long.
        results: the results folder.

    Returns:
        Its path, `<key>-<attempt>-<beginning of the digest>.json`: no two records of different content share a name.

    Raises:
        Unwritable: the folder cannot be written.
        ValueError: what `refused` says of it, or a number is not finite.
    """
    # A plugin may have hyper-parameters of any type.
    try:
        whole = json.loads(json.dumps(record, allow_nan=False, default=str))
    except RecursionError:
        raise ValueError(f"the record is nested deeper than {DEEPEST} levels") from None
    for name, part in (("reason", slice(LONGEST)), ("traceback", slice(-4 * LONGEST, None))):
        whole["status"][name] = (whole["status"][name] or "")[part]
    if reason := refused(whole):
        raise ValueError(reason)
    whole["digest"] = digest(whole)
    folder, key = folder_of(results), whole["id"]["key"]
    temporary = folder / f".{key}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(whole, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        path = folder / f"{key}-{1 + max(attempts(results, key), default=0)}-{whole['digest'][:8]}.json"
        temporary.rename(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise Unwritable(f"{folder}: the record of run {key} cannot be written: {error.strerror or error}") from error
    _sync(folder)
    return path


def refused(record: Mapping[str, Any]) -> str:
    """Why `read` would not take this record, beginning with the name of the block that is at fault; "" if it would."""
    try:
        for name, block in record.items():
            _shallow(block, name, DEEPEST - 1)
        _checked(record, record["id"]["key"])
    except ValueError as error:
        return str(error)
    if len(json.dumps(record, indent=1, default=str)) <= LARGEST - 1000:  # a digest comes on top
        return ""
    sizes = {name: len(json.dumps(block, indent=1, default=str)) for name, block in record.items()}
    name = max(sizes, key=sizes.__getitem__)
    return f"{name} is {sizes[name] / 2**20:.0f} MiB; a whole record has {LARGEST // 2**20} at most"


def digest(record: Mapping[str, Any]) -> str:
    """The sha256 of a record's content without its digest, in canonical JSON."""
    content = {name: block for name, block in record.items() if name != "digest"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read(path: Path) -> dict[str, Any]:
    """One record in today's schema, its texts printable; ValueError says why a file is none. Nothing else reads them.

    A record whose name holds no digest is of an older version: it is taken without one.
    """
    name = NAME.fullmatch(path.name)
    if name is None:
        if path.name.startswith(".") or path.suffix in (".tmp", ".part"):
            raise ValueError("left by a write that did not finish")
        raise ValueError("not a record: its name is not <12 hex digits>-<attempt>-<8 hex digits>.json")
    record = _parsed(path)
    if not isinstance(record, dict):
        raise ValueError(f"not a record: it holds {type(record).__name__}, an object was expected")
    _shallow(record, "corrupt: it", DEEPEST)
    if (name[3] or "digest" in record) and not _whole(record, name[3] or ""):
        raise ValueError("damaged or changed by hand: its digest is not that of its content")
    record.pop("digest", None)
    record = schema.upgrade(record)
    _checked(record, name[1])
    return _printable(schema.filled(record))


def scan(results: str | Path) -> Found:
    """Every file of the folder of records, each once: what counts, what a newer attempt replaced, what is no record.

    Of one key the last attempt counts, of equal attempts, as two machines make them, the one finished last.
    """
    found, folder = Found(), folder_of(results)
    read_ones: dict[str, list[tuple[tuple[int, str, str], Path, dict[str, Any]]]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            record = read(path)
        except ValueError as error:
            found.set_aside.append((path, printable(str(error))))
            continue
        rank = (number(path), (record["stamps"] or {}).get("finished") or "", path.name)
        read_ones.setdefault(record["id"]["key"], []).append((rank, path, record))
    for key, entries in read_ones.items():
        *older, (_, path, record) = sorted(entries, key=lambda entry: entry[0])
        found.newest[key] = path, record
        found.superseded += [(entry[1], f"replaced by {path.name}") for entry in older]
    found.superseded.sort()
    return found


def load(results: str | Path) -> tuple[list[dict[str, Any]], list[tuple[Path, str]]]:
    """The newest readable attempt of each key, and what was set aside: (path, reason)."""
    found = scan(results)
    return [record for _, record in found.newest.values()], found.set_aside


def finished(records: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Key -> status of those of the records whose run is finished."""
    found = {r["id"]["key"]: r["status"]["name"] for r in records}
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


def paths(results: str | Path, key: str) -> list[Path]:
    """The files of all attempts at a key, readable or not, in order."""
    named = [path for path in folder_of(results).glob(f"{key}-*.json") if NAME.fullmatch(path.name)]
    return sorted(named, key=lambda path: (number(path), path.name))


def attempts(results: str | Path, key: str) -> list[int]:
    """The attempts at a key that have a file, readable or not."""
    return [number(path) for path in paths(results, key)]


def number(path: Path) -> int:
    """The attempt that a file is named for."""
    return int(path.name.split("-")[1].removesuffix(".json"))


def folder_of(results: str | Path) -> Path:
    """Where the records of a results folder lie."""
    return Path(results) / "records"


def _parsed(path: Path) -> Any:
    try:
        if not path.is_file():
            what = "a folder" if path.is_dir() else "a link to nothing" if not path.exists() else "no plain file"
            raise ValueError(f"unreadable: it is {what}")
        if (size := path.stat().st_size) > LARGEST:
            raise ValueError(f"too large for a record: {size / 2**20:.0f} MiB, {LARGEST // 2**20} are the most")
        return json.loads(path.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite)
    except json.JSONDecodeError as error:
        raise ValueError(f"corrupt: not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"corrupt: not UTF-8 text (byte {error.start})") from None
    except RecursionError:
        raise ValueError("corrupt: nested too deeply") from None
    except OSError as error:
        raise ValueError(f"unreadable: {error.strerror or error}") from None


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"corrupt: {text[:20]} is no finite number")
    return value


def _checked(record: Mapping[str, Any], key: str) -> None:
    """ValueError for what is no record of the run of this key."""
    schema.validate(record)
    if record["id"]["key"] != key:
        raise ValueError(f"id.key is {shown(record['id']['key'])} but the file is named for {key!r}")
    if key_of({k: v for k, v in record["id"].items() if k != "key"}) != key:
        raise ValueError(
            "the identity is not the one that its key was made of: it was changed by hand, or is no record"
        )


def _shallow(value: Any, name: str, most: int) -> None:
    level = [value]
    for _ in range(most):
        level = [x for v in level for x in (v.values() if isinstance(v, dict) else v if isinstance(v, list) else ())]
    if level:
        raise ValueError(f"{name} is nested deeper than {DEEPEST} levels")


def _whole(record: Mapping[str, Any], beginning: str) -> bool:
    found = record.get("digest")
    return isinstance(found, str) and found == digest(record) and found.startswith(beginning)


def _printable(value: Any, keep: str = "") -> Any:
    """The value with every text in it printable; reasons and tracebacks keep their lines."""
    if isinstance(value, str):
        return printable(value, keep=keep, most=4 * LONGEST if keep else LONGEST)
    if isinstance(value, list):
        return [_printable(entry) for entry in value]
    if isinstance(value, dict):
        return {printable(k): _printable(v, "\n\t" if k in ("reason", "traceback") else "") for k, v in value.items()}
    return value


def _sync(folder: Path) -> None:
    with suppress(OSError, AttributeError):  # Windows cannot open folders
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
