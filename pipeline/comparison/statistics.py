"""Which differences between configurations are statistically significant.

By t-tests (scipy.stats), with p-values corrected for their number (Holm).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from pipeline.comparison.configurations import Configuration, Metric, configuration_keys, label

ALPHA = 0.05
"""A difference with a smaller corrected p is called statistically significant."""

MIN_PAIRS = 3
"""For a paired test: two pairs leave one degree of freedom, with which hardly any difference is significant."""


@dataclass(frozen=True)
class Difference:
    """A difference of two means under a two-sided t-test."""

    value: float
    error: float
    """Standard error."""
    t: float
    df: float
    p: float
    n: int
    """Seeds, of the one with fewer."""
    paired: bool

    @property
    def significant(self) -> bool:
        return self.p < ALPHA


def t_test(a: Mapping[str, float], b: Mapping[str, float]) -> Difference | None:
    """Tests mean(a) - mean(b), each seed to value. None if one is a single value, or if there is no variance.

    Paired (Student, 1908) if both have the same three or more seeds: a seed is a data order, so its runs have noise in
    common that cancels. Else Welch's test (1947), which allows different variances.
    """
    paired = a.keys() == b.keys() and len(a) >= MIN_PAIRS
    x, y = list(a.values()), [b[seed] for seed in (a if paired else b)]
    n = min(len(x), len(y))
    if n < 2:
        return None
    error = stats.sem(np.subtract(x, y)) if paired else np.hypot(stats.sem(x), stats.sem(y))
    if error <= 1e-12 * max(map(abs, x + y)):  # float64 gives equal values a variance of about this
        return None
    test = stats.ttest_rel(x, y) if paired else stats.ttest_ind(x, y, equal_var=False)
    value = float(np.mean(x) - np.mean(y))
    return Difference(value, float(error), float(test.statistic), float(test.df), float(test.pvalue), n, paired)


def holm(ps: Sequence[float]) -> list[float]:
    """Corrected p-values (Holm, 1979): the smallest times n, the next times n - 1 and so on, never falling."""
    corrected = [0.0] * len(ps)
    largest = 0.0
    for rank, index in enumerate(np.argsort(ps, kind="stable")):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = largest
    return corrected


@dataclass(frozen=True)
class Significance:
    """Every other configuration against a reference."""

    reference: Configuration
    rows: list[tuple[Configuration, float, Difference | None]]
    """Configuration, the difference of its mean, and the test if one is possible, with corrected p."""


def significance(
    configurations: Sequence[Configuration], metric: Metric, reference: Configuration | None = None
) -> Significance | None:
    """Tests against `reference`; if None, the committed configuration if it has several seeds, else the best that has.

    `configurations`: best first. None for fewer than two, or if none has several seeds.
    """
    repeated = [configuration for configuration in configurations if configuration.mean(metric).n > 1]
    if len(configurations) < 2 or not repeated:
        return None
    if reference is None:
        reference = next((configuration for configuration in repeated if configuration.committed), repeated[0])
    others = [configuration for configuration in configurations if configuration is not reference]
    tested = differences([(other, reference) for other in others], metric)
    return Significance(reference, [(other, *result) for other, result in zip(others, tested, strict=True)])


def differences(
    pairs: Sequence[tuple[Configuration, Configuration]], metric: Metric
) -> list[tuple[float, Difference | None]]:
    """For each pair the difference of its means, and the test if one is possible; p is corrected for their number."""
    tests = [t_test(one.by_seed(metric), other.by_seed(metric)) for one, other in pairs]
    corrected = iter(holm([test.p for test in tests if test]))
    return [
        (one.mean(metric).value - other.mean(metric).value, replace(test, p=next(corrected)) if test else None)
        for (one, other), test in zip(pairs, tests, strict=True)
    ]


@dataclass(frozen=True)
class Effect:
    """One value of a setting in place of another, with the other settings unchanged."""

    value: str
    """`position=alibi`."""
    baseline: str
    """`rope`."""
    where: str | None
    """The other settings; None for the mean over several combinations of them."""
    combinations: int
    test: Difference


def effects(configurations: Sequence[Configuration], metric: Metric) -> list[Effect]:
    """For each setting its values against that of the best configuration; none if only one setting differs.

    `configurations`: best first. p-values are corrected together.
    """
    keys = configuration_keys([run for configuration in configurations for run in configuration.runs])
    if len(keys) < 2:
        return []
    found = [effect for key in keys for effect in _effects_of(key, keys, configurations, metric)]
    corrected = holm([effect.test.p for effect in found])
    return [replace(effect, test=replace(effect.test, p=p)) for effect, p in zip(found, corrected, strict=True)]


def _effects_of(
    key: str, keys: Sequence[str], configurations: Sequence[Configuration], metric: Metric
) -> Iterator[Effect]:
    """For each value of the setting: the mean over the other settings' combinations, then each combination."""
    others = [other for other in keys if other != key]
    cells: dict[str, dict[str, dict[str, float]]] = {}  # value -> other settings -> seed -> metric
    for configuration in configurations:
        params = configuration.runs[0].params
        cells.setdefault(label(params, [key]), {})[label(params, others)] = configuration.by_seed(metric)
    (best, base), *rest = cells.items()
    baseline = best.partition("=")[2]
    for value, row in rest:
        pairs = {where: (row[where], base[where]) for where in base if where in row}
        seeds = list(next(iter(pairs.values()), [{}])[0])
        shared = all(by_seed.keys() == set(seeds) for pair in pairs.values() for by_seed in pair)
        if len(pairs) > 1 and shared and len(seeds) >= MIN_PAIRS:
            a, b = (
                {seed: sum(pair[i][seed] for pair in pairs.values()) / len(pairs) for seed in seeds} for i in (0, 1)
            )
            if test := t_test(a, b):
                yield Effect(value, baseline, None, len(pairs), test)
        for where, (a, b) in pairs.items():
            if test := t_test(a, b):
                yield Effect(value, baseline, where, 1, test)
