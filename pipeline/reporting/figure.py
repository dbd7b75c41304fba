"""What a figure shows, as values: axes, series, reference lines. Drawn as SVG by `svg`, interactively by `interactive`.

Keeping the two apart means that the picture on GitHub and the one that answers to the mouse are the same figure, and
that what a figure holds can be tested without looking at pixels.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Style = Literal["line", "faint", "dashes", "points", "joined points", "spikes"]


@dataclass(frozen=True)
class Axis:
    """One axis: its label with the unit; a logarithmic scale; limits; categories in place of numbers."""

    label: str
    log: bool = False
    low: float | None = None
    high: float | None = None
    categories: tuple[str, ...] = ()  # the names at 0, 1, 2 ...


@dataclass(frozen=True)
class Series:
    """Values to draw. A NaN in `y` is a gap in a line."""

    name: str  # in the legend and under the mouse; "" keeps it out of the legend
    x: Floats  # (n,)
    y: Floats  # (n,)
    style: Style = "line"
    colour: int = 0  # a slot of the palette
    error: Floats | None = None  # (n,) one standard error, drawn to both sides
    error_along: Literal["x", "y"] = "y"
    labels: tuple[str, ...] = ()  # written beside each point


@dataclass(frozen=True)
class Rule:
    """A reference line across the panel, at one value of one axis, with a few words on it.

    `between` cuts it to a part of the other axis, from and to in that axis's values.
    """

    label: str
    at: float
    axis: Literal["x", "y"] = "y"
    between: tuple[float, float] | None = None


@dataclass(frozen=True)
class Panel:
    """One pair of axes with what is drawn in it."""

    x: Axis
    y: Axis
    series: tuple[Series, ...]
    rules: tuple[Rule, ...] = ()
    title: str = ""


@dataclass(frozen=True)
class Figure:
    """One picture: panels side by side. `name` is its file's; `alt` says in words what it shows."""

    name: str
    alt: str
    panels: tuple[Panel, ...]
    height: float = 3.4  # inches; every figure is 9 wide


@dataclass(frozen=True)
class Palette:
    """The colours of a scheme, GitHub's own, so that a figure sits in its page."""

    name: Literal["light", "dark"]
    background: str
    text: str
    muted: str
    grid: str
    slots: tuple[str, ...]


LIGHT = Palette(
    "light",
    background="#ffffff",
    text="#1f2328",
    muted="#656d76",
    grid="#d8dee4",
    slots=("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#1b7c83", "#9a6700", "#57606a"),
)
DARK = Palette(
    "dark",
    background="#0d1117",
    text="#e6edf3",
    muted="#8d96a0",
    grid="#30363d",
    slots=("#58a6ff", "#ffa657", "#3fb950", "#bc8cff", "#f778ba", "#39c5cf", "#d29922", "#8b949e"),
)
PALETTES = (LIGHT, DARK)


def floats(values: object) -> Floats:
    """Any sequence of numbers as a float64 array; None becomes NaN."""
    return np.asarray(values, dtype=np.float64)


def scale_of(largest: float) -> tuple[float, str]:
    """The factor and the word that make numbers up to `largest` short: 3e6 gives (1e6, "millions")."""
    for factor, word in ((1e12, "trillions"), (1e9, "billions"), (1e6, "millions"), (1e3, "thousands")):
        if largest >= factor:
            return factor, word
    return 1.0, ""


def axis_of(label: str, largest: float) -> tuple[Axis, float]:
    """An axis whose numbers are short, and what to divide by: "tokens" up to 3e6 is "tokens (millions)", 1e6."""
    factor, word = scale_of(largest)
    return Axis(f"{label} ({word})" if word else label), factor
