"""Tokens and training time that configurations need to reach the final validation loss of a reference."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from markupsafe import Markup

from pipeline import markdown as md
from pipeline.comparison.configurations import Configuration, Mean, Metric, mean
from pipeline.comparison.experiments import Run
from pipeline.comparison.figures import curve
from pipeline.formatting import count, fixed, format_duration


@dataclass(frozen=True)
class Cost:
    """What a configuration needs to reach the loss: means over seeds, without value unless all seeds reach it."""

    configuration: Configuration
    seeds: int
    """Those that the reference has too."""
    reached: int
    """How many of them reach the loss."""
    tokens: Mean
    tokens_ratio: Mean
    """Mean of the ratios to the reference's run with the same seed."""
    seconds: Mean
    seconds_ratio: Mean


@dataclass(frozen=True)
class TargetLoss:
    """The loss, and what it costs each configuration."""

    reference: Configuration
    loss: Mean
    """Over the reference's seeds."""
    costs: list[Cost]
    """In the order of the configurations, the reference included."""

    def table(self, timed: bool) -> Markup:
        """A row for each configuration: its seeds, the tokens that it needs, and with `timed` the training time."""

        def with_error(mean: Mean, text: Callable[[float], str]) -> str:
            return f"{text(mean.value)} ± {text(mean.error)}" if mean.n > 1 else text(mean.value)

        def row(cost: Cost) -> list[str]:
            seeds = str(cost.seeds) if cost.reached == cost.seeds else f"{cost.reached} of {cost.seeds}"
            cells = [with_error(cost.tokens, count), with_error(cost.tokens_ratio, lambda ratio: fixed(ratio, 3))]
            if timed:
                cells += [with_error(cost.seconds, format_duration)]
                cells += [with_error(cost.seconds_ratio, lambda ratio: fixed(ratio, 3))]
            return [md.code(cost.configuration.label), seeds, *cells]

        header = ["Configuration", "Seeds", "Tokens", "Ratio", *(["Time", "Ratio"] if timed else [])]
        return md.table(header, [row(cost) for cost in self.costs], range(1, len(header)))


def target_loss(
    configurations: Sequence[Configuration], reference: Configuration | None, metric: Metric
) -> TargetLoss | None:
    """What each configuration needs to reach the last value of the reference's validation curve.

    A run is compared with the reference's run of the same seed, whose noise is then in both. `reference`: by default
    the committed configuration. None if there is no reference, if it has no validation curve or is alone, or if the
    curves cover different parts of the validation split.
    """
    reference = reference or next((group for group in configurations if group.committed), None)
    parts = {validated_tokens(run) for configuration in configurations for run in configuration.runs}
    if reference is None or len(configurations) < 2 or len(parts) > 1:
        return None
    base = _by_seed(reference, metric.column)
    if not base:
        return None
    targets = {seed: float(line["y"].iloc[-1]) for seed, line in base.items()}
    needed = {seed: first_reached(line, targets[seed]) for seed, line in base.items()}
    costs = []
    for configuration in configurations:
        lines = {seed: line for seed, line in _by_seed(configuration, metric.column).items() if seed in targets}
        points = {seed: point for seed, line in lines.items() if (point := first_reached(line, targets[seed]))}
        pairs = [(points[seed], needed[seed]) for seed in points] if len(points) == len(lines) else []
        means = [
            mean(values)
            for axis in (0, 1)
            for values in ([a[axis] for a, _ in pairs], [a[axis] / b[axis] for a, b in pairs if b and b[axis]])
        ]
        costs.append(Cost(configuration, len(lines), len(points), *means))
    return TargetLoss(reference, mean(list(targets.values())), costs)


def validated_tokens(run: Run) -> int:
    """How many tokens of the validation split the run's validation curve covers."""
    whole = run.summary.data["val"].tokens - 1  # nothing predicts the first
    return min(run.params.get("train.eval_tokens") or whole, whole)


def _by_seed(configuration: Configuration, column: str) -> dict[str, pd.DataFrame]:
    """Seed to validation curve, without empty ones. A seed that was run several times counts once."""
    lines: dict[str, pd.DataFrame] = {}
    for run in configuration.runs:
        if len(line := curve(run, column)):
            lines.setdefault(run.seed, line)
    return lines


def first_reached(line: pd.DataFrame, loss: float) -> tuple[float, float] | None:
    """(tokens, seconds) at which a curve (tokens, seconds, y) first reaches a loss; None if it never does.

    Linear between evaluations. Loss curves are convex, so this overestimates both a little.
    """
    tokens, y = line["tokens"].to_numpy(), line["y"].to_numpy()
    seconds = np.where(tokens == 0, 0.0, line["seconds"].to_numpy())  # before the first step nothing was timed
    if not (y <= loss).any():
        return None
    end = int(np.argmax(y <= loss))
    ends = [end, max(end - 1, 0)]
    return float(np.interp(loss, y[ends], tokens[ends])), float(np.interp(loss, y[ends], seconds[ends]))
