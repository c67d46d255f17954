"""The report: one offline page, a Markdown leaderboard, a table of cells and the figures."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from dstbench.reports import boards, costs, figures, ledger, literature, realised, sections, series
from dstbench.reports.load import Loaded, frame, load
from dstbench.reports.orderings import orderings
from dstbench.reports.plots import Chart, Plots, architecture, plots, speed_up
from dstbench.reports.tables import Table, inert

PUBLISHED = "published.csv"
SHORT = ("rank", "method", "retention %", "cells", "runs", "FLOPs", "papers", "infer", "tie group")
SHORT_NOTE = (
    "retention: (metric - chance) / (dense - chance), mean over cells with 95 % interval; FLOPs, papers, infer: "
    "training FLOPs (honest count, papers' convention) and inference FLOPs, divided by dense. "
    "One multiply-add = 2 FLOPs."
)


@dataclass(frozen=True)
class Summary:
    """What `write` made: the leaderboard as text, the page's path, and the files set aside with their reasons."""

    leaderboard: str
    index: Path
    set_aside: list[tuple[Path, str]]


@dataclass
class Section:
    """The boards of one setting."""

    setting: str
    leaderboard: Table
    heading: str
    accuracy: list[Table]
    orderings: Table
    cells: Table
    costs: list[Table]
    legend: Mapping[str, series.Look]
    charts: Plots
    architecture: list[Chart]


@dataclass
class SpeedUp:
    """The board that compares kernels, over all settings; `charts` is empty where no run has a time."""

    table: Table
    legend: Mapping[str, series.Look]
    charts: list[Chart]


def write(
    results: Path,
    out: Path,
    stale: Collection[str] = (),
    names: Mapping[str, Mapping[str, Any]] | None = None,
    keys: Collection[str] | None = None,
) -> Summary:
    """Read `results/records` and write index.html, leaderboard.md, cells.csv and figures/ to `out`,
    and published.csv where published results match.

    `stale`: keys of records whose method has changed since; `names`: method -> {"family", "citation"}; `keys`: those of
    the records that count (None: all). OSError where `out` cannot be written: an older report there stays whole.
    """
    loaded = load(Path(results), keys)
    runs = frame(loaded.records, set(stale))
    with replaced(Path(out)) as folder:
        leaderboard = _write(folder, runs, loaded, names or {})
        if not (folder / PUBLISHED).exists():  # an older report's
            (Path(out) / PUBLISHED).unlink(missing_ok=True)
    return Summary(leaderboard, Path(out) / "index.html", loaded.set_aside)


