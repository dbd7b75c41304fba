"""Writes the report of the run: reports/report.md with its figures, and reports/report.html that answers to the mouse.

Reads  reports/train/, reports/evaluate/metrics.json, reports/sample/samples.json, data/shards/manifest.json,
       dvc.lock and Git (what the run was made from, and what differs from the last committed one)
Writes reports/report.md, reports/figures/*.svg, reports/report.html; removes the state of runs that dvc.lock records
Logs   to the training's W&B run: what the stages since training have found, and these files
Run by `dvc repro`, or alone: python -m stages.report
"""

from pathlib import Path

from pipeline.config import read_sections
from pipeline.log import clear_errors, logger
from pipeline.reporting.params import ReportParams
from pipeline.reporting.report import write_report
from pipeline.runs import run_directory
from pipeline.tracking.params import TrackingParams
from pipeline.tracking.publish import publish
from pipeline.training.run_state import remove_recorded


def main() -> None:
    params, tracking = read_sections(ReportParams, TrackingParams)
    report = write_report(Path.cwd(), params.title, params.smoothing)
    publish(tracking)
    logger.info("The report of this run: %s (and %s)", report, report.with_suffix(".html").name)
    remove_recorded(run_directory(""))  # here, at the end of the line: until then a copy that `--temp` made may be lost


if __name__ == "__main__":
    with clear_errors("report"):
        main()
