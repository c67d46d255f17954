"""Sources: the modules behind the names in use, hashed and made ready."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from dstbench.suite import registry


def hashes(records: Iterable[Mapping[str, Any]], plugins: registry.Files = ()) -> dict[str, dict[str, str]]:
    """ "method" and "task" -> name -> hash of its source today, of all that the records name.

    Where hyper-parameters of a record name another method, its own hash stands under its key. Names that are unknown or
    broken are left out.
    """
    records = list(records)
    found: dict[str, dict[str, str]] = {}
    for kind, known in (("method", registry.methods(plugins)), ("task", registry.tasks(plugins))):
        found[kind] = {}
        for made in (record["id"] for record in records):
            name, given = made[kind], made.get("hyperparameters") or {}
            with suppress(KeyError, registry.Broken):
                if name not in found[kind]:
                    found[kind][name] = registry.source_hash(known[name])
                if kind == "method" and given.keys() & set(known[name].load().names_methods):
                    found[kind][made["key"]] = registry.source_hash(known[name], given)
    return found


def modules(names: Iterable[str]) -> tuple[str, ...]:
    """The modules of built-in methods and tasks, for the server of all processes; those that fail are left out.

    What others have installed is imported by the runs alone that use it: it may change whatever it likes.
    """
    known = registry.methods() | registry.tasks()
    found: dict[str, None] = {}
    for name in dict.fromkeys(names):
        if name in known and known[name].origin == "built-in":
            try:
                known[name].load()
            except registry.Broken:
                continue
            found[known[name].target.partition(":")[0]] = None
    return tuple(found)


def broken(plugins: registry.Files = ()) -> list[str]:
    """One line for each origin of methods and tasks that cannot be loaded, as far as listing them tells."""
    entries = (*registry.methods(plugins).values(), *registry.tasks(plugins).values())
    return list(dict.fromkeys(f"{e.origin} is broken: {e.broken}" for e in entries if e.broken))


@cache
def suite_hash() -> str:
    """sha256 of this suite's own source: what it trains with, beside the method's and the task's."""
    found, folder = hashlib.sha256(), Path(__file__).parent
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".cpp", ".h")):
        found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found.hexdigest()