@contextmanager
def replaced(out: Path) -> Iterator[Path]:
    """A folder within `out`, whose files take their places in `out` at the end, or go if something fails."""
    out.mkdir(parents=True, exist_ok=True)
    new = out / f".new.{os.getpid()}"
    for left in out.glob(".new.*"):
        pid = left.name.removeprefix(".new.")
        if left == new or not re.fullmatch(r"[0-9]{1,9}", pid) or not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    try:
        new.mkdir()
        yield new
        made = {path: out / path.relative_to(new) for path in sorted(new.rglob("*"))}
        files = {path: place for path, place in made.items() if not path.is_dir()}
        for place in (place for path, place in made.items() if path not in files):  # what can fail comes first
            place.mkdir(exist_ok=True)
        for place in files.values():
            if place.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(place))
        for path, place in files.items():
            path.replace(place)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), error.filename or str(out)) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _write(out: Path, runs: pd.DataFrame, loaded: Loaded, names: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the files of the report; the leaderboard as text."""
    (out / "figures").mkdir()
    cells = boards.cells(runs)
    table = cells.drop(columns="seeds")
    figures = table.select_dtypes("float").columns
    table[figures] += 0.0  # A signed zero is no figure in a file either.
    table.map(inert).to_csv(out / "cells.csv", index=False)
    beside = literature.board(runs, cells, loaded.records)
    if len(beside):
        beside.map(inert).to_csv(out / PUBLISHED, index=False)
    settings = sorted(runs["setting"].unique(), key=lambda s: (-int((runs["setting"] == s).sum()), s))
    parts = [_section(runs, cells, loaded, s, i, len(settings), out / "figures") for i, s in enumerate(settings)]
    speed = _speed_up(runs, out / "figures")
    about = _about(runs, loaded, names)
    known = [literature.table(beside)] * bool(len(beside))
    boards_shown = [part.leaderboard for part in parts] or [Table("leaderboard", "Leaderboard", ["method"])]
    shown = [
        t for p in parts for t in (p.leaderboard, *p.accuracy, *[p.orderings] * bool(p.orderings.rows), p.costs[0])
    ]
    text = "\n".join(
        ["# dstbench", "", *[t.markdown() for t in (*(shown or boards_shown), *known, speed.table, *about)]]
    )
    (out / "leaderboard.md").write_text(text, encoding="utf-8")
    (out / "index.html").write_text(_render(parts, known, speed, about, runs, loaded), encoding="utf-8")
    short = [replace(t, headers=SHORT, notes=[SHORT_NOTE]) if t.rows else t for t in boards_shown]
    return "\n\n".join(t.text() for t in short)


def _section(
    runs: pd.DataFrame, cells: pd.DataFrame, loaded: Loaded, setting: str, position: int, settings: int, folder: Path
) -> Section:
    runs, cells = runs[runs["setting"] == setting], cells[cells["setting"] == setting]
    flops = costs.flops(runs)
    time, memory = costs.ratios(costs.timed(runs)), costs.ratios(costs.remembered(runs, "training_state"))
    looks = series.looks(runs)
    levels = sorted(cells["sparsity"].dropna().unique()) or [float("nan")]
    suffix = f"-{position + 1}" if position else ""
    title = f"Leaderboard ({setting})" if settings > 1 else "Leaderboard"
    points, ratios = series.points(cells, flops, runs), series.ratios(flops, memory, time)
    curves = series.curves(runs, loaded.records)
    figures.write(folder, points, curves, ratios, looks, series.metrics(cells), suffix)
    units = series.architecture(runs, loaded.records)
    figures.architecture(folder, units, suffix)
    return Section(
        setting=setting,
        leaderboard=sections.leaderboard(cells, flops, title),
        heading=sections.heading(cells),
        accuracy=[sections.by_sparsity(cells, level) for level in levels],
        orderings=orderings(cells),
        cells=sections.cell_table(cells),
        costs=ledger.costs(runs, loaded.records, flops, time, memory),
        legend=looks,
        charts=plots(cells, points, curves, ratios, looks, f"s{position}"),
        architecture=architecture(units, f"s{position}"),
    )


def _speed_up(runs: pd.DataFrame, folder: Path) -> SpeedUp:
    board, looks = realised.board(runs), series.looks(runs)
    figures.realised(folder, board, looks)
    legend = {name: looks[name] for name in looks if name in set(board["method"])}
    return SpeedUp(realised.table(board), legend, speed_up(board, looks))


def _about(runs: pd.DataFrame, loaded: Loaded, names: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    records = loaded.records
    aside = "These files are in no board; every other record is."
    return [
        ledger.failures(runs, records),
        ledger.networks(runs, records),
        ledger.fallbacks(runs, records),
        ledger.methods(runs, names, records),
        ledger.machines(records),
        ledger.versions(records),
        ledger.stale(runs),
        ledger.files("set-aside", "Files set aside", loaded.set_aside, aside),
        ledger.files("superseded", "Earlier attempts", loaded.superseded, "The newest attempt of a run counts."),
    ]


def _render(
    parts: Sequence[Section],
    literature: Sequence[Table],
    speed: SpeedUp,
    about: Sequence[Table],
    runs: pd.DataFrame,
    loaded: Loaded,
) -> str:
    import jinja2

    loader = jinja2.PackageLoader("dstbench.reports", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    counts = {name: int((runs["outcome"] == name).sum()) for name in ("counted", "failed", "crashed", "missing")}
    return environment.get_template("index.html").render(
        parts=parts,
        literature=literature,
        speed=speed,
        about=about,
        counts=counts,
        runs=len(runs),
        methods=runs["method"].nunique(),
        tasks=runs["task"].nunique(),
        seeds=runs["seed"].nunique(),
        set_aside=len(loaded.set_aside),
        stale=int(runs["stale"].sum()),
        shapes=_shapes(),
    )


def _shapes() -> dict[str, str]:
    """Vega's symbols as SVG paths in a box of 14 × 14, for the legend."""
    return {
        "circle": "M7 2a5 5 0 1 0 .01 0z",
        "square": "M2.5 2.5h9v9h-9z",
        "triangle-up": "M7 1.5l5.5 10.5h-11z",
        "triangle-down": "M7 12.5l5.5-10.5h-11z",
        "triangle-right": "M12.5 7L2 1.5v11z",
        "triangle-left": "M1.5 7L12 1.5v11z",
        "diamond": "M7 1l5 6-5 6-5-6z",
        "cross": "M5 1.5h4V5h3.5v4H9v3.5H5V9H1.5V5H5z",
    }
