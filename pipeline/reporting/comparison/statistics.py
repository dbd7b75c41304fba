"""Means, their errors, and whether a difference is larger than its noise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.reporting.figure import Floats

SURE = 0.05
"""A difference counts as larger than its noise where less than this share of noise alone would be as large."""


@dataclass(frozen=True)
class Mean:
    """The mean of `n` values, and its standard error: None of one value, which says nothing of its noise."""

    value: float
    error: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """A difference of means under a t-test: its standard error, t, degrees of freedom, two-sided p."""

    value: float
    error: float
    t: float
    freedom: float
    p: float
    paired: bool = False


@dataclass(frozen=True)
class PowerLaw:
    """y = factor x^exponent, fitted by least squares on the logarithms; r2 is of the logarithms too."""

    factor: float
    exponent: float
    r2: float

    def __call__(self, x: Floats) -> Floats:
        return self.factor * x**self.exponent


def mean(values: Sequence[float]) -> Mean:
    """The mean with the standard error that the values' own spread gives it."""
    n = len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else None
    return Mean(float(np.mean(values)), error, n)


def difference(a: Mean, b: Mean) -> Difference | None:
    """a - b under Welch's t-test (1947), which lets the two have different spreads.

    None where either is one value, or where neither has any spread: nothing tells of the noise then.
    """
    if a.error is None or b.error is None:
        return None
    variances = (a.error**2, b.error**2)
    error = math.sqrt(sum(variances))
    if _is_rounding(error, (a.value, b.value)):
        return None
    freedom = error**4 / (variances[0] ** 2 / (a.n - 1) + variances[1] ** 2 / (b.n - 1))
    t = (a.value - b.value) / error
    return Difference(a.value - b.value, error, t, freedom, two_sided_p(t, freedom))


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Difference | None:
    """a - b under the paired t-test (Student, 1908): what a pair has in common, as the order of the data, drops out.

    None for fewer than two pairs, and where all differ by the same: nothing tells of the noise then.
    """
    apart = mean([one - other for one, other in zip(a, b, strict=True)])
    if apart.error is None or _is_rounding(apart.error, (*a, *b)):
        return None
    t, freedom = apart.value / apart.error, apart.n - 1
    return Difference(apart.value, apart.error, t, freedom, two_sided_p(t, freedom), paired=True)


def _is_rounding(error: float, values: Sequence[float]) -> bool:
    """Whether a spread is no more than what float64 leaves of equal values."""
    return error <= 1e-12 * max(abs(value) for value in values)


def two_sided_p(t: float, freedom: float) -> float:
    """The share of Student's t distribution beyond -|t| and |t|.

    Integrated, by Simpson's rule, over the angle that makes the density smooth and the range finite:
    x = sqrt(freedom) tan(angle).
    """
    angle, step = np.linspace(0.0, math.atan(abs(t) / math.sqrt(freedom)), 4001, retstep=True)
    density = np.cos(angle) ** (freedom - 1)
    area = step / 3 * (density[0] + 4 * density[1::2].sum() + 2 * density[2:-1:2].sum() + density[-1])
    log_constant = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(math.pi)
    inside = float(area) * math.exp(log_constant)
    return min(1.0, max(0.0, 1.0 - 2.0 * inside))


def holm(ps: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm, 1979): the smallest times n, the next times n - 1, never falling."""
    corrected = [0.0] * len(ps)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda index: ps[index])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = largest
    return corrected


def power_law(x: Floats, y: Floats) -> PowerLaw:
    """The power law through (n,) positive points."""
    log_x, log_y = np.log(x), np.log(y)
    exponent, intercept = np.polyfit(log_x, log_y, 1)
    rest, all_of_it = np.sum((log_y - exponent * log_x - intercept) ** 2), np.sum((log_y - log_y.mean()) ** 2)
    return PowerLaw(float(np.exp(intercept)), float(exponent), 1.0 - float(rest / all_of_it) if all_of_it > 0 else 1.0)
