"""Figures for papers and slides: seaborn, as SVG and PNG."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import pandas as pd

from dstbench.reports.rows import each
from dstbench.reports.series import Look, bounds, domain
from dstbench.reports.tables import level, number, share
from dstbench.suite.words import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "axes.axisbelow": True,
    "font.size": 9,
    "svg.fonttype": "none",
    "text.parse_math": False,  # A name is text, whatever dollars are in it.
    "svg.hashsalt": "dstbench",
}
Draw = Callable[["Axes", pd.DataFrame], None]


def write(
    out: Path, points: pd.DataFrame, curves: pd.DataFrame, ratios: pd.DataFrame, looks: Mapping[str, Look],
    metrics: Mapping[str, str | None], suffix: str = "",
) -> list[Path]:  # fmt: skip
    """Write every figure that has data to `out` as SVG and PNG (144 dots an inch); returns the paths, SVGs and PNGs."""
    import matplotlib

    # One value a run draws no line.
    column = "valid" if curves.groupby("run")["valid"].count().max() > 1 else "loss"
    plots: dict[str, tuple[pd.DataFrame, str, Draw]] = {
        "accuracy-sparsity": (points, "task", lambda ax, part: _sparsity(ax, part, looks, metrics)),
        "accuracy-flops": (points[points["ratio"].notna()], "task", lambda ax, part: _flops(ax, part, looks, metrics)),
        "curves": (
            _steepest(curves[curves[column].notna()]),
            "panel",
            lambda ax, part: _curve(ax, part, looks, column),
        ),
        "ratios": (ratios, "measure", lambda ax, part: _ratio(ax, part, looks)),
    }
    paths = []
    with matplotlib.rc_context(STYLE):
        for name, (table, facet, draw) in plots.items():
            if len(table):
                figure = _grid(table, facet, draw, looks)
                paths += _save(figure, Path(out) / f"{name}{suffix}")
    return paths


def realised(out: Path, board: pd.DataFrame, looks: Mapping[str, Look]) -> list[Path]:
    """The figure of a board of `dstbench.reports.realised`, as SVG and PNG; [] where no row of it has a time."""
    import matplotlib

    timed = board[board["time"].notna()]
    if not len(timed):
        return []
    with matplotlib.rc_context(STYLE):
        return _save(_grid(timed, "panel", lambda ax, part: _realised(ax, part, looks), looks), Path(out) / "realised")


def architecture(out: Path, units: pd.DataFrame, suffix: str = "") -> list[Path]:
    """The figure of a table of `series.architecture`, as SVG and PNG; [] where it has no row."""
    import matplotlib

    if not len(units):
        return []
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        return _save(_grid(units, "panel", _units, {}), Path(out) / f"architecture{suffix}")


def _units(ax: Axes, part: pd.DataFrame) -> None:
    shares = part.pivot_table(index="position", columns="step", values="share", aggfunc="last")
    names = [_shown(name) for name in dict.fromkeys(part["layer"])]
    mesh = ax.imshow(shares.to_numpy(), aspect="auto", vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    ax.set_yticks(range(len(names)), names, fontsize=6)
    ax.set_xticks(range(len(shares.columns)), [f"{step:g}" for step in shares.columns], fontsize=6, rotation=60)
    ax.set_xlabel("step")
    ax.figure.colorbar(mesh, ax=ax, label="active units", format=lambda value, _: f"{100 * value:.0f} %")


def _grid(table: pd.DataFrame, facet: str, draw: Draw, looks: Mapping[str, Look]) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    names = list(dict.fromkeys(table[facet]))
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    shown = [name for name in looks if name in set(table["method"])]
    room = 3.6 * columns / (0.5 + 0.07 * max((len(_shown(n)) for n in shown), default=1))  # in names, at 8 points
    wide = max(1, min(len(shown), 2 * columns, int(room)))  # of the legend
    figure = Figure(figsize=(3.6 * columns, 2.9 * rows + 0.2 * -(-len(shown) // wide) + 0.2), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, name in zip(axes, names, strict=False):
        draw(ax, table[table[facet] == name])
        ax.set_title(_shown(name), fontsize=9)
        if ax.get_xscale() == "linear" and not ax.images:
            ax.locator_params(axis="x", nbins=5)  # Ticks are most of the time a figure takes.
    for ax in axes[len(names) :]:
        ax.remove()
    handles = [
        Line2D([], [], color=looks[n].colour, marker=looks[n].marker, markersize=5, label=_shown(n)) for n in shown
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=wide, frameon=False, fontsize=8)
    return figure


def _sparsity(ax: Axes, part: pd.DataFrame, looks: Mapping[str, Look], metrics: Mapping[str, str | None]) -> None:
    sparse = part[~part["dense"].astype(bool)]
    _lines(ax, sparse[~sparse["off"].astype(bool)], "x", looks)
    for row in each(sparse):
        if not row.off:
            ax.vlines(row.x, row.low, row.high, color=looks[row.method].colour, linewidth=1.2)
        else:
            ax.plot(row.x, row.mean, looks[row.method].marker, color=looks[row.method].colour, fillstyle="none")
    for row in each(part[part["dense"].astype(bool)].drop_duplicates("method")):
        ax.axhline(row.mean, color=looks[row.method].colour, linestyle="--", linewidth=1)
    _label(ax, part, metrics, "sparsity, %")
    ax.xaxis.set_major_formatter(lambda value, _: number(100 * value, ".4g"))


def _flops(ax: Axes, part: pd.DataFrame, looks: Mapping[str, Look], metrics: Mapping[str, str | None]) -> None:
    ax.set_xscale("log")
    _lines(ax, part[~part["off"].astype(bool)], "ratio", looks)
    for row in each(part[part["off"].astype(bool)]):
        ax.plot(row.ratio, row.mean, looks[row.method].marker, color=looks[row.method].colour, fillstyle="none")
    _label(ax, part, metrics, "training FLOPs ÷ dense (1 multiply-add = 2 FLOPs)")
    _decades(ax.xaxis)


def _steepest(curves: pd.DataFrame) -> pd.DataFrame:
    """Each task's runs at its highest sparsity and dense, with the title of their panel: more lines hide each other."""
    top = curves.groupby("task")["sparsity"].transform("max")
    shown = curves[curves["sparsity"].isna() | (curves["sparsity"] == top)].sort_values(["task", "run", "step"])
    shares = top.loc[shown.index].map(lambda s: "dense" if s != s else f"sparsity {level(s).text}")
    return shown.assign(panel=shown["task"].astype(str) + ", " + shares.astype(str))


