"""Charts of a comparison: curves with the mean over seeds in front of the runs, and loss against compute."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from operator import add, or_
from typing import Any

import numpy as np
import pandas as pd

from pipeline.charts.specs import Axis, Chart, hover, lines, points, rules, smoothed, thinned
from pipeline.comparison.configurations import LOSS, Configuration, Metric
from pipeline.comparison.experiments import Run
from pipeline.comparison.scaling import ScalingFit, compute_differs
from pipeline.formatting import count, fixed, power_of_ten

MAX_COLORED = 7
"""Configurations with a colour of their own if there are more than colours; the others have the theme's last, grey."""

MAX_POINTS = 400
"""Of a line in one panel."""

LATE = 2 / 3
"""Share of the tokens from which on a panel shows the curves enlarged: at the end they differ."""


def comparison_charts(
    configurations: Sequence[Configuration],
    metric: Metric,
    smoothing: float,
    times: bool = True,
    target: float | None = None,
    scaling: ScalingFit | None = None,
) -> list[Chart]:
    """The charts that there are values for. `configurations`: best first; `times`: with panels over training time;
    `target`: a validation loss to mark; `scaling`: a fit to draw.
    """
    configurations = sorted(configurations, key=lambda configuration: not configuration.committed)
    validation = curves(configurations, lambda run: curve(run, metric.column))
    charts = [_curves_chart("validation", metric, validation, times, target)]
    if metric is LOSS:  # training has no bits per byte, and losses of different tokens are not comparable
        training = curves(configurations, lambda run: curve(run, "train/loss", smoothing))
        charts.append(_curves_chart("training", replace(LOSS, name="training loss"), training, times))
    charts.append(_compute_chart(configurations, metric, scaling if metric is LOSS else None))
    if scaling:
        charts.append(_residuals_chart(scaling))
    return [chart for chart in charts if chart is not None]


def curve(run: Run, column: str, smoothing: float = 0.0) -> pd.DataFrame:
    """The rows of a run's curves with a value: tokens, seconds, y. `smoothing` as in report.smoothing."""
    frame = run.curves.reindex(columns=["tokens", "time_s", column]).set_axis(["tokens", "seconds", "y"], axis=1)
    frame = frame.replace([np.inf, -np.inf], np.nan).dropna(subset=["tokens", "y"])
    return frame.assign(y=smoothed(frame["y"].to_numpy(), smoothing))


def curves(configurations: Sequence[Configuration], read: Callable[[Run], pd.DataFrame]) -> pd.DataFrame:
    """The lines to draw, long-form: tokens, seconds, y, name (of a configuration), series (the name, or "16 others"),
    run ("" for the mean over seeds, the name for one of the others).

    A mean is over the tokens at which all runs of the configuration have a value. A single run is its own mean.
    """
    frames = []
    for configuration in configurations:
        runs = [frame.assign(run=str(i)) for i, run in enumerate(configuration.runs) if len(frame := read(run))]
        if runs:
            by_tokens = pd.concat(runs).groupby("tokens", as_index=False)
            mean = by_tokens[["seconds", "y"]].mean()[by_tokens.size()["size"] == len(runs)].assign(run="")
            frames += [frame.assign(name=configuration.label) for frame in (*(runs if len(runs) > 1 else []), mean)]
    if not frames:
        return pd.DataFrame()
    lines = pd.concat(frames, ignore_index=True)
    names = lines["name"].unique()
    others = ~lines["name"].isin(names if len(names) <= MAX_COLORED + 1 else names[:MAX_COLORED])
    return lines.assign(
        series=lines["name"].mask(others, f"{len(names) - MAX_COLORED} others"),
        run=lines["run"].mask(others, lines["name"]),
    )[~others | (lines["run"] == "")]


def _curves_chart(
    name: str, metric: Metric, frame: pd.DataFrame, times: bool, target: float | None = None
) -> Chart | None:
    """Panels over tokens, over the last third of them if all runs get there, and over training time."""
    if frame.empty:
        return None
    names = [str(series) for series in frame["series"].unique()]
    over_tokens = frame.assign(x=frame["tokens"])
    late = over_tokens[over_tokens["x"] >= LATE * over_tokens["x"].max()]
    tokens, y = Axis("tokens", numbers="short"), Axis(metric.axis, domain=_domain(frame))
    panels = [_panel(over_tokens, tokens, y, names)]
    if late["name"].nunique() == frame["name"].nunique():
        panels.append(_panel(late, replace(tokens, title="tokens, last third"), Axis(""), names))
    slowest = frame["seconds"].max()
    if times and slowest > 0:
        unit, seconds = ("hours", 3600) if slowest >= 7200 else ("minutes", 60) if slowest >= 120 else ("seconds", 1)
        over_time = frame.assign(x=frame["seconds"] / seconds).dropna(subset=["x"])
        panels.append(_panel(over_time, Axis(f"training time ({unit})"), replace(y, title=""), names))
    last = frame[frame["run"] == ""].groupby("series")["y"].last()
    ends = [f"{fixed(value, 3)} ({series})" for series, value in last.sort_values().items()]
    alt = f"{metric.name.capitalize()} over tokens"
    if len(ends) > 1:
        alt += f", {frame['name'].nunique()} lines: ends between {ends[0]} and {ends[-1]}"
    elif ends:
        alt += f": ends at {ends[0]}"
    if target is not None:
        panels = [panel + rules([(target, "")], Axis(""), "y") for panel in panels]
    return Chart(name, f"{alt}.", reduce(or_, panels), names)


