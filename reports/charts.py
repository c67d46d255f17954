"""Charts of the page as Vega-Lite specifications, made with altair; each carries its own data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from dstbench.reports.series import Look, bounds, domain

HEIGHT = 260
SOLID: dict[str, Any] = {"clip": True, "filled": True, "size": 75, "opacity": 1}
HOLLOW: dict[str, Any] = {"clip": True, "filled": False, "size": 75}


def accuracy_sparsity(part: pd.DataFrame, looks: Mapping[str, Look], metric: str | None) -> dict[str, Any]:
    """One task: mean and interval of each sparse method against sparsity, dense as a dashed line, hollow off target."""
    import altair as alt

    data = _Datasets()
    sparse = data.name(part[~part["dense"].astype(bool)])
    means = data.name(part[part["dense"].astype(bool)].drop_duplicates("method"))
    base = alt.Chart(sparse).encode(
        x=alt.X("x:Q", title="sparsity", axis=alt.Axis(format=".4~p"), scale=alt.Scale(zero=False, padding=18)),
        color=_colour(looks),
        tooltip=_tooltip(metric),
    )
    y = alt.Y("mean:Q", title=f"test {metric or 'metric'}", axis=_axis(metric), scale=_clipped(part))
    on, off = "!datum.off", "datum.off"
    layers = [
        base.transform_filter(on).mark_line(clip=True, opacity=0.55).encode(y=y),
        base.transform_filter(on).mark_rule(clip=True, strokeWidth=1.6).encode(y=alt.Y("low:Q", title=""), y2="high:Q"),
        base.transform_filter(on)
        .mark_point(clip=True, filled=True, size=75, opacity=1)
        .encode(y=y, shape=_shape(looks)),
        alt.Chart(means)
        .mark_rule(strokeDash=[5, 4], clip=True)
        .encode(y=y, color=_colour(looks), tooltip=_tooltip(metric)),
    ]
    if part["off"].any():
        layers.append(
            base.transform_filter(off).mark_point(clip=True, filled=False, size=75).encode(y=y, shape=_shape(looks))
        )
    return _spec(alt.layer(*layers), data, f"{metric or 'metric'} against sparsity: {_first(part, 'task')}")


def accuracy_flops(part: pd.DataFrame, looks: Mapping[str, Look], metric: str | None, field: str) -> dict[str, Any]:
    """One task: mean against training FLOPs relative to dense; `field` is "ratio" (honest) or "papers"."""
    import altair as alt

    shown = part[part[field].notna()].drop_duplicates(["method", "sparsity", "x", "mean"])
    data = _Datasets()
    base = alt.Chart(data.name(shown)).encode(
        x=alt.X(
            f"{field}:Q", title="training FLOPs ÷ dense", axis=alt.Axis(format=".3~g"), scale=alt.Scale(padding=12)
        ),
        y=alt.Y("mean:Q", title=f"test {metric or 'metric'}", axis=_axis(metric), scale=_clipped(part)),
        color=_colour(looks),
        tooltip=_tooltip(metric),
    )
    layers = [
        base.transform_filter("!datum.off").mark_line(clip=True, opacity=0.45).encode(order="sparsity:Q"),
        base.transform_filter("!datum.off")
        .mark_point(clip=True, filled=True, size=75, opacity=1)
        .encode(shape=_shape(looks)),
    ]
    if shown["off"].any():
        hollow = base.transform_filter("datum.off").mark_point(**HOLLOW)
        layers.append(hollow.encode(shape=_shape(looks)))
    convention = "honest count" if field == "ratio" else "papers' convention"
    return _spec(
        alt.layer(*layers), data, f"{metric or 'metric'} against training FLOPs, {convention}: {_first(part, 'task')}"
    )


def curves(part: pd.DataFrame, looks: Mapping[str, Look], field: str, title: str, level: float) -> dict[str, Any]:
    """One task: a line a run of `field` against step; the signal `level` (a sparsity, -1: all) says which runs."""
    import altair as alt

    shown = part.loc[part[field].notna(), ["run", "method", "sparsity", "seed", "step", field]]
    shown = shown.assign(**{field: shown[field].map(lambda v: float(f"{v:.4g}"))})
    # Dotted names and nulls would need escapes in Vega's expressions, so a dense run has level -1.
    data = _Datasets()
    chart = (
        alt.Chart(data.name(shown.assign(sparsity=shown["sparsity"].fillna(-1))))
        .mark_line(strokeWidth=1.1, opacity=0.75)
        .encode(
            x=alt.X("step:Q", title="step"),
            y=alt.Y(f"{field}:Q", title=title, scale=alt.Scale(zero=field == "density")),
            color=_colour(looks),
            detail="run:N",
            tooltip=["method:N", "sparsity:Q", "seed:Q", "step:Q", f"{field}:Q"],
        )
        .add_params(alt.param(name="level", value=level))
        .transform_filter("level < 0 || datum.sparsity < 0 || datum.sparsity == level")
    )
    return _spec(chart, data, f"{title} of each run against step: {_first(part, 'task')}", height=200)


def ratio_chart(part: pd.DataFrame, looks: Mapping[str, Look], title: str) -> dict[str, Any]:
    """One measure: each cell's ratio to dense by method, the mean over cells as a tick, dense as the line at 1."""
    import altair as alt

    data = _Datasets()
    order = [name for name in looks if name in set(part["method"])]
    means = part.groupby("method")[["value"]].mean().reset_index()
    y = alt.Y("method:N", title=None, sort=order)
    x = alt.X("value:Q", title="÷ dense", scale=alt.Scale(zero=True))
    tip = ["method:N", alt.Tooltip("value:Q", format=".3f")]
    layers = [
        alt.Chart(alt.Data(values=[{"value": 1}])).mark_rule(strokeDash=[5, 4], color="#000000").encode(x=x),
        alt.Chart(data.name(part)).mark_point(filled=True, size=55, opacity=0.65).encode(
            x=x, y=y, color=_colour(looks), shape=_shape(looks), tooltip=["task:N", "sparsity:Q", *tip]
        ),
        alt.Chart(data.name(means)).mark_tick(thickness=2.5, size=18, color="#222222").encode(x=x, y=y, tooltip=tip),
    ]  # fmt: skip
    return _spec(alt.layer(*layers), data, f"{title}, ratio to dense by method", height=24 * len(order) + 10)


