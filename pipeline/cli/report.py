"""Writes reports/report.html, the interactive report, and no other file.

The report stage writes it too, but neither Git nor DVC stores it: run this in a fresh clone or after `dvc exp apply`.
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
