"""Draws a figure as SVG: the only module that imports matplotlib, and only when something is drawn.

The same figure gives the same bytes on every machine with the same matplotlib: no date, fonts as paths (the font that
matplotlib brings), ids from a fixed salt, and no matplotlibrc has a say.
"""

import io
import re
from collections.abc import Sequence
from typing import Any

from pipeline.reporting.figure import Axis, Figure, Palette, Panel, Rule, Series
from pipeline.reporting.numbers import ten_to

Axes = Any  # matplotlib's, whose keyword arguments are typed one by one and cannot be passed on as a mapping

WIDTH = 9.0  # inches; 864 CSS pixels, the width of a page's column on GitHub
ROW_OF_NAMES = 130  # characters of the legend's size that fit the width
LONGEST_NAME = 60

STYLES: dict[str, dict[str, Any]] = {
    "line": {"linewidth": 1.7, "solid_capstyle": "round", "solid_joinstyle": "round"},
    "faint": {"linewidth": 0.8, "alpha": 0.35},
    "dashes": {"linewidth": 1.3, "linestyle": (0, (4, 3))},
    "points": {"linestyle": "none", "marker": "o", "markersize": 5.5},
    "joined points": {"linewidth": 1.5, "marker": "o", "markersize": 4.5},
    "spikes": {"linestyle": "none", "marker": "^", "markersize": 6.5},
}


def render(figure: Figure, palette: Palette) -> str:
    """The figure as an SVG document in the colours of `palette`."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_settings(palette))
        canvas = Canvas(figsize=(WIDTH, figure.height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08))
        row = canvas.subplots(1, len(figure.panels), squeeze=False)[0]
        for axes, panel in zip(row, figure.panels, strict=True):
            _draw(axes, panel, palette)
        _legend(canvas, row)
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return slim(buffer.getvalue())


def slim(svg: str) -> str:
    """The same picture in fewer bytes: coordinates to a hundredth of a point, no empty metadata."""
    svg = re.sub(r" <metadata>.*?</metadata>\n", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:d|x|y)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), svg)
    return re.sub(r"[ \t]+\n", "\n", svg)


def _settings(palette: Palette) -> dict[Any, Any]:
    return {
        "svg.hashsalt": "gpt-pipeline",
        "svg.fonttype": "path",
        "text.parse_math": False,  # a dollar in a name is a dollar
        "font.family": ["DejaVu Sans"],
        "font.size": 9,
        "axes.titlesize": 9.5,
        "axes.titlelocation": "left",
        "axes.titlecolor": palette.text,
        "axes.labelcolor": palette.muted,
        "axes.edgecolor": palette.grid,
        "axes.facecolor": palette.background,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": palette.grid,
        "grid.linewidth": 0.6,
        "xtick.color": palette.grid,
        "ytick.color": palette.grid,
        "xtick.labelcolor": palette.muted,
        "ytick.labelcolor": palette.muted,
        "text.color": palette.text,
        "figure.facecolor": palette.background,
        "legend.frameon": False,
        "legend.fontsize": 9,
    }


def _draw(axes: Axes, panel: Panel, palette: Palette) -> None:
    """One panel: series, reference lines, axes."""
    for series in panel.series:
        _draw_series(axes, series, palette)
    _prepare(axes, panel.x, "x")
    _prepare(axes, panel.y, "y")
    for rule in panel.rules:
        _draw_rule(axes, rule, palette)
    if panel.title:
        axes.set_title(panel.title)


def _legend(canvas: Any, axes: Sequence[Axes]) -> None:
    """One legend above all panels, of every name once, when there is more than one; as many in a row as have room."""
    named: dict[str, Any] = {}
    for one in axes:
        for handle, name in zip(*one.get_legend_handles_labels(), strict=True):
            named.setdefault(name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…", handle)
    if len(named) > 1:
        columns = max(1, min(len(named), ROW_OF_NAMES // (max(map(len, named)) + 7)))
        canvas.legend(
            named.values(), named.keys(), loc="outside upper left", ncols=columns, handlelength=1.6, columnspacing=1.6
        )


def _draw_series(axes: Axes, series: Series, palette: Palette) -> None:
    colour = palette.slots[series.colour % len(palette.slots)]
    look = {**STYLES[series.style], "color": colour, "label": series.name or "_nolegend_"}
    if len(series.x) == 1 and "marker" not in look:
        look |= {"marker": "o", "markersize": 4}  # a line through one point would be invisible
    if series.error is None:
        axes.plot(series.x, series.y, **look)
    else:
        axes.errorbar(
            series.x, series.y, **{f"{series.error_along}err": series.error}, capsize=3, elinewidth=1.3, **look
        )
    for x, y, label in zip(series.x, series.y, series.labels, strict=False):
        axes.annotate(label, (x, y), textcoords="offset points", xytext=(7, 5), color=palette.text, fontsize=8.5)


def _draw_rule(axes: Axes, rule: Rule, palette: Palette) -> None:
    """A dotted line; its words stand at the right end of a horizontal one and at the top of a vertical one."""
    look = {"color": palette.muted, "linewidth": 1.1, "linestyle": (0, (1.5, 2)), "zorder": 1.5}
    words = {"color": palette.muted, "fontsize": 8, "textcoords": "offset points"}
    horizontal = rule.axis == "y"
    if rule.between is None:
        (axes.axhline if horizontal else axes.axvline)(rule.at, **look)
        end, system = 1.0, axes.get_yaxis_transform() if horizontal else axes.get_xaxis_transform()
    else:
        (axes.hlines if horizontal else axes.vlines)(rule.at, *rule.between, **look)
        end, system = rule.between[1], axes.transData
    where = (end, rule.at) if horizontal else (rule.at, end)
    offset = (-2, 3) if horizontal else (3, -9)
    axes.annotate(rule.label, where, xycoords=system, xytext=offset, ha="right" if horizontal else "left", **words)


def _prepare(axes: Axes, axis: Axis, which: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    side = axes.xaxis if which == "x" else axes.yaxis
    getattr(axes, f"set_{which}label")(axis.label)
    if axis.categories:
        getattr(axes, f"set_{which}ticks")(range(len(axis.categories)), axis.categories)
        side.grid(False)
        limits = (len(axis.categories) - 0.4, -0.6) if which == "y" else (-0.6, len(axis.categories) - 0.4)
        getattr(axes, f"set_{which}lim")(*limits)  # the first category on top
        return
    if axis.low is not None or axis.high is not None:
        getattr(axes, f"set_{which}lim")(axis.low, axis.high)
    locator: Any = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10])
    if axis.log:
        getattr(axes, f"set_{which}scale")("log")
        low, high = getattr(axes, f"get_{which}lim")()
        if high > 20 * low:  # less than that holds too few powers of ten to read values by
            locator = LogLocator(subs=(1.0, 2.0, 5.0))
        side.set_minor_locator(NullLocator())
    side.set_major_locator(locator)
    side.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))


def tick(value: float) -> str:
    """A number on an axis: 2.5, 10,000, 5 × 10¹⁴."""
    if abs(value) < 1e6:
        return f"{value:,.10g}"
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g} × {ten_to(int(exponent))}"
