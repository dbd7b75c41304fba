"""The curves of a comparison: the mean of each configuration over its seeds, in front of the seeds themselves."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce

import numpy as np

from pipeline.reporting import curves
from pipeline.reporting.comparison.experiments import Experiment
from pipeline.reporting.comparison.groups import LOSS, Configuration, Measure
from pipeline.reporting.comparison.scaling import compute_figure
from pipeline.reporting.figure import Axis, Figure, Floats, Panel, Series, axis_of, floats
from pipeline.reporting.numbers import fixed

MOST_CONFIGURATIONS = 8
"""Colours that can be told apart."""

MOST_POINTS = 400

END = 2 / 3
"""Share of the run from which on it is drawn again, larger: the answer is at the end."""

Points = tuple[Floats, Floats, Floats]
"""(tokens, seconds, value), each (n,): where a curve was measured; NaN seconds where the time is not known."""


def comparison_figures(
    groups: Sequence[Configuration], measure: Measure, smoothing: float, times: bool = True
) -> list[Figure]:
    """Every figure there are numbers for; `groups` best first, of which the first eight have curves.

    Without `times`, nothing is drawn over time.
    """
    column = "val/loss" if measure is LOSS else "val/bpb"
    found = [_curves("validation", measure, groups, lambda one: _column(one, column), times)]
    if measure is LOSS:  # training has no bits per byte, and losses of different tokens cannot be laid over each other
        training = replace(LOSS, name="training loss")
        found.append(_curves("training", training, groups, lambda one: _smoothed(one, smoothing), times))
    found.append(compute_figure(groups, measure))
    return [figure for figure in found if figure is not None]


def _curves(
    name: str, measure: Measure, groups: Sequence[Configuration], read: Callable[[Experiment], Points], times: bool
) -> Figure | None:
    """Panels over tokens, over the last of them, and over time; a colour for each configuration."""
    lines = [line for slot, group in enumerate(groups[:MOST_CONFIGURATIONS]) for line in _lines(group, slot, read)]
    if not lines:
        return None
    over_tokens = [_drawn(line, 0) for line in lines]
    longest = max(float(line.x[-1]) for line in over_tokens)
    late = [_late(line, END * longest) for line in over_tokens]
    tokens, factor = axis_of("tokens", longest)
    top = _top([line.y for line in over_tokens])
    low = min(float(np.min(line.y)) for line in over_tokens)
    axis = Axis(measure.axis, low=None if top is None else low - 0.03 * (top - low), high=top)
    panels = [
        Panel(tokens, axis, _scaled(over_tokens, factor)),
        Panel(replace(tokens, label=f"{tokens.label}, the last third"), Axis(""), _scaled(late, factor)),
    ]
    over_time = [_drawn(line, 1) for line in lines]
    slowest = max(float(np.max(line.x, initial=0.0)) for line in over_time)
    if times and slowest:
        unit, seconds = ("hours", 3600) if slowest >= 7200 else ("minutes", 60) if slowest >= 120 else ("seconds", 1)
        panels.append(Panel(Axis(f"training time ({unit})"), replace(axis, label=""), _scaled(over_time, seconds)))
    return Figure(name, _alternative(measure, over_tokens), tuple(panels), height=3.6)


def _lines(group: Configuration, slot: int, read: Callable[[Experiment], Points]) -> list[tuple[Points, Series]]:
    """The points of each line of a configuration, with its look: a thin one for each run, behind it their mean."""
    runs = [points for points in map(read, group.experiments) if len(points[0])]
    if not runs:
        return []
    common = reduce(np.intersect1d, [tokens for tokens, _, _ in runs])
    kept = [[column[np.isin(points[0], common)] for column in points] for points in runs]
    tokens, seconds, values = (np.mean([points[side] for points in kept], axis=0) for side in range(3))
    nothing = floats([])
    front = ((tokens, seconds, values), Series(group.label, nothing, nothing, "line", slot))
    behind = [(points, Series("", nothing, nothing, "faint", slot)) for points in runs] if len(runs) > 1 else []
    return [*behind, front] if len(common) else behind


def _drawn(line: tuple[Points, Series], along: int) -> Series:
    """The line over tokens (0) or seconds (1)."""
    points, look = line
    known = np.isfinite(points[along])
    x, y = curves.thinned(points[along][known], points[2][known], MOST_POINTS)
    return replace(look, x=x, y=y)


def _scaled(lines: Sequence[Series], factor: float) -> tuple[Series, ...]:
    return tuple(replace(line, x=line.x / factor) for line in lines if len(line.x))


def _late(line: Series, start: float) -> Series:
    kept = line.x >= start
    return replace(line, x=line.x[kept], y=line.y[kept])


def _alternative(measure: Measure, lines: Sequence[Series]) -> str:
    """What the picture shows, in words: where the best and the worst configuration end."""
    ends = sorted((float(line.y[-1]), line.name) for line in lines if line.name)
    said = [f"{fixed(value, 3)} ({name})" for value, name in ends]
    name = measure.name.capitalize()
    if len(said) < 2:
        return f"{name} over tokens" + (f": ends at {said[0]}." if said else ".")
    return f"{name} over tokens, {len(said)} configurations: ends between {said[0]} and {said[-1]}."


def _top(lines: Sequence[Floats]) -> float | None:
    """Where the axis ends so that the first fall, which is the same for all, does not take most of the height."""
    late = np.concatenate([y[max(1, len(y) // 10) :] if len(y) > 2 else y for y in lines])
    highest = max(float(np.nanmax(y)) for y in lines)
    low, high = float(np.nanmin(late)), float(np.nanmax(late))
    top = high + 0.1 * (high - low)
    return top if low < high and top < low + 0.7 * (highest - low) else None


def _column(experiment: Experiment, name: str) -> Points:
    """The points at which the column was measured."""
    frame = experiment.curves
    if frame is None or name not in frame:
        return floats([]), floats([]), floats([])
    measured = np.isfinite(floats(frame[name])) & np.isfinite(floats(frame["tokens"]))
    seconds = frame["time_s"] if "time_s" in frame else np.full(len(frame), np.nan)
    tokens, time, values = (floats(column)[measured] for column in (frame["tokens"], seconds, frame[name]))
    return tokens, time, values


def _smoothed(experiment: Experiment, smoothing: float) -> Points:
    tokens, seconds, loss = _column(experiment, "train/loss")
    return tokens, seconds, curves.smoothed(loss, smoothing)
