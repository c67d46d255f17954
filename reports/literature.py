"""Published results beside measured ones, where task, method and level match; every published cell names its source."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from dstbench.reports.rows import each
from dstbench.reports.statistics import Interval, t_interval
from dstbench.reports.tables import Cell, Table, level, metric, number, percent, share, spread

FOLDER = Path(__file__).parent / "published"
COLUMNS = ("task", "method", "variant", "sparsity", "metric", "mean", "spread", "source", "protocol")
# What a protocol may say: `train` images in each epoch; `judged` on that split, where it is not test; `selection` of
# the reported step by that split, or "last".
PROTOCOL = ("epochs", "steps", "batch", "train", "judged", "selection", "seeds", "note")
NEAR = 0.05  # of the published density: levels as 90.23 % stand beside 90 %
BOARD = ("setting", "task", "method", "sparsity", "metric", "higher", "mean", "half", "n", "published_sparsity",
         "variant", "published", "spread", "difference", "differs", "source")  # fmt: skip
NOTE = (
    "Ours: mean ± 95 % t-interval over seeds, at the last step. Published: mean ± the spread that its source states. "
    "Difference: ours minus published, ± our interval alone, in points where the metric is a share. A cell stands "
    "here if task and method are the same and the densities differ by no more than 5 %, or lambda is the same where "
    "the level is what lambda makes it. A difference in protocol is no fault of either, and may explain all of it."
)


@cache
def published() -> pd.DataFrame:
    """All published cells, one a row, in the order of their files; shares in 0..1, "" where a text is not known."""
    parts = [pd.read_csv(path, keep_default_na=False, dtype=str) for path in sorted(FOLDER.glob("*.csv"))]
    table = pd.concat(parts, ignore_index=True)
    for column in ("sparsity", "mean", "spread"):
        table[column] = pd.to_numeric(table[column], errors="coerce").astype(float)
    return table


def protocol(text: str) -> dict[str, str]:
    """The fields of a protocol, `PROTOCOL` -> text; ValueError for another field."""
    rest, _, note = text.partition("note=")  # the last field, which may hold anything
    parts = [part.partition("=") for part in rest.split("; ") if part]
    found = {name: value for name, _, value in parts} | ({"note": note} if note else {})
    if unknown := found.keys() - PROTOCOL:
        raise ValueError(f"protocol {text!r}: {min(unknown)!r} is no field; expected {', '.join(PROTOCOL)}")
    return found


def board(runs: pd.DataFrame, cells: pd.DataFrame, records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row for each of our cells and published cell that match, with `BOARD` as columns; none without a match.

    Args:
        runs: of `load.frame`.
        cells: of `boards.cells` for these runs.
        records: those that `runs` was made of.
    """
    known = [not records[int(number)]["id"].get("definition") for number in runs["run"]] if len(runs) else []
    if not any(known):
        return pd.DataFrame(columns=list(BOARD))
    runs, rows = runs[known], []
    shown = cells[cells["mean"].notna()]
    for cell in each(shown[~(shown["dense"] & shown.duplicated(["setting", "task", "method"]))]):
        part = _runs(runs, cell)
        part = part[(part["outcome"] == "counted") & (part["dense"] | (part["sparsity"] == cell.sparsity))]
        if len(part):
            rows += _matches(cell, part, records, Interval(cell.mean, cell.half, cell.n, math.nan), cell.sparsity)
    # Where lambda is fixed the level is an outcome: all runs of that lambda are one cell, on target or off it.
    ended = runs[runs["ended"].isin(["ok", "off_target"]) & runs["score.test"].notna() & ~runs["dense"]]
    ended = ended[[_own(records[int(number)]).get("control") == "fixed" for number in ended["run"]]]
    for run in each(ended.drop_duplicates(["setting", "task", "method"])):
        part = _runs(ended, run)
        facts = {"metric": "score.metric", "higher": "score.higher_is_better"}
        cell = part.iloc[0].rename({v: k for k, v in facts.items()})
        rows += _matches(cell, part, records, t_interval(list(part["score.test"])), math.nan)
    return pd.DataFrame(rows, columns=list(BOARD))


def _runs(runs: pd.DataFrame, cell: Any) -> pd.DataFrame:
    return runs[(runs["setting"] == cell.setting) & (runs["task"] == cell.task) & (runs["method"] == cell.method)]


def _matches(
    cell: Any, part: pd.DataFrame, records: Sequence[Mapping[str, Any]], mean: Interval, sparsity: float
) -> list[dict[str, Any]]:
    """The published cells that one of ours matches, each as a row of the board; `sparsity` nan: matched by lambda."""
    theirs, run = published(), part.iloc[0]
    theirs = theirs[(theirs["task"] == run["id.task"]) & (theirs["method"] == run["id.method"])]
    theirs = theirs[theirs["metric"] == cell.metric]
    record = records[int(run["run"])]
    params, own = _mapping(record.get("params")), _own(record)
    lam = own.get("lam") if own.get("control") == "fixed" else None
    ours = 0.0 if run["dense"] else sparsity
    achieved = 0.0 if run["dense"] else part["sparsity.achieved"].mean()
    rows = []
    for row in each(theirs):
        by_lambda = row.variant.startswith("lam ") and not run["dense"]
        if by_lambda != math.isnan(ours):
            continue
        if not (_same_lambda(row.variant, lam) if by_lambda else near(ours, row.sparsity)):
            continue
        how = protocol(row.protocol)
        found = t_interval(list(part["score.valid"].dropna())) if how.get("judged") == "valid" else mean
        changed = _mapping(record["id"].get("recipe"))
        rows.append({
            "setting": run["setting"], "task": run["task"], "method": run["method"], "metric": cell.metric,
            "sparsity": achieved if by_lambda else ours, "higher": bool(cell.higher),
            "mean": found.mean, "half": found.half, "n": found.n, "published_sparsity": row.sparsity,
            "variant": row.variant, "published": row.mean, "spread": row.spread, "difference": found.mean - row.mean,
            "differs": "; ".join(differences(row.variant, how, params, run["id.budget"], changed)),
            "source": row.source,
        })  # fmt: skip
    return rows


