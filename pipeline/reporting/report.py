"""The report of one run, written: the page in markdown and in HTML, and its figures."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from pipeline.files import atomic_directory, write_text
from pipeline.reporting import surprise
from pipeline.reporting.figure import LIGHT, PALETTES, Figure, Palette
from pipeline.reporting.figures import run_figures
from pipeline.reporting.interactive import html_page, placeholder
from pipeline.reporting.markdown import picture
from pipeline.reporting.page import page
from pipeline.reporting.run import read_run
from pipeline.reporting.svg import render

Draw = Callable[[Palette], str]
"""An SVG document in the colours of a palette."""


def write_report(root: Path, title: str, smoothing: float) -> Path:
    """Writes reports/report.md, reports/report.html and reports/figures/ under `root`; returns the markdown's path
    relative to it. Raises as read_run does.
    """
    run = read_run(root)
    figures = run_figures(run, smoothing)
    drawn = drawings(figures)
    in_markdown = pictures(figures, "figures")
    in_html = {figure.name: placeholder(figure) for figure in figures}
    if run.samples and (tokens := run.samples.surprise.tokens):
        drawn["surprise"] = partial(surprise.svg, tokens)
        in_markdown["surprise"] = picture("surprise", surprise.alternative(tokens), "figures")
        in_html["surprise"] = surprise.html(tokens)
    write_drawings(root / "reports/figures", drawn)
    write_text(root / "reports/report.html", html_page(title, page(run, title, smoothing, in_html), figures))
    write_text(root / "reports/report.md", page(run, title, smoothing, in_markdown))
    return Path("reports/report.md")


def drawings(figures: Sequence[Figure]) -> dict[str, Draw]:
    """How each figure is drawn, by its name."""
    return {figure.name: partial(render, figure) for figure in figures}


def pictures(figures: Sequence[Figure], folder: str) -> dict[str, str]:
    """The markdown of each figure, by its name, its SVGs being in `folder`."""
    return {figure.name: picture(figure.name, figure.alt, folder) for figure in figures}


def write_drawings(folder: Path, drawn: Mapping[str, Draw]) -> None:
    """Writes each drawing as <name>.svg and <name>-dark.svg; the folder holds nothing else afterwards."""
    with atomic_directory(folder, ("*.svg",)) as temporary:
        for name, draw in drawn.items():
            for palette in PALETTES:
                suffix = "" if palette is LIGHT else "-dark"
                (temporary / f"{name}{suffix}.svg").write_text(draw(palette), encoding="utf-8")
