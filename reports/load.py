"""A folder of records -> the newest attempt of each run -> one pandas row a run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from dstbench.suite.plan import key_of
from dstbench.suite.record import scan
from dstbench.suite.schema import CRASHED, FAILED, FIELDS

SCALARS = {f"{block}.{name}": types for block, fields in FIELDS.items() for name, types in fields.items()
           if not {list, dict} & set(types)}  # fmt: skip
DERIVED = ("run", "file", "setting", "conditions", "task", "definition", "method", "dense", "sparsity", "seed",
           "outcome", "ended", "reason", "stale")  # fmt: skip


@dataclass
class Loaded:
    """Records that count, in order of key; files set aside, and files that a newer attempt replaced, with reasons."""

    records: list[dict[str, Any]] = field(default_factory=list)
    set_aside: list[tuple[Path, str]] = field(default_factory=list)
    superseded: list[tuple[Path, str]] = field(default_factory=list)


def load(results: Path, keys: Collection[str] | None = None) -> Loaded:
    """Read `results/records`, or the runs of these `keys`; what cannot be read is set aside with its reason."""
    found = scan(results)
    wanted = set(found.newest) if keys is None else set(keys) & set(found.newest)
    records = [found.newest[key][1] | {"file": found.newest[key][0].name} for key in sorted(wanted)]
    superseded = [(path, reason) for path, reason in found.superseded if path.name[:12] in wanted]
    return Loaded(records, found.set_aside, superseded)


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
    _distinguish(table, "task", ["definition"], "definition {0}")
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
        "definition": _definition(who),
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


def _definition(who: Mapping[str, Any]) -> str:
    """The key of a task's definition, without the data's fingerprint, which tells tasks apart by itself."""
    given = who.get("definition") or {}
    data = given.get("data")
    plain = {**given, "data": {**data, "folder": ""} if isinstance(data, Mapping) and "folder" in data else data}
    return key_of(plain)[:6] if given else ""


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
