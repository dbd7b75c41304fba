"""Writes the report of the run: reports/report.md with its figures, and reports/report.html with interactive charts.

Reads  reports/train/, reports/evaluate/metrics.json, reports/sample/samples.json; dvc.lock and Git, for the provenance
       and the changes since the committed run
Writes reports/report.md, reports/figures/*.svg, and reports/report.html, which is not an output of DVC (dvc.yaml)
Logs   to the training's W&B run: the results of the later stages, and these files
Run by `dvc repro`, or alone: python -m stages.report
"""

from pathlib import Path

from pipeline.config import read_sections
from pipeline.log import cli_errors, logger
from pipeline.reporting.params import ReportParams
from pipeline.reporting.report import write_report
from pipeline.tracking.params import TrackingParams
from pipeline.tracking.publish import publish


def main() -> None:
    params, tracking = read_sections(ReportParams, TrackingParams)
    report = write_report(Path.cwd(), params.title, params.smoothing)
    publish(tracking)
    logger.info("Wrote %s and %s", report, report.with_suffix(".html"))


if __name__ == "__main__":
    with cli_errors("report", __doc__):
        main()
