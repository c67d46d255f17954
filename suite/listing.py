"""Listings: what there is and how far it is, as rows and plain tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dstbench.suite import record, registry, values
from dstbench.suite.lock import holder
from dstbench.suite.words import printable

KINDS = ("methods", "tasks", "kernels", "plans")


def rows(what: str, plugins: Sequence[str] = (), counted: bool = False) -> list[dict[str, Any]]:
    """Every method, task, kernel or embedded plan as a row; RegistryError for another word.

    No torch is imported, unless tasks are `counted`: then with what they are made of, see `sizes`.
    """
    if what == "kernels":
        return _kernels()
    if what == "plans":
        return _plans()
    if what not in KINDS:
        raise registry.RegistryError(f"nothing to list as {what!r}; {values.near(what, KINDS)}")
    entries = registry.methods(plugins) if what == "methods" else registry.tasks(plugins)
    keys = ("name", "family", "version", "citation", "origin", "broken")
    found = [{key: getattr(entry, key) for key in keys} for entry in entries.values()]
    if counted and what == "tasks":
        from dstbench.suite import sizes

        found = [row | sizes.row(entry) for row, entry in zip(found, entries.values(), strict=True)]
    return found


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Rows as aligned columns; columns that are empty throughout are left out."""
    names = [n for n in (found[0] if found else ()) if any(str(row[n]) for row in found)]
    lines = [names, *([str(row[name]) for name in names] for row in found)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def status(results: Path, keys: Iterable[str] | None = None) -> str:
    """Runs of a results folder by status, who writes to it, what is unfinished, left of `keys`, and set aside."""
    records, set_aside = record.load(results)
    counts = Counter(r["status"]["name"] for r in records)
    found = [{"status": s, "runs": counts[s]} for s in record.STATUSES if counts[s]]
    lines = [table(found) or f"no records in {results}"]
    held = holder(results)
    lines.append("running: " + (f"process {held['pid']} on {printable(held['host'])}" if held else "nothing"))
    finished = record.finished(records)
    unfinished = [p.name for p in (results / "work").glob("*") if p.name not in finished]
    lines.append(f"begun, not finished: {len(unfinished)}")
    if keys is not None:
        wanted = list(keys)
        lines.append(f"left of the plan: {len(set(wanted) - finished.keys())} of {len(wanted)}")
    return "\n".join([*lines, *aside(set_aside)])


def aside(files: Iterable[tuple[Path, str]]) -> list[str]:
    """A line for each file set aside, with its reason."""
    return [f"set aside: {printable(str(path))}: {reason}" for path, reason in files]


def _kernels() -> list[dict[str, Any]]:
    from dstbench.suite.kernels import KERNELS

    return [{"name": name, "what": entry.what} for name, entry in KERNELS.items()]


def _plans() -> list[dict[str, Any]]:
    from dstbench.suite import planfile, plantext

    rows = []
    for path in sorted(planfile.FOLDER.glob("*.yaml")):
        plan = planfile.Plan.model_validate(plantext.load(path))  # a plan may name what is not installed
        counts = {"methods": len(plan.chosen()), "tasks": len(plan.tasks), "sparsities": len(plan.sparsity)}
        head = " ".join(line.lstrip("# ") for line in path.read_text("utf-8").splitlines() if line.startswith("#"))
        rows.append({"name": path.stem, **counts, "seeds": len(plan.seeds), "what": head.partition(". ")[0]})
    return rows
