"""Training curves: read from curves.csv, smoothed, thinned, and the steps where something happened.

All functions take and give values; NaN (not measured, or not a number) is a gap that never spreads.
"""

from itertools import accumulate
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd

from pipeline.reporting.figure import Floats, floats

MOST_POINTS = 1500
"""More than a curve can show on the width of a page: a thinned one looks the same and stays small in bytes."""

SPIKE_FACTOR = 8.0
SPIKE_WINDOW = 50


def read_curves(path: Path) -> pd.DataFrame:
    """curves.csv as a frame in the order of steps; `event` is text, everything else float64, absent cells NaN.

    Raises FileNotFoundError, or ValueError that names the file where it is no table of curves.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} not found: run the train stage (dvc repro train)")
    with path.open(encoding="utf-8") as file:
        return parse_curves(file, str(path))


def parse_curves(source: IO[str], name: str) -> pd.DataFrame:
    """As read_curves, from an open file; `name` is what errors call it."""
    try:
        frame = pd.read_csv(source, dtype={"event": str})
    except (ValueError, pd.errors.ParserError) as error:  # pandas' EmptyDataError is a ValueError
        raise ValueError(f"{name} is no table of curves: {error}") from None
    if absent := {"step", "tokens"} - set(frame.columns):
        raise ValueError(f"{name} lacks the column(s) {', '.join(sorted(absent))}")
    frame["event"] = frame["event"].fillna("") if "event" in frame else ""
    for column in frame.columns.drop("event"):
        frame[column] = pd.to_numeric(frame[column], errors="coerce").astype("float64")
    return frame.sort_values("step", kind="stable").reset_index(drop=True)


def column(frame: pd.DataFrame, name: str, along: str = "tokens") -> tuple[Floats, Floats]:
    """The rows where `name` was measured: (`along`, `name`), both (n,) and finite; n is 0 without such a column."""
    if name not in frame or along not in frame:
        return floats([]), floats([])
    x, y = floats(frame[along]), floats(frame[name])
    measured = np.isfinite(x) & np.isfinite(y)
    return x[measured], y[measured]


def smoothed(values: Floats, weight: float) -> Floats:
    """Each of (n,) values averaged with those around it, of which one at a distance of d weighs weight^2d.

    Past and future count alike, so that the curve neither lags behind what falls nor runs ahead of it. All weights
    together are about 1 / (1 - weight), as in an exponential moving average of that weight.
    A value that is not finite gives NaN there and does not count elsewhere.
    """
    known = np.isfinite(values)
    weights = _decaying_sums(known.astype(np.float64), weight**2)
    sums = _decaying_sums(np.where(known, values, 0.0), weight**2)
    return np.divide(sums, weights, out=np.full(len(values), np.nan), where=known)


def _decaying_sums(values: Floats, decay: float) -> Floats:
    """At each of (n,) places the sum of all values, each times decay^distance: what is before, and what is behind."""
    before, behind = (
        floats(list(accumulate(side, lambda total, value: decay * total + value))) for side in (values, values[::-1])
    )
    return before + behind[::-1] - values


def thinned(x: Floats, y: Floats, most: int = MOST_POINTS) -> tuple[Floats, Floats]:
    """At most `most` of the (n,) points, peaks and troughs kept: the extremes of each of most/2 equal spans."""
    if len(x) <= most:
        return x, y
    kept: list[int] = []
    for span in np.array_split(np.arange(len(x)), most // 2):
        values = y[span]
        if np.isfinite(values).any():
            kept += sorted({int(span[np.nanargmin(values)]), int(span[np.nanargmax(values)])})
    return x[kept], y[kept]


def events(frame: pd.DataFrame, word: str) -> list[int]:
    """Indices of the rows whose `event` holds `word`."""
    return [row for row, event in enumerate(frame["event"]) if word in event]


def spikes(frame: pd.DataFrame) -> list[int]:
    """Rows at which the loss jumped: those that training marked, else those far above the steps before them.

    Far is more than 8 median absolute deviations above the median of the 50 steps before, a rule that noise of a usual
    kind does not meet. Of neighbouring rows only the highest counts.
    """
    marked = events(frame, "spike")
    loss = floats(frame["train/loss"]) if "train/loss" in frame else floats([])
    if marked or len(loss) <= SPIKE_WINDOW:
        return marked
    past = pd.Series(loss).shift(1).rolling(SPIKE_WINDOW, min_periods=SPIKE_WINDOW)
    middle = past.median().to_numpy()
    spread = past.apply(lambda window: float(np.nanmedian(np.abs(window - np.nanmedian(window)))), raw=True).to_numpy()
    high = np.flatnonzero(loss > middle + SPIKE_FACTOR * np.maximum(spread, 1e-3 * np.abs(middle)))
    found: list[int] = []
    for row in high:
        if found and row - found[-1] < SPIKE_WINDOW // 2:
            found[-1] = int(row) if loss[row] > loss[found[-1]] else found[-1]
        else:
            found.append(int(row))
    return found