def near(ours: float, theirs: float) -> bool:
    """Whether two sparsity levels are one: densities that differ by `NEAR` of the published one, or both dense."""
    return abs(ours - theirs) <= NEAR * (1 - theirs) if ours and theirs else ours == theirs


def _own(record: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters of a record's run, defaults among them."""
    return _mapping(_mapping(record.get("params")).get("method"))


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _same_lambda(variant: str, lam: Any) -> bool:
    given = float(variant.split(",")[0].removeprefix("lam "))
    return isinstance(lam, int | float) and math.isclose(given, lam)


def differences(
    variant: str,
    theirs: Mapping[str, str],
    params: Mapping[str, Any],
    budget: float,
    changed: Mapping[str, Any] = MappingProxyType({}),
) -> list[str]:
    """What a reader must know of the published protocol beside ours, in words.

    Args:
        variant: of the published cell.
        theirs: its `protocol`.
        params: the block of our record.
        budget: of our runs, the factor on the task's steps.
        changed: fields of the task's recipe that our runs have set otherwise.
    """
    recipe, method = _mapping(params.get("recipe")), _mapping(params.get("method"))
    steps, batch = recipe.get("steps"), recipe.get("batch")
    ours = steps * batch if isinstance(steps, int) and isinstance(batch, int) else None  # images that we train on
    found = []
    if ours is not None and "epochs" in theirs and "train" in theirs:
        seen = int(theirs["epochs"]) * int(theirs["train"])
        if abs(ours - seen) > 0.01 * seen:
            epochs = number(ours / int(theirs["train"]), ".3g")
            found.append(f"{theirs['epochs']} epochs of {int(theirs['train']):,} images, ours {epochs}")
    elif ours is not None and {"epochs", "steps"} & theirs.keys():
        length = f"{theirs['epochs']} epochs" if "epochs" in theirs else f"{int(theirs['steps']):,} steps"
        found += [f"{length}, ours {steps:,} steps"] * (theirs.get("steps") != str(steps))
    if ours is not None and "batch" in theirs and int(theirs["batch"]) != batch:
        found.append(f"batch {theirs['batch']}, ours {batch}")
    if "train" in theirs:
        found.append(f"trained on {int(theirs['train']):,} images")
    found += [f"ours with {field} {value}" for field, value in changed.items()]
    cycle = next((part.removeprefix("m ") for part in variant.split(", ") if part.startswith("m ")), "")
    if cycle and method.get("m") not in (None, -1) and str(method["m"]) != cycle:
        found.append(f"m {cycle}, ours {method['m']}")
    if budget != 1:
        found.append(f"ours at budget {budget:g}")
    allocation = next((name for name in ("ERK", "uniform") if name in variant.split(", ")), "")
    own = method.get("allocation")
    if allocation and isinstance(own, str) and not own.startswith(allocation.lower()):
        found.append(f"{allocation}, ours {own}")
    chosen = {"valid": "best step on valid, ours the last", "test": "step chosen on test, ours the last"}
    if theirs.get("selection") in chosen:
        found.append(chosen[theirs["selection"]])
    if theirs.get("judged") == "valid":
        found.append("both on valid")
    if "seeds" in theirs:
        found.append(f"{theirs['seeds']} seeds")
    return [*found, theirs["note"]] if "note" in theirs else found


def table(found: pd.DataFrame) -> Table:
    """The board, the cells of one task and level together."""
    several = found["setting"].nunique() > 1
    rows = []
    for row in each(found.sort_values(["setting", "task", "sparsity", "method"], kind="stable")):
        theirs = level(row.published_sparsity).text
        same = theirs in (level(row.sparsity).text, "–")
        place = level(row.sparsity) if same else Cell(f"{level(row.sparsity).text} ({theirs})", row.sparsity)
        unit = "" if share(row.metric) else f" {row.metric}" + " ↓" * (not row.higher)
        gap = difference(row.difference, row.half, row.metric)
        rows.append([*[Cell(row.setting)] * several, Cell(row.task + unit), place, Cell(row.method, style="strong"),
                     figure(row.mean, row.half, row.metric), figure(row.published, row.spread, row.metric),
                     gap, Cell(row.variant), Cell(row.differs or "nothing stated", style="muted"),
                     Cell(row.source, style="muted")])  # fmt: skip
    headers = [*["setting"] * several, "task", "sparsity (published)", "method", "ours", "published", "difference",
               "published variant", "published protocol, and where ours differs", "source"]  # fmt: skip
    notes = [NOTE] + ["↓: lower is better."] * bool(not found["higher"].all())
    return Table("published", "Beside published results", headers, rows, notes)


def figure(mean: float, half: float, name: str | None) -> Cell:
    """A metric as papers print it: shares in per cent with two decimals."""
    return percent(mean, half, spec=".2f") if share(name) else metric(mean, half, name)


def difference(mean: float, half: float, name: str | None) -> Cell:
    """Ours minus published, with its sign; points of a share, else as the metric is."""
    scale, spec = (100, "+.2f") if share(name) else (1, "+.3g")
    return Cell(spread(number(scale * mean, spec), scale * half, spec[1:]), mean)
