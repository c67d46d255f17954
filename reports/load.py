"""A folder of records -> the newest attempt of each run -> one pandas row a run."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from dstbench.reports.schema import CRASHED, FAILED, FIELDS, upgrade, validate

NAME = re.compile(r"(?P<key>[0-9a-f]{12})-(?P<attempt>[1-9]\d*)\.json")
SCALARS = {f"{block}.{name}": types for block, fields in FIELDS.items() for name, types in fields.items()
           if not {list, dict} & set(types)}  # fmt: skip
DERIVED = ("run", "file", "setting", "conditions", "task", "method", "dense", "sparsity", "seed", "outcome", "ended",
           "reason", "stale")  # fmt: skip


@dataclass
class Loaded:
    """Records that count, in order of key; files set aside, and files that a newer attempt replaced, with reasons."""

    records: list[dict[str, Any]] = field(default_factory=list)
    set_aside: list[tuple[Path, str]] = field(default_factory=list)
    superseded: list[tuple[Path, str]] = field(default_factory=list)


def load(results: Path, keys: Collection[str] | None = None) -> Loaded:
    """Read `results/records`, or the runs of these `keys`; what cannot be read is set aside with its reason."""
    loaded, newest = Loaded(), {}  # type: ignore[var-annotated]
    folder = Path(results) / "records"
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in paths:
        try:
            record, attempt = _read(path)
        except (OSError, ValueError, RecursionError) as problem:
            loaded.set_aside.append((path, _reason(problem)))
            continue
        identity = json.dumps({k: v for k, v in record["id"].items() if k != "key"}, sort_keys=True)
        rank = ((record.get("stamps") or {}).get("finished") or "", attempt)
        entry = (record["id"]["key"], attempt, rank, path, record)
        newest.setdefault(identity, []).append(entry)
    for entries in newest.values():
        if keys is not None and not any(entry[0] in keys for entry in entries):
            continue
        last = _newest(entries)
        loaded.records.append(last[4] | {"file": last[3].name})
        loaded.superseded += [(e[3], f"replaced by {last[3].name}") for e in entries if e is not last]
    loaded.records.sort(key=lambda record: record["id"]["key"])
    loaded.superseded.sort()
    return loaded


def _newest(entries: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The last attempt of a key; between keys of one identity, as older schemas leave them, the one finished last."""
    last: dict[str, tuple[Any, ...]] = {}
    for entry in entries:
        if entry[0] not in last or entry[1] > last[entry[0]][1]:
            last[entry[0]] = entry
    return max(last.values(), key=lambda entry: entry[2])


def _read(path: Path) -> tuple[dict[str, Any], int]:
    name = NAME.fullmatch(path.name)
    if not name:
        unfinished = path.name.startswith(".") or path.suffix in (".tmp", ".part")
        raise ValueError("left by a write that did not finish" if unfinished else
                         "not a record: the name is not <12 hex digits>-<attempt>.json")  # fmt: skip
    record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise ValueError(f"not a record: it holds {type(record).__name__}, an object was expected")
    record = upgrade(record)
    validate(record)
    if record["id"]["key"] != name["key"]:
        raise ValueError(f"id.key is {record['id']['key']!r} but the file is named for {name['key']!r}")
    return record, int(name["attempt"])


def _reason(problem: Exception) -> str:
    if isinstance(problem, json.JSONDecodeError):
        return f"corrupt: {problem.msg} (line {problem.lineno}, column {problem.colno})"
    if isinstance(problem, UnicodeDecodeError):
        return f"corrupt: not UTF-8 text (byte {problem.start})"
    if isinstance(problem, RecursionError):
        return "corrupt: nested too deeply"
    if isinstance(problem, OSError):
        return f"unreadable: {problem.strerror or problem}"
    return str(problem)


def frame(records: Sequence[Mapping[str, Any]], stale: Sequence[str] | set[str] = ()) -> pd.DataFrame:
    """One row a run: every scalar field as `block.field`, and the derived columns of `DERIVED`.

    `run` is the position in `records`; `outcome` is "counted" (ended on target), "failed" (ended worthless: counts as
    chance), "crashed" (says nothing of accuracy) or "missing"; `ended` is the status, or what the
    figures say where it is "ok" and they are not; `reason` says why.
    """
    rows = [_row(position, record, stale) for position, record in enumerate(records)]
    table = pd.DataFrame(rows, columns=[*DERIVED, *SCALARS])
    for column, types in SCALARS.items():
        if {int, float} & set(types):
            table[column] = pd.to_numeric(table[column], errors="coerce").astype(float)
    for column in ("sparsity", "seed"):
        table[column] = table[column].astype(float)
    table["dense"] = table["dense"].astype(bool)
    _distinguish(table, "task", ["id.task_version", "id.data"], "v{0:g} data {1}")
    _distinguish(table, "method", ["id.method_version"], "v{0:g}")
    return table


def _row(position: int, record: Mapping[str, Any], stale: Sequence[str] | set[str]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for block, fields in FIELDS.items():
        found = record.get(block) or {}
        row |= {f"{block}.{name}": found.get(name) for name in fields if f"{block}.{name}" in SCALARS}
    who = record["id"]
    row |= {
        "run": position,
        "file": record.get("file", ""),
        "task": _label(who["task"], who.get("recipe")),
        "sparsity": who["sparsity"],
    }
    row |= {"dense": who["sparsity"] is None, "seed": who["seed"], "stale": who["key"] in stale}
    changed = {k: v for k, v in who["hyperparameters"].items() if k != "sparsity"}
    row |= {"setting": _setting(record, who["kernel"]), "conditions": _setting(record)}
    outcome, ended, reason = _ended(record)
    return row | {"method": _label(who["method"], changed), "outcome": outcome, "ended": ended, "reason": reason}


def _label(name: str, changed: Mapping[str, Any] | None) -> str:
    """The name and what was changed of its defaults: runs of other hyper-parameters or recipes are not averaged."""
    return name + (f"({', '.join(f'{k}={changed[k]}' for k in sorted(changed))})" if changed else "")


def _setting(record: Mapping[str, Any], kernel: str = "") -> str:
    who, recipe = record["id"], (record.get("params") or {}).get("recipe") or {}
    precision = who["precision"] or recipe.get("precision") or "precision of the recipe"
    threads = f"{who['threads']} thread{'s' * (who['threads'] != 1)}"
    allocator = f"{who['allocator']} allocator" if who.get("allocator") else ""
    return " · ".join(filter(None, [f"budget {who['budget']:g}", precision, kernel, who["device"], threads, allocator]))


def _ended(record: Mapping[str, Any]) -> tuple[str, str, str]:
    """Outcome, status and reason; what the figures say goes before the word "ok"."""
    status, reason = record["status"]["name"], record["status"]["reason"]
    if status in FAILED:
        return "failed", status, reason
    if status in CRASHED:
        return "crashed", status, reason
    if status != "ok":
        return "missing", status, reason
    if (record.get("sparsity") or {}).get("on_target") is False:
        return "missing", "off_target", reason
    test = record["score"]["test"]
    if test is None or not abs(test) < float("inf"):
        return "failed", "diverged", "the test metric is not finite"
    return "counted", status, reason


def _distinguish(table: pd.DataFrame, column: str, by: list[str], suffix: str) -> None:
    """Runs that must not be averaged get names that differ: only where a name stands for more than one version."""
    several = table[[column, *by]].drop_duplicates().groupby(column, sort=False).size()
    for name in several.index[several > 1]:
        rows = table[column] == name
        table.loc[rows, column] = [f"{name} {suffix.format(*values)}" for values in table.loc[rows, by].to_numpy()]