def _curve(ax: Axes, part: pd.DataFrame, looks: Mapping[str, Look], field: str) -> None:
    import seaborn

    seaborn.lineplot(part, x="step", y=field, hue="method", units="run", estimator=None, ax=ax, sort=False,
                     palette=_palette(looks, part), linewidth=0.8, alpha=0.75, legend=False)  # fmt: skip
    ax.set_ylabel("training loss" if field == "loss" else "metric on valid")


def _ratio(ax: Axes, part: pd.DataFrame, looks: Mapping[str, Look]) -> None:
    import seaborn

    order = [name for name in looks if name in set(part["method"])]
    seaborn.stripplot(part, x="value", y="method", hue="method", order=order, palette=_palette(looks, part), size=4,
                      alpha=0.7, jitter=False, legend=False, ax=ax)  # fmt: skip
    means = part.groupby("method")["value"].mean().reindex(order)
    ax.plot(means, range(len(order)), "|", color="#222222", markersize=11, markeredgewidth=2)
    lines = [wrap(_shown(name), 26) for name in order]
    size = 9 if max(map(len, lines), default=1) == 1 else 6
    ax.set_yticks(range(len(order)), ["\n".join(line) for line in lines], fontsize=size)
    ax.axvline(1, color="black", linestyle="--", linewidth=1)
    ax.set(xlabel="÷ dense", ylabel="", xlim=(0, None))


def _realised(ax: Axes, part: pd.DataFrame, looks: Mapping[str, Look]) -> None:
    span = bounds(part)
    ax.plot(span, span, "--", color="black", linewidth=1)
    ax.axhline(1, color="#7F7F7F", linestyle=":", linewidth=1)
    for row in each(part):
        fill = "none" if row.simulated else "full"
        ax.plot(row.flops, row.time, looks[row.method].marker, color=looks[row.method].colour, fillstyle=fill)
    ax.set(xscale="log", yscale="log", xlim=span, ylim=span)
    ax.set(xlabel="training FLOPs ÷ dense", ylabel="step time ÷ dense\n(hollow: simulated)")
    for axis in (ax.xaxis, ax.yaxis):
        _decades(axis)


def _decades(axis: Axis) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5."""
    from matplotlib.ticker import LogLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: number(value, "g"))
    axis.set_minor_locator(LogLocator(subs=()))


def _lines(ax: Axes, part: pd.DataFrame, x: str, looks: Mapping[str, Look]) -> None:
    import seaborn

    if not len(part):
        return
    shown = part.sort_values("sparsity")
    names = list(dict.fromkeys(shown["method"]))
    seaborn.lineplot(shown, x=x, y="mean", hue="method", style="method", palette=_palette(looks, shown), dashes=False,
                     markers={n: looks[n].marker for n in names}, markersize=6, errorbar=None, sort=False,
                     estimator=None, linewidth=1, legend=False, ax=ax)  # fmt: skip


def _label(ax: Axes, part: pd.DataFrame, metrics: Mapping[str, str | None], x: str) -> None:
    found = metrics.get(part["task"].iloc[0])
    percent = found is not None and share(found)
    ax.set(xlabel=x, ylabel=f"test {_shown(found or 'metric')}" + ", %" * percent, ylim=domain(part))
    if percent:
        ax.yaxis.set_major_formatter(lambda value, _: number(100 * value, ".4g"))


def _shown(name: str) -> str:
    """A name, cut where it is long; a legend leaves out those that begin with an underscore."""
    return printable(f" {name}" if name.startswith("_") else name, 80)


def _palette(looks: Mapping[str, Look], part: pd.DataFrame) -> dict[str, Any]:
    return {name: looks[name].colour for name in dict.fromkeys(part["method"])}


def _save(figure: Figure, stem: Path) -> list[Path]:
    import warnings

    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(stem.name + ending) for ending in (".svg", ".png")]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # A box stands for what the font lacks.
        figure.savefig(paths[0], metadata={"Date": None})
        figure.set_layout_engine("none")  # The layout of the SVG holds for the PNG: finding it again takes as long.
        figure.savefig(paths[1], dpi=144)
    return paths
