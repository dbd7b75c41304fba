"""The figures of a comparison: curves over tokens and over time, and what loss costs in compute."""

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.reporting import curves
from pipeline.reporting.comparison.experiments import Experiment
from pipeline.reporting.comparison.groups import LOSS, Configuration, Measure
from pipeline.reporting.comparison.statistics import PowerLaw, power_law
from pipeline.reporting.figure import Axis, Figure, Floats, Panel, Series, axis_of, floats
from pipeline.reporting.numbers import count, missing

MOST_CONFIGURATIONS = 8
"""Colours that can be told apart."""

SIZES_FOR_A_FIT = 4

MOST_POINTS = 400

DIFFERENT = 1.1
"""Between two amounts of compute that are worth a picture: another norm or position changes it by less than 0.1 %."""

Line = tuple[Floats, Floats]


def comparison_figures(
    configurations: Sequence[Configuration], measure: Measure, smoothing: float, everything: Sequence[Experiment]
) -> list[Figure]:
    """Every figure there are numbers for; `configurations` best first, of which the first eight are drawn."""
    shown = configurations[:MOST_CONFIGURATIONS]
    column = "val/loss" if measure is LOSS else "val/bpb"
    found = [_curves("validation", f"{measure.name}", shown, lambda one, along: _column(one, column, along))]
    if measure is LOSS:  # training has no bits per byte, and losses of different tokens cannot be laid over each other
        found.append(_curves("training", "training loss", shown, lambda one, along: _smoothed(one, along, smoothing)))
    found.append(compute_figure(everything, measure))
    return [figure for figure in found if figure is not None]


def compute_points(experiments: Sequence[Experiment], measure: Measure) -> list[tuple[Experiment, float, float]]:
    """(experiment, FLOPs, measure) of those that have both; none unless the compute of some differs by a tenth."""
    points = [
        (one, float(one.train.flops), value)
        for one in experiments
        if one.train.flops and not missing(one.train.flops) and (value := one.measured(measure.key)) is not None
    ]
    amounts = [flops for _, flops, _ in points]
    return points if amounts and max(amounts) >= DIFFERENT * min(amounts) else []


def fitted(points: Sequence[tuple[Experiment, float, float]]) -> PowerLaw | None:
    """The power law of the measure in compute; None for fewer than four model sizes or amounts of compute."""
    sizes = {one.train.parameters.total for one, _, _ in points}
    if min(len(sizes), len({flops for _, flops, _ in points})) < SIZES_FOR_A_FIT:
        return None
    return power_law(floats([flops for _, flops, _ in points]), floats([value for _, _, value in points]))


def compute_figure(experiments: Sequence[Experiment], measure: Measure) -> Figure | None:
    """Each run as a point, with the fitted law where there are sizes enough."""
    points = compute_points(experiments, measure)
    if not points:
        return None
    flops, values = floats([flops for _, flops, _ in points]), floats([value for _, _, value in points])
    names = tuple(_size(one) for one, _, _ in points)
    first = [name if name not in names[:place] else "" for place, name in enumerate(names)]  # seeds share one label
    series = [Series("runs", flops, values, "points", 0, labels=tuple(first))]
    if law := fitted(points):
        x = np.geomspace(flops.min(), flops.max(), 50)
        series.append(Series("fitted power law", x, law(x), "dashes", 1))
    axis = Axis("training compute (FLOPs)", log=True)
    alt = f"{measure.name} over training compute of {len(points)} runs, both axes logarithmic."
    return Figure("compute", alt, (Panel(axis, Axis(measure.name, log=True), tuple(series)),), height=3.6)


def _curves(
    name: str,
    label: str,
    configurations: Sequence[Configuration],
    line: Callable[[Experiment, str], Line],
) -> Figure | None:
    """One panel over tokens and one over time; a colour for each configuration, a line for each of its runs."""
    drawn = [
        (slot, configuration.label if place == 0 else "", line(one, "tokens"), line(one, "time_s"))
        for slot, configuration in enumerate(configurations)
        for place, one in enumerate(configuration.experiments)
    ]
    drawn = [found for found in drawn if len(found[2][0])]
    if not drawn:
        return None
    tokens, factor = axis_of("tokens", max(float(np.max(x)) for _, _, (x, _), _ in drawn))
    longest = max(float(np.max(x, initial=0.0)) for _, _, _, (x, _) in drawn)
    unit, seconds = ("hours", 3600.0) if longest >= 7200 else ("minutes", 60.0) if longest >= 120 else ("seconds", 1.0)
    by_tokens = tuple(Series(name, x / factor, y, "line", slot) for slot, name, (x, y), _ in drawn)
    by_time = tuple(Series("", x / seconds, y, "line", slot) for slot, _, _, (x, y) in drawn if len(x))
    bottom = min(float(np.nanmin(y)) for _, _, (_, y), _ in drawn)
    top = _top([y for _, _, (_, y), _ in drawn])
    axis = Axis(label, low=None if top is None else bottom - 0.03 * (top - bottom), high=top)
    panels = [Panel(tokens, axis, by_tokens)]
    if by_time:
        panels.append(Panel(Axis(f"training time ({unit})"), Axis("", low=axis.low, high=axis.high), by_time))
    return Figure(name, f"{label} of {len(configurations)} configurations.", tuple(panels), height=3.6)


def _top(lines: Sequence[Floats]) -> float | None:
    """Where the axis ends so that the first fall, which is the same for all, does not take most of the height."""
    late = np.concatenate([y[max(1, len(y) // 10) :] if len(y) > 2 else y for y in lines])
    highest = max(float(np.nanmax(y)) for y in lines)
    low, high = float(np.nanmin(late)), float(np.nanmax(late))
    top = high + 0.1 * (high - low)
    return top if low < high and top < low + 0.7 * (highest - low) else None


def _column(experiment: Experiment, name: str, along: str) -> Line:
    """The points at which the column was measured; along time, those whose time is known."""
    if experiment.curves is None:
        return floats([]), floats([])
    return curves.column(experiment.curves, name, along)


def _smoothed(experiment: Experiment, along: str, smoothing: float) -> Line:
    x, loss = _column(experiment, "train/loss", along)
    return curves.thinned(x, curves.smoothed(loss, smoothing), MOST_POINTS)


def _size(experiment: Experiment) -> str:
    return count(experiment.train.parameters.total)
