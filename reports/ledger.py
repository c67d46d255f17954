"""The tables beside accuracy: costs, failures, machines, versions, and every record that did not count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dstbench.reports import costs as boards_costs
from dstbench.reports.rows import each, split
from dstbench.reports.sections import FLOPS_NOTE
from dstbench.reports.tables import Cell, Table, level, number, quantity, ratio, whole
from dstbench.suite.schema import FEW
from dstbench.suite.words import printable

QUANTITY = {"s": "seconds", "J": "joules", "B": "bytes"}
MEMORY = "Bytes of parameters, gradients, optimiser state, masks and index plans alive at their maximum over a step."
PEAK = "Peak resident memory of the process, less what it held when training began."


def flops_table(board: pd.DataFrame) -> Table:
    """Training and inference FLOPs of every cell in both conventions."""
    rows = []
    for row in each(board.sort_values(["task", "sparsity", "method"])):
        rows.append([Cell(row.task), level(row.sparsity), Cell(row.method, style="strong"), quantity(row.total, ""),
                     ratio(row.ratio), quantity(row.papers_total, ""), ratio(row.papers), ratio(row.inference),
                     whole(row.dense_steps), quantity(row.setup + row.charged, ""), Cell(row.source),
                     whole(row.n)])  # fmt: skip
    headers = ["task", "sparsity", "method", "training FLOPs", "÷ dense", "papers' convention", "÷ dense (papers)",
               "inference ÷ dense", "dense-gradient steps", "setup and charged", "source", "n"]  # fmt: skip
    return Table("flops", "FLOPs", headers, rows, [FLOPS_NOTE])


def ratio_table(board: pd.DataFrame, name: str, title: str, unit: str, notes: Sequence[str]) -> Table:
    """A board of `costs.ratios`: value and ratio to dense on the same machine, rank where the runs allow one."""
    rows = []
    machines = board["machine"].nunique() > 1
    for row in each(board.sort_values(["machine", "task", "sparsity", "method"])):
        remark = "; ".join(filter(None, [f"not ranked: {row.note}" if row.note else "",
                                         "simulated sparsity" if row.simulated else ""]))  # fmt: skip
        first = [Cell(str(row.machine))] if machines else []
        place = Cell("–", 1e9, "muted") if pd.isna(row.rank) else Cell(f"{row.rank:.0f}", row.rank)
        rows.append([*first, Cell(row.task), level(row.sparsity), Cell(row.method, style="strong"),
                     quantity(row.value, unit), ratio(row.ratio, row.half), place, whole(row.n),
                     Cell(remark, style="muted")])  # fmt: skip
    headers = ["machine"] * machines + ["task", "sparsity", "method", QUANTITY[unit], "÷ dense", "rank", "n", "remark"]
    return Table(name, title, headers, rows, list(notes))


def failures(runs: pd.DataFrame, records: Sequence[Mapping[str, Any]]) -> Table:
    """Every run that is not counted, with its status and reason."""
    rows = []
    for row in each(runs[runs["outcome"] != "counted"].sort_values(["task", "method", "sparsity", "seed"])):
        status = records[row.run]["status"]
        achieved = (records[row.run].get("sparsity") or {}).get("achieved")
        shown = Cell("–") if achieved is None else Cell(f"{number(100 * achieved, '.2f')} %", achieved)
        name, reason = row.ended, row.reason
        last = (status["traceback"] or "").strip().splitlines()[-1:]
        if last and last[0] not in reason:
            reason = f"{reason} · {last[0]}" if reason else last[0]
        rows.append([Cell(row.task), level(row.sparsity), Cell(row.method, style="strong"), whole(row.seed),
                     Cell(name, style="bad"), Cell(reason), shown, Cell(row.file, style="muted")])  # fmt: skip
    notes = [
        "Diverged and collapsed count as chance; error, oom and timeout say nothing of accuracy, and like the others "
        "leave their cell without that run."
    ]
    headers = ["task", "sparsity", "method", "seed", "status", "reason", "achieved", "record"]
    return Table("failures", "Runs that failed or are missing", headers, rows, notes)


def machines(records: Sequence[Mapping[str, Any]]) -> Table:
    """Machines and how many runs each did."""
    found: dict[str, tuple[Mapping[str, Any], int]] = {}
    for record in records:
        machine = record.get("machine")
        if machine:
            found[machine["name"]] = (machine, found.get(machine["name"], (machine, 0))[1] + 1)
    rows = []
    for name, (machine, n) in sorted(found.items()):
        facts = [Cell(str(machine.get(key) or "–")) for key in ("cpu", "cores", "gpu", "os", "python")]
        memory = quantity(float(machine.get("memory") or "nan"), "B")
        rows.append([Cell(name, style="strong"), *facts, memory, whole(n)])
    headers = ["machine", "cpu", "cores", "gpu", "system", "python", "memory", "runs"]
    return Table("machines", "Machines", headers, rows)


def versions(records: Sequence[Mapping[str, Any]]) -> Table:
    """Every version of every package that some run was made with."""
    found: dict[tuple[str, str], int] = {}
    for record in records:
        code = record.get("code") or {}
        named = {**code.get("versions", {}), "dstbench": str(code.get("distribution", "–")).removeprefix("dstbench ")}
        named["commit"] = code.get("commit") or "–"
        for item in named.items() if code else ():
            found[item[0], str(item[1])] = found.get((item[0], str(item[1])), 0) + 1
    rows = [[Cell(name, style="strong"), Cell(version), whole(n)] for (name, version), n in sorted(found.items())]
    return Table("versions", "Versions", ["package", "version", "runs"], rows)


def methods(runs: pd.DataFrame, names: Mapping[str, Mapping[str, Any]], records: Sequence[Mapping[str, Any]]) -> Table:
    """The methods on the boards by family, with their citations and whether they run on the task's tuning."""
    own = {row.method for row in each(runs) if (records[row.run].get("params") or {}).get("own_tuning")}
    facts = [(label, names.get(name, {})) for name, label in set(zip(runs["id.method"], runs["method"], strict=True))]
    found = sorted((str(f.get("family") or "–"), label, str(f.get("citation") or "–")) for label, f in facts)
    rows, before = [], ""
    for family, label, citation in found:
        tuning = "own" if label in own else "the task's"
        head = Cell(family, style="muted" if family == before else "strong")  # On each row: rows can be sorted.
        rows.append([head, Cell(label, style="strong"), Cell(tuning), Cell(citation)])
        before = family
    return Table("methods", "Methods", ["family", "method", "tuning", "citation"], rows)