def realised(part: pd.DataFrame, looks: Mapping[str, Look]) -> dict[str, Any]:
    """One panel: step time against training FLOPs, both over dense; the diagonal is ideal, hollow is simulated."""
    import altair as alt

    data, span = _Datasets(), bounds(part)
    scale, axis = alt.Scale(type="log", domain=span, nice=False), alt.Axis(format="~g", tickCount=5)
    x = alt.X("flops:Q", title="training FLOPs ÷ dense", scale=scale, axis=axis)
    y = alt.Y("time:Q", title="step time ÷ dense", scale=scale, axis=axis)
    tip = [alt.Tooltip(f"{name}:Q", format=".3~f") for name in ("sparsity", "flops", "time", "share")]
    base = alt.Chart(data.name(part[["method", "kernel", "sparsity", "flops", "time", "share", "simulated"]]))
    base = base.encode(x=x, y=y, color=_colour(looks), shape=_shape(looks), tooltip=["method:N", "kernel:N", *tip])
    ideal = alt.Data(values=[{"flops": edge, "time": edge} for edge in span])
    dense = alt.Data(values=[{"flops": edge, "time": 1} for edge in span])
    layers = [
        alt.Chart(ideal).mark_line(strokeDash=[5, 4], color="#000000", strokeWidth=1).encode(x=x, y=y),
        alt.Chart(dense).mark_line(strokeDash=[2, 3], color="#7F7F7F", strokeWidth=1).encode(x=x, y=y),
        base.transform_filter("!datum.simulated").mark_point(**SOLID),
        base.transform_filter("datum.simulated").mark_point(**HOLLOW),
    ]
    return _spec(alt.layer(*layers), data, f"step time against training FLOPs, over dense: {_first(part, 'panel')}")


def _first(part: pd.DataFrame, column: str) -> str:
    return str(part[column].iloc[0]) if len(part) else ""


class _Datasets(dict[str, dict[str, list[Any]]]):
    """The named tables of one chart, as columns: a third of the bytes of rows; the page turns them into rows.

    Handing altair the rows themselves would have it check each against the schema: seconds for a page.
    """

    def name(self, table: pd.DataFrame) -> Any:
        import altair as alt

        name = f"d{len(self)}"
        self[name] = {str(key): [_plain(value) for value in table[key].tolist()] for key in table}
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

    return alt.Axis(format=".3~p" if metric and "acc" in metric else ".4~g", tickCount=6)


def _clipped(part: pd.DataFrame) -> Any:
    import altair as alt

    return alt.Scale(domain=domain(part), zero=False, nice=False)


def _tooltip(metric: str | None) -> list[Any]:
    import altair as alt

    share = ".2%" if metric and "acc" in metric else ".4g"
    named = [alt.Tooltip(f"{k}:Q", format=share) for k in ("mean", "low", "high")]
    return [
        "method:N",
        alt.Tooltip("sparsity:Q", format=".4~p"),
        *named,
        "n:Q",
        "failed:Q",
        alt.Tooltip("ratio:Q", format=".3f"),
    ]


def _spec(chart: Any, data: _Datasets, description: str, height: int = HEIGHT) -> dict[str, Any]:
    spec: dict[str, Any] = chart.properties(width="container", height=height, description=description).to_dict()
    # The page names the mode itself; the bundle's version of Vega-Lite need not be the one altair was made for.
    for key in ("$schema", "config"):
        spec.pop(key, None)
    return spec | {"datasets": dict(data)}
