"""Compares experiments, with tests of significance: python -m pipeline compare

    python -m pipeline compare                                   # the experiments from the last commit
    python -m pipeline compare dusty-rope warm-alibi             # these, from any commit
    python -m pipeline compare -A                                # of all commits
    python -m pipeline compare --into docs/experiments/depth     # a page for other clones too
    python -m pipeline compare --reference dusty-rope            # with the configuration of this one
    python -m pipeline compare --no-time                         # for runs that shared a machine
    python -m pipeline compare --ablation steps.yaml               # what each step of a `sweep --cumulative` is worth

Reads `dvc exp show --json`, and from Git what each experiment left in reports/. Writes reports/compare.md and
reports/compare/*.svg; with --html also reports/compare.html, with interactive charts. Where several model sizes and
training lengths were run, also reports/scaling.json, from which `plan --scaling` predicts the loss of other runs.
"""

import argparse
from pathlib import Path

from pipeline.ablation import read_ablation
from pipeline.cli.arguments import positive_int
from pipeline.comparison.ablation import ablation_experiments
from pipeline.comparison.experiments import read_experiments
from pipeline.comparison.page import write_comparison
from pipeline.config import read_sections
from pipeline.log import logger
from pipeline.reporting.params import ReportParams


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline compare", description="Compares experiments.")
    parser.add_argument("names", nargs="*", help="experiments by name (default: those from the last commit)")
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument("-A", "--all-commits", action="store_true", help="experiments from all commits")
    earlier.add_argument("-n", "--num", type=positive_int, help="experiments from the last NUM commits")
    parser.add_argument(
        "--reference",
        metavar="NAME",
        help="compare with this experiment's configuration (default: the committed one, or the start of an ablation)",
    )
    parser.add_argument("--title", default="Comparison of experiments", help="heading of the page")
    parser.add_argument("--html", action="store_true", help="also write an HTML page with interactive charts")
    parser.add_argument("--into", type=Path, help="folder for a page that other clones can use (default: reports)")
    parser.add_argument("--no-time", action="store_true", help="leave out training times")
    parser.add_argument(
        "--ablation",
        type=Path,
        metavar="FILE",
        help="only the experiments of sweep --cumulative and --leave-one-out FILE",
    )
    options = parser.parse_args(arguments)
    if options.into == Path():  # an unset variable of the shell
        parser.error("--into: name a folder")
    ablation = read_ablation(options.ablation) if options.ablation else None
    (params,) = read_sections(ReportParams)
    commits = ["--all-commits"] if options.all_commits else ["--num", str(options.num)] if options.num else []
    experiments = read_experiments(Path.cwd(), options.names, commits)
    if ablation:
        experiments = ablation_experiments(experiments, ablation)
    page = write_comparison(
        options.into or Path("reports"),
        experiments,
        options.title,
        params.smoothing,
        html=options.html,
        kept=options.into is not None,
        times=not options.no_time,
        ablation=ablation,
        reference=options.reference,
    )
    logger.info("compared %d experiment%s: %s", len(experiments), "s" * (len(experiments) != 1), page)
