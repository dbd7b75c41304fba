"""The page as one HTML file that opens from disk: the figures answer to the mouse, and nothing is loaded from anywhere.

The figures are plotly's; its JavaScript is embedded (4.8 MB, which is why the file is left to DVC's cache and not to
Git). Only that file of the package is used: the figures are plain JSON. Colours are names in that JSON, and the page's
script puts in those of the reader's scheme, light or dark, also when it changes.
"""

import json
import math
from importlib.resources import files
from typing import Any

from markdown_it import MarkdownIt

from pipeline.reporting.figure import PALETTES, Axis, Figure, Floats, Palette, Panel, Rule, Series
from pipeline.reporting.html_frame import SCRIPT, STYLE
from pipeline.reporting.surprise import STYLE as SURPRISE_STYLE

_GAP = 0.09  # between panels, as a share of the width
_NARROWEST = 220  # CSS pixels of one panel; more panels than a narrow window has room for are scrolled to


def placeholder(figure: Figure) -> str:
    """Where the figure goes in the page, with its words for those who do not see it."""
    alt = figure.alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    style = f"height:{round(96 * figure.height)}px;min-width:{_NARROWEST * len(figure.panels)}px"
    drawn = f'<div class="figure" id="figure-{figure.name}" role="img" aria-label="{alt}" style="{style}"></div>'
    return f'<div class="wide">{drawn}</div>'


def html_page(title: str, markdown: str, figures: list[Figure]) -> str:
    """The HTML of a markdown page in which `placeholder` stands for each figure. Same input, same bytes."""
    body = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
    values = {f"figure-{figure.name}": plotly_figure(figure) for figure in figures}
    colours = {palette.name: _colours(palette) for palette in PALETTES}
    plotly = files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{_escape(title)}</title>",
            f"<style>\n{STYLE}{SURPRISE_STYLE}</style>",
            f"<script>{plotly}</script>",
            "</head>",
            f"<body>\n<main>\n{body}</main>",
            f'<script type="application/json" id="figures">{_json(values)}</script>',
            f'<script type="application/json" id="colours">{_json(colours)}</script>',
            f"<script>\n{SCRIPT}</script>",
            "</body>",
            "</html>\n",
        )
    )


def plotly_figure(figure: Figure) -> dict[str, Any]:
    """The figure as plotly's JSON (`data`, `layout`); colours are names such as `@text` and `@0`."""
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {
        "paper_bgcolor": "@background",
        "plot_bgcolor": "@background",
        "font": {"color": "@text", "family": "system-ui, sans-serif", "size": 13},
        "margin": {"l": 56, "r": 40, "t": 44, "b": 48},
        "modebar": {"orientation": "v", "bgcolor": "@background", "color": "@muted", "activecolor": "@text"},
        "hovermode": "x unified" if len(figure.panels) == 1 and not figure.panels[0].y.categories else "closest",
        "hoverlabel": {"bgcolor": "@background", "bordercolor": "@grid", "font": {"color": "@text"}},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "showlegend": any(len([s for s in panel.series if s.name]) > 1 for panel in figure.panels),
        "shapes": [],
        "annotations": [],
    }
    width = (1 - _GAP * (len(figure.panels) - 1)) / len(figure.panels)
    shown: set[str] = set()
    for index, panel in enumerate(figure.panels):
        suffix = "" if index == 0 else str(index + 1)
        left = index * (width + _GAP)
        layout[f"xaxis{suffix}"] = _axis(panel.x) | {"domain": [left, left + width], "anchor": f"y{suffix}"}
        layout[f"yaxis{suffix}"] = _axis(panel.y) | {"anchor": f"x{suffix}"}
        for series in panel.series:
            data.append(_trace(series, panel, suffix, first=series.name not in shown))
            shown.add(series.name)
        for rule in panel.rules:
            _add_rule(layout, rule, panel, suffix)
        if panel.title:
            layout["annotations"].append(
                _words(panel.title)
                | {"x": left, "y": 1.02, "yanchor": "bottom", "font": {"size": 14, "color": "@text"}}
            )
    return {"data": data, "layout": layout}


