"""Makes a W&B report that compares runs, with the panels that docs/wandb.md describes.

    python -m pipeline.tracking.wandb_report --group 'position,seed @ 80a69db' --by model.position

Reads the section tracking of params.yaml. Needs a server that can be reached, with a key (`wandb login`), and the
package wandb-workspaces, which nothing else here needs: pip install wandb-workspaces
"""

import argparse
import importlib
from typing import Any

from pipeline.config import read_sections
from pipeline.log import Stop, clear_errors, logger
from pipeline.tracking.params import TrackingParams

HALF, WHOLE, HEIGHT = 12, 24, 8  # of a page's grid


def comparison(project: str, entity: str | None, group: str | None, by: str | None) -> Any:
    """The report, not saved. `group`: of the runs, else all of the project. `by`: a key of params.yaml whose values are
    drawn as means over the runs that share one, with their standard error; None: each run for itself.
    """
    try:
        reports: Any = importlib.import_module("wandb_workspaces.reports.v2")
    except ModuleNotFoundError:
        raise Stop("a W&B report needs the package wandb-workspaces: pip install wandb-workspaces") from None
    report = reports.Report(
        project=project, title=f"Runs of {group or project}", width="fluid", **({"entity": entity} if entity else {})
    )
    runs = reports.Runset(name="Runs", filters=f"Metric('Group') = '{group}'" if group else "")
    report.blocks = [reports.PanelGrid(runsets=[runs], panels=panels(reports, by))]
    return report


def panels(reports: Any, by: str | None) -> list[Any]:
    """Curves over tokens and over time, the evaluation's numbers, what sets the runs apart, what they write."""
    over_runs = {"groupby": reports.Config(by), "groupby_aggfunc": "mean"} if by else {}
    spread = {**over_runs, "groupby_rangefunc": "stderr"} if by else {}

    def place(column: int, row: int, width: int = HALF) -> Any:
        return reports.Layout(x=column, y=row * HEIGHT, w=width, h=HEIGHT)

    return [
        reports.LinePlot(title="Validation", x="tokens", y=["val/bpb"], layout=place(0, 0), **spread),
        reports.LinePlot(
            title="Training",
            x="tokens",
            y=["train/loss"],
            smoothing_type="exponential",
            smoothing_factor=0.9,
            smoothing_show_original=not by,
            layout=place(HALF, 0),
            **over_runs,
        ),
        reports.LinePlot(title="Validation by training time", x="time_s", y=["val/bpb"], layout=place(0, 1), **spread),
        reports.LinePlot(title="Tokens per second", x="tokens", y=["train/tokens_per_sec"], layout=place(HALF, 1)),
        reports.BarPlot(title="Bits per byte", metrics=["evaluate/val/bpb"], layout=place(0, 2), **spread),
        reports.ScatterPlot(
            title="Bits per byte against compute",
            x=reports.SummaryMetric("flops"),
            y=reports.SummaryMetric("evaluate/val/bpb"),
            log_x=True,
            layout=place(HALF, 2),
        ),
        reports.RunComparer(diff_only=True, layout=place(0, 3, WHOLE)),
        reports.WeavePanelSummaryTable(table_name="samples", layout=place(0, 4, WHOLE)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.tracking.wandb_report", description="Makes a W&B report that compares runs."
    )
    parser.add_argument("--group", help="the runs' group; default: all runs of the project")
    parser.add_argument(
        "--by", metavar="KEY", help="a key such as model.position: draw means over the runs that share it"
    )
    arguments = parser.parse_args()
    with clear_errors("wandb_report"):
        (tracking,) = read_sections(TrackingParams)
        try:
            report = comparison(tracking.project, tracking.entity, arguments.group, arguments.by).save()
        except Stop:
            raise
        except Exception as error:  # what the package raises, without a key or a server, has no kind of its own
            raise Stop(f"W&B: {error}") from error
        logger.info("%s", report.url)


if __name__ == "__main__":
    main()