def _panel(frame: pd.DataFrame, x: Axis, y: Axis, names: Sequence[str]) -> Any:
    frame = pd.concat([thinned(line, MAX_POINTS) for _, line in frame.groupby(["name", "run"], sort=False)])
    frame = frame[["x", "y", "series", "run", "name"]]
    runs, means = frame[frame["run"] != ""], frame[frame["run"] == ""]
    single = means.groupby("name").filter(lambda line: len(line) == 1)
    named = frame[frame["run"].isin(["", *frame["name"]])]
    layers = [lines(runs, x, y, names, style="faint")] if len(runs) else []
    layers += [lines(means, x, y, names)] if len(means) else []
    layers += [points(single, x, y, names)] if len(single) else []
    layers += [hover(named, x, y, names, ("run", x.title, y.title))] if len(named) else []
    return reduce(add, layers)


def _domain(frame: pd.DataFrame) -> tuple[float, float] | None:
    """Limits without the first fall of the loss, which is the same for all and would take most of the height."""
    values = [line.to_numpy() for _, line in frame.groupby(["series", "run"])["y"]]
    late = np.concatenate([line[max(1, len(line) // 10) :] if len(line) > 2 else line for line in values])
    low, high = float(late.min()), float(late.max())
    top, bottom = high + 0.1 * (high - low), float(frame["y"].min())
    cut = low < high and top < low + 0.7 * (frame["y"].max() - low)
    return (bottom - 0.03 * (top - bottom), top) if cut else None


def _compute_chart(configurations: Sequence[Configuration], metric: Metric, scaling: ScalingFit | None) -> Chart | None:
    """Each run as a point, and the lowest loss by the fit; None if all runs took the same compute."""
    if not compute_differs(configurations):
        return None
    runs = [run for configuration in configurations for run in configuration.runs]
    frame = pd.DataFrame({"x": [float(run.summary.flops) for run in runs], "y": [metric.of(run) for run in runs]})
    sizes = pd.Series([count(run.summary.parameters.total) for run in runs])
    frame = frame.assign(series="runs", label=sizes.where(~sizes.duplicated(), ""))  # one label for all seeds
    x, y = Axis("training compute (FLOPs)", log=True, numbers="power"), Axis(metric.axis, log=True)
    names, layers = ["runs"], []
    if scaling:
        names.append("compute-optimal by the fit")
        flops = np.geomspace(frame["x"].min(), frame["x"].max(), 50)
        best = [float(scaling.law.loss(*scaling.law.optimum(value / scaling.flops_per_product))) for value in flops]
        layers.append(lines(pd.DataFrame({"x": flops, "y": best, "series": names[1]}), x, y, names, "dashed"))
    layers += [points(frame, x, y, names), hover(frame, x, y, names, ("", x.title, y.title))]
    least, most = (frame.iloc[index] for index in (frame["x"].argmin(), frame["x"].argmax()))
    alt = f"{metric.name.capitalize()} over training compute of {len(runs)} runs, both axes logarithmic: "
    alt += f"from {fixed(least['y'], 3)} at {power_of_ten(least['x'])} FLOPs "
    alt += f"to {fixed(most['y'], 3)} at {power_of_ten(most['x'])}."
    return Chart("compute", alt, reduce(add, layers), names)


def _residuals_chart(scaling: ScalingFit) -> Chart:
    """How far the measured losses are from the fitted ones, over compute, by model size."""
    frame = pd.DataFrame(
        {
            "x": [point.flops for point in scaling.points],
            "y": 100 * np.expm1(scaling.residuals),
            "series": [f"{count(point.parameters)} parameters" for point in scaling.points],
        }
    )
    names = list(frame["series"].unique())
    x = Axis("training compute (FLOPs)", log=True, numbers="power")
    y = Axis("measured loss above the fit (%)")
    layers = [
        lines(frame, x, y, names, dots=True),
        rules([(0.0, "")], y, "y"),
        hover(frame, x, y, names, ("", x.title, y.title)),
    ]
    worst = float(frame["y"].abs().max())
    alt = f"Measured loss against the fit, {len(frame)} points: at most {fixed(worst, 2)} % apart."
    return Chart("residuals", alt, reduce(add, layers), names)
