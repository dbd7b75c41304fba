"""Loss against compute: the runs as points, and the power law through the best configuration at each model size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.reporting.comparison.experiments import Experiment
from pipeline.reporting.comparison.groups import Configuration, Measure
from pipeline.reporting.comparison.statistics import PowerLaw, power_law
from pipeline.reporting.figure import Axis, Figure, Floats, Panel, Series, floats
from pipeline.reporting.numbers import count, fixed, missing, power_of_ten, significant

SIZES_FOR_A_FIT = 4

DIFFERENT = 1.1
"""Between two sizes, or amounts of compute, that are not the same: another norm, position or activation changes them
by less."""

LEAST_R2 = 0.9
"""Of a law that describes its points: a tenth of their spread is left to other causes."""


@dataclass(frozen=True)
class Fit:
    """A power law in compute, and the amounts that it was fitted to, of which each is the best of one size."""

    law: PowerLaw
    flops: Floats

    @property
    def describes(self) -> bool:
        """Whether the loss falls with compute as the law has it."""
        return self.law.exponent < 0 and self.law.r2 >= LEAST_R2


def compute_points(groups: Sequence[Configuration], measure: Measure) -> list[tuple[Experiment, float, float]]:
    """(experiment, FLOPs, measure) of those that have both; none unless the compute of some differs by a tenth."""
    points = [point for group in groups for point in _points(group, measure)]
    amounts = [flops for _, flops, _ in points]
    return points if amounts and max(amounts) >= DIFFERENT * min(amounts) else []


def fitted(groups: Sequence[Configuration], measure: Measure) -> Fit | None:
    """The power law through the best configuration at each size; None for fewer than four sizes or amounts."""
    found = []
    for group in groups:
        points = [point for point in _points(group, measure) if point[0].train.parameters.total]
        if points and (mean := group.mean(measure.key)) is not None:
            size = float(points[0][0].train.parameters.total or 0)
            found.append((size, float(np.mean([flops for _, flops, _ in points])), mean.value))
    sizes: list[list[tuple[float, float, float]]] = []
    for one in sorted(found):
        if sizes and one[0] < DIFFERENT * sizes[-1][0][0]:
            sizes[-1].append(one)
        else:
            sizes.append([one])
    best = [min(same, key=lambda one: one[2]) for same in sizes]
    if min(len(best), len({flops for _, flops, _ in best})) < SIZES_FOR_A_FIT:
        return None
    flops = floats([amount for _, amount, _ in best])
    return Fit(power_law(flops, floats([value for _, _, value in best])), flops)


def compute_figure(groups: Sequence[Configuration], measure: Measure) -> Figure | None:
    """Each run as a point, with the fitted law where one describes them."""
    points = compute_points(groups, measure)
    if not points:
        return None
    flops, values = floats([flops for _, flops, _ in points]), floats([value for _, _, value in points])
    names = [count(one.train.parameters.total) for one, _, _ in points]
    first = [name if name not in names[:place] else "" for place, name in enumerate(names)]  # seeds share one label
    series = [Series("runs", flops, values, "points", 0, labels=tuple(first))]
    if (fit := fitted(groups, measure)) and fit.describes:
        x = np.geomspace(fit.flops.min(), fit.flops.max(), 50)
        series.append(Series("fitted power law", x, fit.law(x), "dashes", 1))
    axis = Axis("training compute (FLOPs)", log=True)
    alt = f"{measure.name.capitalize()} over training compute of {len(points)} runs, both axes logarithmic: "
    alt += f"from {fixed(float(values[np.argmin(flops)]), 3)} at {power_of_ten(float(flops.min()))} FLOPs "
    alt += f"to {fixed(float(values[np.argmax(flops)]), 3)} at {power_of_ten(float(flops.max()))}."
    return Figure("compute", alt, (Panel(axis, Axis(measure.axis, log=True), tuple(series)),), height=3.6)


def told(groups: Sequence[Configuration], measure: Measure) -> str:
    """What the figure's law says and does not say, or why there is none."""
    if (fit := fitted(groups, measure)) is None:
        return "A power law is fitted from four model sizes on; sizes closer than a tenth count as one."
    law, sizes = fit.law, len(fit.flops)
    if not fit.describes:
        return (
            f"No power law describes these runs: one through the best configuration at each of {sizes} sizes has the "
            f"exponent {fixed(law.exponent, 4)} and R² {fixed(law.r2, 3)} of the logarithms."
        )
    low, high = power_of_ten(float(fit.flops.min())), power_of_ten(float(fit.flops.max()))
    return (
        f"Fitted to the best configuration at each of {sizes} sizes: {measure.name} = {significant(law.factor, 3)} · "
        f"C^{fixed(law.exponent, 4)} for C from {low} to {high} FLOPs (R² {fixed(law.r2, 3)} of the logarithms). "
        "It has no term for what no compute removes, so it describes this range and foretells nothing far beyond it."
    )


def _points(group: Configuration, measure: Measure) -> list[tuple[Experiment, float, float]]:
    return [
        (one, float(one.train.flops), value)
        for one in group.experiments
        if one.train.flops and not missing(one.train.flops) and (value := one.measured(measure.key)) is not None
    ]
