"""Sources: the modules behind the names in use, hashed and made ready."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dstbench.suite import definitions, registry
from dstbench.suite.registry import Entry


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
            with suppress(KeyError, registry.RegistryError):
                if name not in found[kind]:
                    found[kind][name] = source_hash(_entry(kind, made, known))
                if kind == "method" and given.keys() & set(known[name].load().names_methods):
                    found[kind][made["key"]] = source_hash(known[name], given)
    return found


def _entry(kind: str, made: Mapping[str, Any], known: Mapping[str, Entry]) -> Entry:
    name = made[kind]
    if kind == "task" and made.get("definition"):
        return Entry(name, definitions.composer().TARGET)  # whatever it defines, the class alone is source
    if kind == "task" and name not in known and (composed := definitions.by_name(name)):
        return composed
    return known[name]


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


def source_hash(entry: Entry, given: Mapping[str, Any] = MappingProxyType({})) -> str:
    """12 hex digits over the class's module, those of its bases and those they use of the same packages.

    Also over those of the methods that it wraps with the hyper-parameters `given`.
    """
    entry = replace(entry, definition={})  # of what is defined, the class alone
    things = [e.load() for e in (entry, *registry.wrapped(entry, given))]
    kinds = [k for found in things for k in (found if isinstance(found, type) else type(found)).__mro__]
    homes = {_home(k.__module__) for k in kinds} - {"dstbench.suite", "builtins", "typing"}
    modules, left = set(), [k.__module__ for k in kinds]
    while left:
        if _home(name := left.pop()) in homes and name not in modules:
            modules.add(name)
            used = vars(sys.modules[name]).values() if name in sys.modules else ()
            left += [str(getattr(u, "__module__", None) or getattr(u, "__name__", "")) for u in used]
    digest = hashlib.sha256()
    for name in sorted(modules):
        if file := getattr(sys.modules.get(name), "__file__", None):
            digest.update(Path(file).read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()[:12]


def _home(module: str) -> str:
    """The package whose files count as a plugin's own: the top level, or one of the packages of dstbench."""
    parts = module.split(".")
    return ".".join(parts[:2] if parts[0] == "dstbench" else parts[:1])


@cache
def suite_hash() -> str:
    """sha256 of this suite's own source: what it trains with, beside the method's and the task's."""
    found, folder = hashlib.sha256(), Path(__file__).parent
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".cpp", ".h")):
        found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found.hexdigest()