def stale(runs: pd.DataFrame) -> Table:
    """Records made by a method source that has changed since; they count, marked."""
    rows = [[Cell(row.task), level(row.sparsity), Cell(row.method, style="strong"), whole(row.seed), Cell(row.file)]
            for row in each(runs[runs["stale"]])]  # fmt: skip
    notes = ["The method's source has changed since; these runs count and are marked. Renew them with --retry stale."]
    return Table("stale", "Stale records", ["task", "sparsity", "method", "seed", "record"], rows, notes)


def files(name: str, title: str, entries: Sequence[tuple[Path, str]], note: str) -> Table:
    """Files that do not count, with the reason of each."""
    rows = [[Cell(printable(path.name), style="strong"), Cell(reason)] for path, reason in entries]
    return Table(name, title, ["file", "reason"], rows, [note])


def fallbacks(runs: pd.DataFrame, records: Sequence[Mapping[str, Any]]) -> Table:
    """What makes cells less comparable: layers whose kernel fell back, recipes that differ, tuning of one's own."""
    rows = []
    for row in each(runs):
        layers = (records[row.run].get("sparsity") or {}).get("layers", {})
        for layer, facts in layers.items():
            if facts.get("fallback"):
                text = f"layer {layer} fell back to {facts.get('kernel')}: {facts['fallback']}"
                rows.append((row.task, row.method, text))
    for (_, task), part in split(runs, ["setting", "task"]):
        recipes = [(records[i].get("params") or {}).get("recipe") or {} for i in part["run"]]
        recipes = [r for r in recipes if r]
        for field in sorted({k for r in recipes for k in r}):
            seen = sorted({str(r.get(field)) for r in recipes})
            if len(seen) > 1:
                rows.append((task, "several", f"recipe.{field} differs between runs: {', '.join(seen)}"))
    for row in each(runs):
        if (records[row.run].get("params") or {}).get("own_tuning"):
            rows.append((row.task, row.method, "own tuning: not the task's recipe"))
    cells = [[Cell(task), Cell(method, style="strong"), Cell(text)] for task, method, text in sorted(set(rows))]
    return Table("remarks", "Remarks on fairness", ["task", "method", "remark"], cells)


