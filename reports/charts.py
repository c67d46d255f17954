"""Charts of the page as Vega-Lite specifications, made with altair; each carries its own data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from textwrap import wrap
from typing import Any

import pandas as pd

from dstbench.reports import tables
from dstbench.reports.drawing import WIDTH
from dstbench.reports.rows import each
from dstbench.reports.series import Look, bounds, domain

HEIGHT = 270
SOLID: dict[str, Any] = {"clip": True, "filled": True, "size": 60, "opacity": 1}
HOLLOW: dict[str, Any] = {"clip": True, "filled": False, "size": 60}


def accuracy_sparsity(part: pd.DataFrame, looks: Mapping[str, Look], metric: str | None) -> dict[str, Any]:
    """One task: mean and interval of each sparse method against sparsity, dense as a dashed line, hollow off target."""
    import altair as alt

    part, data = part.assign(label=_labels(part, metric)), _Datasets()
    sparse = part[~part["dense"].astype(bool)]
    ticks = sorted(sparse.loc[~sparse["off"].astype(bool), "sparsity"].unique())
    axis = alt.Axis(format=".6~p", values=ticks, labelOverlap=True) if ticks else alt.Axis(format=".6~p", tickCount=5)
    base = alt.Chart(data.name(sparse)).encode(
        x=alt.X("x:Q", title="sparsity", axis=axis, scale=alt.Scale(zero=False, padding=18)),
        color=_colour(looks),
    )
    y = alt.Y("mean:Q", title=f"test {metric or 'metric'}", axis=_axis(metric), scale=_clipped(part))
    on = base.transform_filter("!datum.off")
    means = alt.Chart(data.name(part[part["dense"].astype(bool)].drop_duplicates("method")))
    layers = [
        on.mark_line(clip=True, opacity=0.55, aria=False).encode(y=y),
        on.mark_rule(clip=True, strokeWidth=1.6, aria=False).encode(y=alt.Y("low:Q", title=""), y2="high:Q"),
        on.mark_point(**SOLID).encode(y=y, shape=_shape(looks), description="label:N"),
        means.mark_rule(strokeDash=[5, 4], clip=True).encode(y=y, color=_colour(looks), description="label:N"),
    ]
    if part["off"].any():
        hollow = base.transform_filter("datum.off").mark_point(**HOLLOW)
        layers.append(hollow.encode(y=y, shape=_shape(looks), description="label:N"))
    return _spec(alt.layer(*layers), data, f"{metric or 'metric'} against sparsity: {_first(part, 'task')}")


def accuracy_flops(part: pd.DataFrame, looks: Mapping[str, Look], metric: str | None, field: str) -> dict[str, Any]:
    """One task: mean against training FLOPs relative to dense; `field` is "ratio" (honest) or "papers"."""
    import altair as alt

    shown = part[part[field].notna()].drop_duplicates(["method", "sparsity", "x", "mean"])
    data = _Datasets()
    axis = alt.Axis(format=".3~g", tickCount=6)
    base = alt.Chart(data.name(shown.assign(label=_labels(shown, metric, field)))).encode(
        x=alt.X(f"{field}:Q", title="training FLOPs ÷ dense", axis=axis, scale=alt.Scale(padding=12)),
        y=alt.Y("mean:Q", title=f"test {metric or 'metric'}", axis=_axis(metric), scale=_clipped(part)),
        color=_colour(looks),
    )
    points = {"shape": _shape(looks), "description": "label:N"}
    on = base.transform_filter("!datum.off")
    layers = [
        on.mark_line(clip=True, opacity=0.45, aria=False).encode(order="sparsity:Q"),
        on.mark_point(**SOLID).encode(**points),
    ]
    if shown["off"].any():
        layers.append(base.transform_filter("datum.off").mark_point(**HOLLOW).encode(**points))
    convention = "honest count" if field == "ratio" else "papers' convention"
    return _spec(
        alt.layer(*layers), data, f"{metric or 'metric'} against training FLOPs, {convention}: {_first(part, 'task')}"
    )


def curves(part: pd.DataFrame, looks: Mapping[str, Look], field: str, title: str) -> dict[str, Any]:
    """One task: a line a run of `field` against step; a run with one value is a point, or it would not be seen."""
    import altair as alt

    shown = part.loc[part[field].notna(), ["run", "method", "sparsity", "seed", "step", field]]
    labels = [f"{_name(row)}, seed {row.seed:.0f}" for row in each(shown)]
    shown = shown.assign(label=labels, alone=shown.groupby("run")["step"].transform("size") == 1)
    data = _Datasets()
    axis = _axis(title) if field == "valid" else alt.Axis(format="~g", tickCount=5)
    base = alt.Chart(data.name(shown.drop(columns=["sparsity", "seed"]))).encode(
        x=alt.X("step:Q", title="step", axis=alt.Axis(format="~s", tickCount=5)),
        y=alt.Y(f"{field}:Q", title=title, scale=alt.Scale(zero=field == "density"), axis=axis),
        color=_colour(looks),
        detail="run:N",
        description="label:N",
    )
    layers = [base.transform_filter("!datum.alone").mark_line(strokeWidth=1.1, opacity=0.75)]
    if shown["alone"].any():
        points = base.transform_filter("datum.alone").mark_point(filled=True, size=40, opacity=0.75)
        layers.append(points.encode(shape=_shape(looks)))
    return _spec(alt.layer(*layers), data, f"{title} of each run against step: {_first(part, 'task')}", height=220)


def ratio_chart(part: pd.DataFrame, looks: Mapping[str, Look], title: str) -> dict[str, Any]:
    """One measure: each cell's ratio to dense by method, the mean over cells as a tick, dense as the line at 1."""
    import altair as alt

    data = _Datasets()
    order = [name for name in looks if name in set(part["method"])]
    lines = {name: wrap(name, 26) for name in order}
    means = part.groupby("method")[["value"]].mean().reset_index()
    part, means = (
        table.assign(row=table["method"].map(lambda name: "\n".join(lines[name]))) for table in (part, means)
    )
    y = alt.Y("row:N", title=None, sort=["\n".join(lines[name]) for name in order],
              axis=alt.Axis(labelExpr="split(datum.label, '\\n')", minExtent=0))  # fmt: skip
    x = alt.X("value:Q", title="÷ dense", scale=alt.Scale(zero=True), axis=alt.Axis(format=".3~g", tickCount=6))
    dense = alt.Chart(alt.Data(values=[{"value": 1}]))
    told = [f"{_name(row)}, {row.task}: {tables.ratio(row.value).text} of dense" for row in each(part)]
    mean = [f"{row.method}, mean over cells: {tables.ratio(row.value).text} of dense" for row in each(means)]
    layers = [
        dense.mark_rule(strokeDash=[5, 4], color="#000000", aria=False).encode(x=x),
        alt.Chart(data.name(part.assign(label=told))).mark_point(filled=True, size=50, opacity=0.65).encode(
            x=x, y=y, color=_colour(looks), shape=_shape(looks), description="label:N"
        ),
        alt.Chart(data.name(means.assign(label=mean))).mark_tick(thickness=2.5, size=18, color="#222222").encode(
            x=x, y=y, description="label:N"
        ),
    ]  # fmt: skip
    tall = max(24, 10 + 13 * max((len(found) for found in lines.values()), default=1))
    return _spec(alt.layer(*layers), data, f"{title}, ratio to dense by method", height=tall * len(order) + 50)


