"""Writes reports/report.html: in a fresh clone, or after `dvc exp apply` has replaced the other files of the report.

The report stage writes it too, but DVC does not track it and Git ignores it. No other file changes.
"""

import argparse
from pathlib import Path

from pipeline.config import read_sections
from pipeline.log import logger
from pipeline.reporting.params import ReportParams
from pipeline.reporting.report import write_html


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(arguments)
    (params,) = read_sections(ReportParams)
    write_html(Path.cwd(), params.title, params.smoothing)
    logger.info("Wrote reports/report.html")