def networks(runs: pd.DataFrame, records: Sequence[Mapping[str, Any]]) -> Table:
    """What of each network can be sparse, and what of its FLOPs nobody counts; warnings are marked."""
    rows: dict[tuple[str, ...], list[Cell]] = {}
    for row in each(runs):
        sparsity, flops = records[row.run].get("sparsity") or {}, records[row.run].get("flops") or {}
        share, dense = sparsity.get("maskable_share"), sparsity.get("left_dense") or {}
        if share is None:
            continue
        words = "; ".join(f"{name}: {why}" for name, why in list(dense.items())[:3])
        words += f"; and {len(dense) - 3} more" * (len(dense) > 3)
        said = "; ".join(block["warning"] for block in (sparsity, flops) if block.get("warning"))
        marked = Cell(f"{100 * share:.1f}", share, "bad" if share < FEW else "")
        cells = [
            Cell(row.task),
            marked,
            Cell(words or "–", style="muted"),
            Cell(said or "–", style="bad" if said else ""),
        ]
        rows[tuple(cell.text for cell in cells)] = cells
    title = "What can be sparse"
    note = "Sparsity is that of the weights in Layers; the share is theirs of all parameters, warned of under one half."
    headers = ["task", "maskable, % of parameters", "left dense", "warning"]
    return Table("networks", title, headers, [rows[key] for key in sorted(rows)], [note])


def costs(
    runs: pd.DataFrame,
    records: Sequence[Mapping[str, Any]],
    flops: pd.DataFrame,
    time: pd.DataFrame,
    memory: pd.DataFrame,
) -> list[Table]:
    """FLOPs, time, energy (one table a source) and memory of one setting."""
    machine = "Ratios are to dense runs of the same machine and kernel. "
    clock = machine + "Resumed and shared runs are not ranked. Simulated sparsity: masked dense arithmetic ran."
    tables = [flops_table(flops), ratio_table(time, "time", "Training time", "s", [clock])]
    for (component, source, scope), part in boards_costs.energy(runs, records).items():
        title = f"Energy of {component}, {source}" + (f", scope {scope}" if scope else "")
        notes = sorted({n for n in part["note"] if n})
        lost = int(part["value"].isna().sum())
        lost_note = [f"{lost} of {len(part)} readings failed and are left out."] * bool(lost)
        name = f"energy-{component}-{source}-{scope}".replace(":", "-").replace("_", "-")
        how = "Modelled from operations, not measured." if source.startswith("modelled:") else clock
        tables.append(ratio_table(boards_costs.ratios(part), name, title, "J", [how, *lost_note, *notes]))
    tables.append(ratio_table(memory, "memory", "Training memory", "B", [machine + MEMORY]))
    peak = boards_costs.ratios(boards_costs.remembered(runs, "peak_over_start"))
    tables.append(ratio_table(peak, "peak", "Peak resident memory over start", "B", [machine + PEAK]))
    return tables
