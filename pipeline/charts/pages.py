"""Draws charts: as SVGs for a markdown page, and as interactive charts in an HTML page that opens from disk.

One spec serves both, in a light and a dark theme. vl-convert renders the SVGs and brings the JavaScript of Vega, which
the HTML page embeds. The same charts give the same bytes on every machine with the same vl-convert.
"""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipeline import markdown as md
from pipeline.charts.specs import Chart
from pipeline.files import atomic_directory

WIDTH = 864
"""CSS pixels of an SVG: the width of a page's column on GitHub."""

AXIS, SPACING, RIGHT, PADDING, LEGEND_SYMBOL = 48, 24, 12, 8, 45
"""CSS pixels of a y axis with its numbers, between panels, of the last number right of an x axis, around a chart, and
of the symbol and the space beside a name in a legend; charts.js has them too."""

FONT = "Liberation Sans, Arial, Helvetica, sans-serif"  # the first comes with vl-convert, so it measures text by it

Spec = dict[str, Any]


def theme(background: str, text: str, muted: str, grid: str, colors: Sequence[str]) -> Spec:
    """A Vega-Lite config in some colours. The y axis has its title above it, which leaves the width to the curves."""
    axis = {"gridColor": grid, "domainColor": grid, "tickColor": grid, "labelColor": muted, "titleColor": text}
    title_above = {"titleAngle": 0, "titleAlign": "left", "titleAnchor": "end", "titleY": -10, "titleX": -AXIS}
    legend = {"orient": "top", "direction": "horizontal", "title": None, "offset": 30, "columnPadding": 30}
    return {
        "background": background,
        "font": FONT,
        "padding": PADDING,
        "view": {"stroke": None},
        "axis": {**axis, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "titlePadding": 8},
        "axisX": {"grid": False, "labelFlush": True, "labelOverlap": True, "labelSeparation": 6},
        "axisY": {**title_above, "minExtent": AXIS, "domain": False, "ticks": False},
        "legend": {**legend, "labelColor": text, "labelFontSize": 12, "symbolStrokeWidth": 2},
        "range": {"category": list(colors)},
        "style": {
            "reference": {"color": muted, "strokeDash": [2, 2], "strokeWidth": 1.2},
            "reference-label": {"color": muted, "fontSize": 11},
            "label": {"color": text, "fontSize": 12},
        },
    }


# GitHub's own colours, so that a chart fits the page around it.
LIGHT = theme(
    background="#ffffff",
    text="#1f2328",
    muted="#656d76",
    grid="#d8dee4",
    colors=("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#1b7c83", "#9a6700", "#57606a"),
)
DARK = theme(
    background="#0d1117",
    text="#e6edf3",
    muted="#8d96a0",
    grid="#30363d",
    colors=("#58a6ff", "#ffa657", "#3fb950", "#bc8cff", "#f778ba", "#39c5cf", "#d29922", "#8b949e"),
)


def write_svgs(folder: Path, charts: Sequence[Chart]) -> None:
    """Writes each chart as <name>.svg and <name>-dark.svg; the folder holds nothing else afterwards."""
    with atomic_directory(folder, ("*.svg",)) as temporary:
        for chart in charts:
            for suffix, config in (("", LIGHT), ("-dark", DARK)):
                (temporary / f"{chart.name}{suffix}.svg").write_text(svg(chart, config), encoding="utf-8")


def svg(chart: Chart, config: Spec) -> str:
    """The chart as an SVG document in the colours of a theme."""
    import vl_convert

    spec = _without_hover(chart.to_dict())
    columns = max(1, (WIDTH - AXIS) // spec["usermeta"]["legendColumn"])
    legend = {"columns": columns, "labelLimit": (WIDTH - AXIS) // columns - LEGEND_SYMBOL}
    config = {**config, "legend": {**config["legend"], **legend}}
    document: str = vl_convert.vegalite_to_svg(_sized(spec), config=config, allowed_base_urls=[])
    # Vega numbers clip paths on from those of the charts before.
    numbers: dict[str, int] = {}
    return (
        re.sub(
            r'(id="|url\(#)clip(\d+)',
            lambda match: f"{match[1]}clip{numbers.setdefault(match[2], len(numbers))}",
            document,
        )
        + "\n"
    )


def picture(chart: Chart, folder: str) -> Markup:
    """The markdown that shows the chart's two SVGs, which are in `folder`: the reader's colour scheme picks one."""
    alt = escape(md.one_line(chart.alt)).replace("&#x27;", "'")
    return Markup(
        "<picture>\n"
        f'  <source media="(prefers-color-scheme: dark)" srcset="{folder}/{chart.name}-dark.svg">\n'
        f'  <img alt="{alt}" src="{folder}/{chart.name}.svg">\n'
        "</picture>"
    )


def html_figure(chart: Chart) -> Markup:
    """The HTML that shows the chart in a page of html_page."""
    alt = escape(md.one_line(chart.alt))
    return Markup(f'<div class="chart" id="chart-{chart.name}" role="img" aria-label="{alt}"></div>')


def html_page(title: str, body: str, charts: Sequence[Chart], style: str = "") -> str:
    """An HTML page that loads nothing. Only its own scripts run: their hashes are in its Content-Security-Policy.

    `body`: markdown, with the HTML of html_figure where charts go; `style`: more CSS.
    """
    from markdown_it import MarkdownIt

    specs = {f"chart-{chart.name}": chart.to_dict() for chart in charts}
    data = {"charts": specs, "themes": {"light": LIGHT, "dark": DARK}}
    script = Path(__file__).with_name("charts.js").read_text(encoding="utf-8")
    scripts = [_vega(), script] if charts else []
    context = {
        "title": md.one_line(title),
        "body": MarkdownIt("commonmark", {"html": True}).enable("table").render(body),
        "style": style,
        # "<" is escaped so that no text in it can end the script element.
        "data": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "scripts": scripts,
        "hashes": [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts],
    }
    return md.render(Path(__file__).with_name("page.html.jinja"), context, html=True)


@cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle


def _sized(spec: Spec) -> Spec:
    """The spec with the width of an SVG; charts.js does the same for the width of a window."""
    if "hconcat" not in spec:
        return {**spec, "width": WIDTH, "autosize": {"type": "fit-x", "contains": "padding"}}
    panels = spec.pop("hconcat")
    width = (WIDTH - 2 * PADDING + SPACING - RIGHT) / len(panels) - SPACING - AXIS
    panels = [{**panel, "width": width} for panel in panels]
    return {**spec, "concat": panels, "bounds": "flush", "spacing": SPACING + AXIS}


def _without_hover(spec: Spec) -> Spec:
    """The spec without the layers and params that only a mouse needs."""
    spec = {key: value for key, value in spec.items() if key != "params"}
    for kind in ("hconcat", "layer"):
        if kind in spec:
            parts = [part for part in spec[kind] if not part.get("name", "").startswith("hover")]
            spec[kind] = [_without_hover(part) for part in parts]
    return spec
