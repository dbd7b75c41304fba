"""The report of one run, written: the page in markdown and in HTML, and its figures."""

from pathlib import Path

from pipeline.files import atomic_directory, write_text
from pipeline.reporting.figure import LIGHT, PALETTES, Figure
from pipeline.reporting.figures import run_figures
from pipeline.reporting.interactive import html_page, placeholder
from pipeline.reporting.markdown import picture
from pipeline.reporting.page import page
from pipeline.reporting.run import read_run
from pipeline.reporting.svg import render


def write_report(root: Path, title: str, smoothing: float) -> Path:
    """Writes reports/report.md, reports/report.html and reports/figures/ under `root`; returns the markdown's path
    relative to it. Raises as read_run does.
    """
    run = read_run(root)
    figures = run_figures(run, smoothing)
    write_figures(root / "reports/figures", figures)
    markdown = page(run, title, smoothing, figures, lambda figure: picture(figure, "figures"))
    html = html_page(title, page(run, title, smoothing, figures, placeholder), figures)
    write_text(root / "reports/report.html", html)
    write_text(root / "reports/report.md", markdown)
    return Path("reports/report.md")


def write_figures(folder: Path, figures: list[Figure]) -> None:
    """Writes each figure as <name>.svg and <name>-dark.svg; the folder holds nothing else afterwards."""
    with atomic_directory(folder) as temporary:
        for figure in figures:
            for palette in PALETTES:
                suffix = "" if palette is LIGHT else "-dark"
                (temporary / f"{figure.name}{suffix}.svg").write_text(render(figure, palette), encoding="utf-8")