def architecture(part: pd.DataFrame) -> dict[str, Any]:
    """One run: the share of active units as colour, Layers from input (top) to output, steps from left to right."""
    import altair as alt

    order = list(dict.fromkeys(part["layer"]))
    told = [f"{row.layer} after {row.step} steps: {row.active} of {row.of} units" for row in each(part)]
    data = _Datasets()
    cell = alt.Chart(data.name(part[["layer", "step", "share"]].assign(label=told))).mark_rect()
    found = cell.encode(
        x=alt.X("step:O", title="step", axis=alt.Axis(labelOverlap=True, labelAngle=0)),
        y=alt.Y("layer:N", title=None, sort=order, axis=alt.Axis(labelLimit=140, labelOverlap=True)),
        color=alt.Color(
            "share:Q",
            title="active",
            scale=alt.Scale(scheme="viridis", domain=[0, 1]),
            legend=alt.Legend(format=".0%", gradientLength=90),
        ),
        description="label:N",
    )
    return _spec(found, data, f"active units of each layer: {_first(part, 'panel')}", height=70 + 14 * len(order))


def realised(part: pd.DataFrame, looks: Mapping[str, Look]) -> dict[str, Any]:
    """One panel: step time against training FLOPs, both over dense; the diagonal is ideal, hollow is simulated."""
    import altair as alt

    data, span = _Datasets(), bounds(part)
    scale, axis = alt.Scale(type="log", domain=span, nice=False), alt.Axis(format="~g", tickCount=5)
    x = alt.X("flops:Q", title="training FLOPs ÷ dense", scale=scale, axis=axis)
    y = alt.Y("time:Q", title="step time ÷ dense", scale=scale, axis=axis)
    shown = part[["method", "kernel", "sparsity", "flops", "time", "share", "simulated"]]
    told = [
        f"{_name(row)}, kernel {row.kernel}: FLOPs {tables.ratio(row.flops).text}, time {tables.ratio(row.time).text}"
        f" of dense, realised share {tables.percent(row.share).text} %"
        for row in each(shown)
    ]
    base = alt.Chart(data.name(shown.assign(label=told)))
    base = base.encode(x=x, y=y, color=_colour(looks), shape=_shape(looks), description="label:N")
    ideal = alt.Data(values=[{"flops": edge, "time": edge} for edge in span])
    dense = alt.Data(values=[{"flops": edge, "time": 1} for edge in span])
    layers = [
        alt.Chart(ideal).mark_line(strokeDash=[5, 4], color="#000000", strokeWidth=1, aria=False).encode(x=x, y=y),
        alt.Chart(dense).mark_line(strokeDash=[2, 3], color="#7F7F7F", strokeWidth=1, aria=False).encode(x=x, y=y),
        base.transform_filter("!datum.simulated").mark_point(**SOLID),
        base.transform_filter("datum.simulated").mark_point(**HOLLOW),
    ]
    return _spec(alt.layer(*layers), data, f"step time against training FLOPs, over dense: {_first(part, 'panel')}")


