"""Board of realised speed-up: how much of the arithmetic that a method saves its kernel turns into time."""

from __future__ import annotations

import math

import pandas as pd

from dstbench.reports.boards import reference
from dstbench.reports.costs import fit, timed
from dstbench.reports.rows import each, split
from dstbench.reports.statistics import t_interval
from dstbench.reports.tables import Cell, Table, level, number, percent, ratio, whole

PLACE = ["machine", "conditions", "task"]
NOTE = (
    "FLOPs: a step's mean training FLOPs, honest count, one multiply-add = 2 FLOPs. Time: the median step, mean over "
    "seeds with 95 % t-interval; what is dearer in less than half of the steps (a dense gradient now and then) is in "
    "the FLOPs, not in the median. Both are divided by dense runs, under any kernel, of the same machine, threads, "
    "precision and allocator. Realised share = (dense time / time) / (dense FLOPs / FLOPs): 100 % where time falls as "
    "FLOPs do. Simulated: dense arithmetic over masked weights ran, its time says nothing of sparsity."
)
ALONE = (
    "No run here can be timed against a dense one: they ran beside others, were resumed, or dense is missing. Train "
    "them with --jobs 1, dense included (--retry ok repeats what has a record)."
)


def board(runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each machine, conditions, task, sparsity, sparse method and kernel; `flops` and `time` over dense.

    `time`, its `half` width and `share` are nan where `note` says why no time is shown: only runs that trained alone
    and in one sitting have one.
    """
    columns = [*PLACE, "sparsity", "method", "kernel", "flops", "seconds", "time", "half", "share", "simulated", "note",
               "n", "panel"]  # fmt: skip
    part = timed(runs)
    part = part.assign(value=part["time.step_median"], flops=part["flops.total"] / part["time.steps"])
    rows = []
    for place, group in split(part[(part["value"] > 0) & (part["flops"] > 0)], ["machine.name", "conditions", "task"]):
        base, lacking = fit(group[group["method"] == reference(group)])
        for key, cell in split(group[~group["dense"]], ["sparsity", "method", "id.kernel"]):
            used, note = fit(cell)
            note = note or (f"dense reference {lacking}" if lacking else "")
            flops = used["flops"].mean() / base["flops"].mean()
            time = t_interval([] if note else list(used["value"] / base["value"].mean()))
            seconds = math.nan if note else used["value"].mean()
            rows.append([*place, *key, flops, seconds, time.mean, time.half, flops / time.mean,
                         bool(used["simulated"].any()), note, len(used), ""])  # fmt: skip
    table = pd.DataFrame(rows, columns=columns)
    several = [name for name in PLACE[:2] if table[name].nunique() > 1]
    table["panel"] = [" · ".join([row.task, f"kernel {row.kernel}", *[str(getattr(row, n)) for n in several]])
                      for row in each(table)]  # fmt: skip
    return table.sort_values([*PLACE, "sparsity", "method", "kernel"], ignore_index=True)


def table(found: pd.DataFrame) -> Table:
    """The board as a table; the machine and the conditions are columns where they differ."""
    places = [name for name in PLACE if name == "task" or found[name].nunique() > 1]
    rows = []
    for row in each(found):
        remark = "; ".join(filter(None, [f"no time: {row.note}" if row.note else "", "simulated" * row.simulated]))
        shown = Cell("–" if row.note else f"{number(1e3 * row.seconds, '.4g')} ms", row.seconds)
        faster = 1 / row.time
        speedup = Cell("–", -1, "muted") if math.isnan(faster) else Cell(f"{number(faster, '.2f')} ×", faster)
        rows.append([*[Cell(str(getattr(row, name))) for name in places], level(row.sparsity),
                     Cell(row.method, style="strong"), Cell(row.kernel), ratio(row.flops), shown,
                     ratio(row.time, row.half), speedup, percent(row.share), whole(row.n),
                     Cell(remark, style="muted")])  # fmt: skip
    headers = [*places, "sparsity", "method", "kernel", "training FLOPs ÷ dense", "median step", "step time ÷ dense",
               "speed-up", "realised share, %", "n", "remark"]  # fmt: skip
    notes = [ALONE] * bool(rows and found["time"].isna().all()) + [NOTE]
    return Table("realised", "Realised speed-up", headers, rows, notes)
