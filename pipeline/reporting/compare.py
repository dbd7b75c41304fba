"""Writes reports/compare.md: experiments side by side, and whether their differences are larger than their noise.

Reads  `dvc exp show --json`, and from Git what each experiment left in reports/
Writes reports/compare.md and reports/compare/*.svg; with --html also reports/compare.html, its figures interactive
Run    python -m pipeline.reporting.compare                     the experiments since the last commit
       python -m pipeline.reporting.compare dusty-rope warm-alibi   these, of any commit
       python -m pipeline.reporting.compare --all-commits       all there are
       python -m pipeline.reporting.compare --into docs/experiments/depth   kept there, for other clones too
       python -m pipeline.reporting.compare --no-time           without times, of runs that shared a machine
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config import read_sections
from pipeline.files import write_text
from pipeline.log import Stop, clear_errors, logger
from pipeline.reporting import git
from pipeline.reporting.comparison.experiments import Experiment, listed, with_results
from pipeline.reporting.comparison.figures import comparison_figures
from pipeline.reporting.comparison.groups import measure_of, seen_params
from pipeline.reporting.comparison.page import page, ranked_configurations
from pipeline.reporting.interactive import html_page, placeholder
from pipeline.reporting.params import ReportParams
from pipeline.reporting.report import drawings, pictures, write_drawings

REPORTS = Path("reports")
PAGE, FIGURES = "compare.md", "compare"
SHORT = 7
"""Characters of a revision, at the least, that name an experiment."""


def experiments_of(root: Path, names: Sequence[str], rev: str | None, all_commits: bool) -> list[Experiment]:
    """The experiments asked for, with their results: those since the last commit, beside the committed run itself.

    With `names`, those alone, whatever commit they start from. Raises Stop where DVC fails, or where a name is unknown
    or that of several.
    """
    found = listed(_shown(root, rev, all_commits or bool(names)))
    if names:
        head = git.revision(root).commit
        asked = [named(name, found, head) for name in names]
        found = list({one.rev: one for one in asked}.values())
    read = [with_results(one, lambda revision, path: git.show(root, revision, path)) for one in found]
    return without_copies([one for one in read if one is not None])


def named(name: str, found: Sequence[Experiment], head: str | None) -> Experiment:
    """The experiment of this name or revision: the one that starts from `head` where other commits have it too."""
    alike = {one.rev: one for one in found if one.name == name or (len(name) >= SHORT and one.rev.startswith(name))}
    if not alike:
        raise Stop(f"no experiment is called {name}: `dvc exp list --all-commits` lists them")
    nearest = [one for one in alike.values() if one.base == head] or list(alike.values())
    nearest = [one for one in nearest if one.state == "done"] or nearest  # a failed one may have been run again
    if len(nearest) > 1:
        revisions = ", ".join(f"{one.rev[:SHORT]} (from commit {one.base[:SHORT]})" for one in nearest)
        raise Stop(f"{len(nearest)} experiments are called {name}: {revisions}; name the one by its revision")
    return nearest[0]


def without_copies(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Leaves out a committed run that an experiment repeats, setting for setting: it would be one run shown twice."""
    own = [(one.base, seen_params(one)) for one in experiments if not one.committed and one.state == "done"]
    return [one for one in experiments if not one.committed or (one.base, seen_params(one)) not in own]


def write_comparison(
    folder: Path,
    experiments: Sequence[Experiment],
    title: str,
    smoothing: float,
    html: bool = False,
    kept: bool = False,
    times: bool = True,
) -> Path:
    """Writes the comparison into `folder`; returns the page's path. `kept`, `times`: as `page` takes them."""
    written = folder / PAGE
    measure = measure_of(experiments)
    figures = comparison_figures(ranked_configurations(experiments, measure), measure, smoothing, times)
    write_drawings(folder / FIGURES, drawings(figures))
    if html:
        markdown = page(experiments, title, {figure.name: placeholder(figure) for figure in figures}, kept, times)
        write_text(written.with_suffix(".html"), html_page(title, markdown, figures))
    write_text(written, page(experiments, title, pictures(figures, FIGURES), kept, times))
    return written


def _shown(root: Path, rev: str | None, all_commits: bool) -> list[dict[str, Any]]:
    """What `dvc exp show --json` prints."""
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json"]
    command += ["--all-commits"] if all_commits else ["--rev", rev] if rev else []
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "DVC_NO_ANALYTICS": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise Stop(f"`dvc exp show` failed: {done.stderr.strip() or done.stdout.strip()}")
    shown: list[dict[str, Any]] = json.loads(done.stdout)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.reporting.compare", description="Compares experiments.")
    parser.add_argument("names", nargs="*", help="experiments by name; default: those since the last commit")
    parser.add_argument("--rev", help="experiments that start from this commit")
    parser.add_argument("--all-commits", action="store_true", help="experiments of every commit")
    parser.add_argument("--title", default="Experiments, side by side", help="the page's first line")
    parser.add_argument("--html", action="store_true", help="also an HTML page with interactive figures")
    parser.add_argument("--into", type=Path, help="the folder that keeps it, for others too (default: reports)")
    parser.add_argument("--no-time", action="store_true", help="leave out times, which say nothing of a busy machine")
    chosen = parser.parse_args()
    (params,) = read_sections(ReportParams)
    found = experiments_of(Path.cwd(), chosen.names, chosen.rev, chosen.all_commits)
    written = write_comparison(
        chosen.into or REPORTS,
        found,
        chosen.title,
        params.smoothing,
        chosen.html,
        kept=chosen.into is not None,
        times=not chosen.no_time,
    )
    logger.info("Compared %d runs: %s", len(found), written)


if __name__ == "__main__":
    with clear_errors("compare"):
        main()