def _first(part: pd.DataFrame, column: str) -> str:
    return str(part[column].iloc[0]) if len(part) else ""


def _name(row: Any) -> str:
    return str(row.method) if math.isnan(row.sparsity) else f"{row.method} at {tables.level(row.sparsity).text}"


def _labels(part: pd.DataFrame, metric: str | None, field: str = "") -> list[str]:
    """What a point of accuracy says of itself."""
    labels = []
    for row in each(part):
        name = row.method if row.dense else _name(row)  # Dense runs stand at every level, and have none.
        found = f"{name}: {tables.metric(row.mean, row.high - row.mean, metric).text} (n={row.n:.0f})"
        found += f", FLOPs {tables.ratio(getattr(row, field)).text} of dense" if field else ""
        labels.append(found + (", off target" if row.off else ""))
    return labels


class _Datasets(dict[str, list[dict[str, Any]]]):
    """The named tables of one chart; handing altair the rows themselves would have it check each, for seconds."""

    def name(self, table: pd.DataFrame) -> Any:
        import altair as alt

        name = f"d{len(self)}"
        self[name] = [{str(key): _plain(value) for key, value in row.items()} for row in table.to_dict("records")]
        return alt.NamedData(name=name)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _colour(looks: Mapping[str, Look]) -> Any:
    import altair as alt

    scale = alt.Scale(domain=list(looks), range=[look.colour for look in looks.values()])
    return alt.Color("method:N", scale=scale, legend=None)


def _shape(looks: Mapping[str, Look]) -> Any:
    import altair as alt

    scale = alt.Scale(domain=list(looks), range=[look.shape for look in looks.values()])
    return alt.Shape("method:N", scale=scale, legend=None)


def _axis(metric: str | None) -> Any:
    import altair as alt

    return alt.Axis(format=".3~p" if metric and tables.share(metric.removeprefix("valid ")) else ".4~g", tickCount=6)


def _clipped(part: pd.DataFrame) -> Any:
    import altair as alt

    return alt.Scale(domain=domain(part), zero=False, nice=False)


def _spec(chart: Any, data: _Datasets, description: str, height: int = HEIGHT) -> dict[str, Any]:
    """The specification of a drawing that is `WIDTH` wide and `height` high with all that belongs to it."""
    fit = {"type": "fit", "contains": "padding"}
    properties = {"width": WIDTH, "height": height, "description": description, "autosize": fit}
    spec: dict[str, Any] = chart.properties(**properties).to_dict(validate=False)  # The tests compile it.
    # vl-convert names the schema itself: its version of Vega-Lite need not be the one altair was made for.
    for key in ("$schema", "config"):
        spec.pop(key, None)
    return spec | {"datasets": dict(data)}