def _trace(series: Series, panel: Panel, suffix: str, first: bool) -> dict[str, Any]:
    colour = f"@{series.colour % len(PALETTES[0].slots)}"
    lines = {"line": (2, "solid"), "faint": (1, "solid"), "dashes": (1.5, "dash"), "joined points": (1.7, "solid")}
    name = series.name or panel.title or panel.y.label
    single = len(series.x) == 1
    marks = series.style in ("points", "spikes") or single
    mode = "markers" if marks else "lines+markers" if series.style == "joined points" else "lines"
    trace: dict[str, Any] = {
        "type": "scatter",
        "name": name,
        "legendgroup": name,
        "showlegend": bool(series.name) and first,
        "x": _numbers(series.x),
        "y": _numbers(series.y),
        "xaxis": f"x{suffix}",
        "yaxis": f"y{suffix}",
        "mode": mode + ("+text" if series.labels else ""),
        "opacity": 0.4 if series.style == "faint" else 1,
        "marker": {"color": colour, "size": 9, "symbol": "triangle-up" if series.style == "spikes" else "circle"},
        "hovertemplate": _hover(series, panel),
    }
    if series.style in lines:
        width, dash = lines[series.style]
        trace["line"] = {"color": colour, "width": width, "dash": dash}
    if series.labels:
        trace |= {"text": list(series.labels), "textposition": "top right", "cliponaxis": False}
    if series.error is not None:
        trace[f"error_{series.error_along}"] = {"type": "data", "array": _numbers(series.error), "color": colour}
    return trace


def _hover(series: Series, panel: Panel) -> str:
    """What a point says under the mouse; in a unified box the x value stands above all of them."""
    if panel.y.categories:
        return "%{y}: %{x:.2f}" + (" ± %{error_x.array:.2f}" if series.error is not None else "") + "<extra></extra>"
    value = "%{y:.4~g}" + (" ± %{error_y.array:.2~g}" if series.error is not None else "")
    return value if not panel.title and not series.labels else f"{value} at %{{x:.4~g}}"


def _axis(axis: Axis) -> dict[str, Any]:
    value: dict[str, Any] = {
        "title": {"text": _escape(axis.label), "font": {"size": 12, "color": "@muted"}},
        "gridcolor": "@grid",
        "linecolor": "@grid",
        "zeroline": False,
        "tickfont": {"color": "@muted"},
        "automargin": True,
        "exponentformat": "power",
    }
    if axis.categories:
        last = len(axis.categories) - 1
        ticks = {"tickvals": list(range(last + 1)), "ticktext": [_escape(name) for name in axis.categories]}
        return value | ticks | {"showgrid": False, "range": [last + 0.6, -0.6]}
    if axis.log:
        value["type"] = "log"
    if axis.low is not None or axis.high is not None:
        bounds = [axis.low, axis.high]
        value["range"] = [None if b is None else math.log10(b) if axis.log else b for b in bounds]
    return value


def _add_rule(layout: dict[str, Any], rule: Rule, panel: Panel, suffix: str) -> None:
    """The dotted line as a shape, its words as an annotation, both in the panel's own axes."""
    other, along = ("x", rule.axis) if rule.axis == "y" else ("y", rule.axis)
    whole = rule.between is None
    start, end = rule.between or (0, 1)
    place = f"{other}{suffix} domain" if whole else f"{other}{suffix}"
    layout["shapes"].append(
        {
            "type": "line",
            "layer": "above",  # a grid line may be in the same place
            "line": {"color": "@text", "width": 1.6, "dash": "dot"},
            f"{along}ref": f"{along}{suffix}",
            f"{other}ref": place,
            f"{along}0": rule.at,
            f"{along}1": rule.at,
            f"{other}0": start,
            f"{other}1": end,
        }
    )
    log = (panel.y if along == "y" else panel.x).log
    at = math.log10(rule.at) if log else rule.at  # plotly takes annotations, unlike shapes, in the axis's logarithm
    anchor = {"xanchor": "right", "yanchor": "bottom"} if along == "y" else {"xanchor": "left", "yanchor": "top"}
    layout["annotations"].append(
        _words(rule.label)
        | {f"{along}ref": f"{along}{suffix}", f"{other}ref": place, along: at, other: end}
        | {"font": {"size": 11, "color": "@muted"}}
        | anchor
    )


def _words(label: str) -> dict[str, Any]:
    return {"text": _escape(label), "showarrow": False, "xref": "paper", "yref": "paper", "xanchor": "left"}


def _colours(palette: Palette) -> dict[str, str]:
    named = {name: getattr(palette, name) for name in ("background", "text", "muted", "grid")}
    return named | {str(slot): colour for slot, colour in enumerate(palette.slots)}


def _numbers(values: Floats) -> list[float | None]:
    """Six significant digits, which is more than one sees; JSON has no NaN, and plotly takes null for a gap."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]


def _json(value: object) -> str:
    """JSON that cannot end the script element that it stands in."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _escape(words: str) -> str:
    return words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
