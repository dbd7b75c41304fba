"""Building blocks of charts. Each function returns an altair chart: `+` puts several into one panel, `|` puts panels
side by side. The only module that imports altair.

`frame` is long-form: columns `x`, `y` and `series`, and where needed `run` (several lines of one series), `low` and
`high` (the ends of an error bar), `label` (text beside the point). `names` are all series of the chart, in the order of
the theme's colours; specs name no colours themselves.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

Floats = NDArray[np.float64]

Layer = Any
"""An alt.Chart or alt.LayerChart."""

LEGEND_CHARACTERS = 100
"""Of the longest name in a legend: one column of the legend has room for so many, if the page is wide enough."""


@dataclass(frozen=True)
class Axis:
    """An axis: its title with the unit; limits, of which NaN leaves one open; the scale; how numbers are written."""

    title: str
    domain: tuple[float, float] | None = None
    log: bool = False
    numbers: Literal["plain", "short", "power"] = "plain"
    """0.006; 1.5M; 5e-4."""

    def channel(self, kind: type, column: str) -> Any:
        """The encoding of a column on this axis; `kind` is alt.X or alt.Y."""
        import altair as alt

        low, high = self.domain or (math.nan, math.nan)
        scale = alt.Scale(
            type="log" if self.log else "linear",
            zero=alt.Undefined if self.log else False,
            nice=kind is alt.Y and self.domain is None and not self.log,
            padding=8 if kind is alt.X else 0,
            domainMin=alt.Undefined if math.isnan(low) else low,
            domainMax=alt.Undefined if math.isnan(high) else high,
        )
        label = {
            "plain": "format(datum.value, '~g')",
            "short": "replace(format(datum.value, '~s'), 'G', 'B')",
            "power": "datum.value ? replace(format(datum.value, '~e'), '+', '') : '0'",
        }[self.numbers]
        return kind(f"{column}:Q", scale=scale, axis=alt.Axis(title=self.title, labelExpr=label, tickCount=6))


@dataclass(frozen=True)
class Chart:
    """A chart of a page. `name` is that of its files; `alt` describes it for those who cannot see it."""

    name: str
    alt: str
    spec: Any
    """Layers, or a horizontal concatenation of them; with heights, without widths."""
    series: Sequence[str] = ()
    """The names in its legend."""

    def to_dict(self) -> dict[str, Any]:
        """The Vega-Lite spec. `usermeta.legendColumn` is the width of a column of the legend in CSS pixels."""
        import altair as alt

        with alt.data_transformers.enable("default", max_rows=None):
            spec: dict[str, Any] = self.spec.to_dict()
        del spec["config"]  # Altair's own theme
        longest = min(max(map(len, self.series), default=0), LEGEND_CHARACTERS)
        return {**spec, "usermeta": {"legendColumn": 50 + 7 * longest}}


def curve(frame: "pd.DataFrame", column: str) -> "pd.DataFrame":
    """Where a column of curves.csv was measured: tokens as `x`, the column as `y`; empty without the column."""
    values = frame.reindex(columns=["tokens", column]).set_axis(["x", "y"], axis="columns")
    return values[np.isfinite(values["y"])].reset_index(drop=True)


def smoothed(values: Floats, weight: float) -> Floats:
    """Each of (n,) finite values averaged with those around it, of which one at a distance of d weighs weight^2d.

    Past and future count alike, so the curve does not lag. All weights together are about 1 / (1 - weight), as in an
    exponential moving average of that weight.
    """

    def sums(side: Floats) -> Floats:
        return np.fromiter(accumulate(side, lambda total, value: weight**2 * total + value), np.float64, len(side))

    def both_sides(side: Floats) -> Floats:
        return sums(side) + sums(side[::-1])[::-1] - side

    return both_sides(values) / both_sides(np.ones(len(values)))


def thinned(frame: "pd.DataFrame", most: int = 1500) -> "pd.DataFrame":
    """At most `most` rows: those with the lowest and the highest `y` of each of most / 2 equal spans."""
    if len(frame) <= most:
        return frame
    y = frame["y"].to_numpy()
    spans = np.array_split(np.arange(len(y)), most // 2)
    return frame.iloc[sorted({int(span[pick(y[span])]) for span in spans for pick in (np.argmin, np.argmax)})]


def lines(
    frame: "pd.DataFrame",
    x: Axis,
    y: Axis,
    names: Sequence[str],
    style: Literal["line", "faint", "dashed"] = "line",
    dots: bool = False,
) -> Layer:
    """A line for each series, or for each `run` of one. `dots`: one at each point; always for a single point."""
    import altair as alt

    styles: dict[str, dict[str, Any]] = {
        "line": {"strokeWidth": 2},
        "faint": {"strokeWidth": 1, "opacity": 0.35},
        "dashed": {"strokeWidth": 1.5, "strokeDash": [5, 4]},
    }
    mark = alt.MarkDef(type="line", clip=True, strokeJoin="round", strokeCap="round", **styles[style])
    if dots or len(frame) == 1:
        mark.point = alt.OverlayMarkDef(filled=True, size=36)
    detail = alt.Detail("run:N") if "run" in frame else alt.Undefined
    return alt.Chart(_rounded(frame), mark=mark).encode(
        x=x.channel(alt.X, "x"), y=y.channel(alt.Y, "y"), color=_color(names), detail=detail
    )


def points(
    frame: "pd.DataFrame", x: Axis, y: Axis, names: Sequence[str], shape: Literal["circle", "triangle-up"] = "circle"
) -> Layer:
    """A mark for each row, with its `label`, and with an error bar from `low` to `high`."""
    import altair as alt

    base = alt.Chart(_rounded(frame)).encode(x=x.channel(alt.X, "x"), y=y.channel(alt.Y, "y"))
    layer = base.mark_point(filled=True, opacity=1, size=60, shape=shape).encode(color=_color(names))
    if "low" in frame:
        bar = base.mark_rule(strokeWidth=1.5, clip=True).encode(color=_color(names))
        layer = bar.encode(y=y.channel(alt.Y, "low"), y2=alt.Y2("high:Q")) + layer
    if "label" in frame:
        layer += base.mark_text(style="label", align="left", dx=7, dy=-9).encode(text="label:N")
    return layer


def end_labels(frame: "pd.DataFrame", x: Axis, y: Axis, names: Sequence[str]) -> Layer:
    """The `label` right of the last points of lines; of two, the upper one is moved up and the lower one down."""
    import altair as alt

    frame = frame.sort_values("y", ascending=False)
    layers = []
    for row, down in enumerate((-7, 7) if len(frame) == 2 else [0] * len(frame)):
        text = alt.Chart(_rounded(frame.iloc[[row]])).mark_text(align="left", dx=8, dy=down, fontSize=12, clip=False)
        text = text.encode(x=x.channel(alt.X, "x"), y=y.channel(alt.Y, "y"), color=_color(names), text="label:N")
        layers.append(text)
    return alt.layer(*layers)


def rules(
    values: Sequence[tuple[float, str]], axis: Axis, along: Literal["x", "y"], end: Literal["left", "right"] = "right"
) -> Layer:
    """A dotted line across the panel at each value of an axis, with its label. `along`: which axis; `end`: where the
    label of a horizontal line is."""
    import altair as alt
    import pandas as pd

    base = alt.Chart(_rounded(pd.DataFrame(values, columns=["at", "label"])))
    if along == "y":
        base = base.encode(y=axis.channel(alt.Y, "at"))
        text = base.mark_text(style="reference-label", align=end, dx=4 if end == "left" else 0, dy=-6)
        text = text.encode(x=alt.value("width" if end == "right" else 0))
    else:
        base = base.encode(x=axis.channel(alt.X, "at"))
        text = base.mark_text(style="reference-label", align="left", dx=3).encode(y=alt.value(6))
    return base.mark_rule(style="reference") + text.encode(text="label:N")


def hover(frame: "pd.DataFrame", x: Axis, y: Axis, names: Sequence[str], titles: tuple[str, str, str]) -> Layer:
    """The values of the point nearest to the mouse; dragging moves the panel, shift + wheel zooms. Not in SVGs.

    `titles`: what `series` (or the column `name`, where there is one), `x` and `y` are called.
    """
    import altair as alt

    digest = hashlib.sha256(frame.to_csv().encode()).hexdigest()[:8]  # names must be unique on the page
    nearest = alt.selection_point(name=f"near{digest}", nearest=True, on="pointerover", clear="pointerout")
    zoom = alt.selection_interval(name=f"zoom{digest}", bind="scales", zoom="wheel![event.shiftKey]")
    # An expression of our own: in `tooltip` encodings, Vega-Lite 6.4 loses names where nearest=True.
    row = "(datum.datum || datum)"
    number = ",.4~s" if x.numbers == "short" else ",.4~g"
    values = [f"format({row}.x, '{number}')", f"format({row}.y, ',.5~g')"]
    name = f"{row}.{'name' if 'name' in frame else 'series'}"
    pairs = list(zip(titles, [name, *values], strict=True))[0 if len(names) > 1 else 1 :]
    tooltip = alt.ExprRef("{" + ", ".join(f"{json.dumps(title)}: {value}" for title, value in pairs) + "}")
    mark = alt.MarkDef(type="point", filled=True, size=60, clip=True, tooltip=tooltip)
    layer = alt.Chart(_rounded(frame), name=f"hover{digest}", mark=mark)
    opacity = alt.condition(nearest, alt.value(1), alt.value(0), empty=False)
    layer = layer.encode(x=x.channel(alt.X, "x"), y=y.channel(alt.Y, "y"), color=_color(names), opacity=opacity)
    return layer.add_params(nearest, zoom)


def _color(names: Sequence[str]) -> "alt.Color":
    """The theme's colours in the order of `names`, with a legend where there are several."""
    import altair as alt

    legend = alt.Legend(symbolType="stroke", symbolOpacity=1) if len(names) > 1 else None
    return alt.Color("series:N", scale=alt.Scale(domain=list(names)), legend=legend)


def _rounded(frame: "pd.DataFrame") -> "pd.DataFrame":
    """The frame with numbers of six significant digits, more than one can see, to keep the specs small."""
    numbers = frame.select_dtypes("float")
    return frame.assign(**{str(name): [float(f"{value:.6g}") for value in column] for name, column in numbers.items()})
