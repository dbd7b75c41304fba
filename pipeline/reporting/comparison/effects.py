"""What each swept setting does by itself: its values held against each other where all other settings are the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.reporting import markdown as md
from pipeline.reporting.comparison.groups import Configuration, Measure, configuration_keys, label
from pipeline.reporting.comparison.statistics import Difference, holm, paired_difference
from pipeline.reporting.comparison.verdicts import FEWEST_PAIRS, apart, correction, p_value, weight
from pipeline.reporting.numbers import fixed

Cells = Mapping[str, Configuration]
"""The configurations with one value of a key, by the values of the other keys."""


@dataclass(frozen=True)
class Effect:
    """One value of a setting in place of another."""

    value: str
    instead_of: str
    where: str
    """The other settings."""
    test: Difference
    seeds: int


def effects(groups: Sequence[Configuration], measure: Measure) -> list[str]:
    """Paragraphs: a table of each key's values against the best configuration's; nothing for a single key.

    `groups`: the best first.
    """
    keys = configuration_keys([one for group in groups for one in group.experiments])
    if len(keys) < 2:
        return []
    found = [effect for key in keys for effect in _of_key(key, keys, groups, measure)]
    if not found:
        return []
    rows = [
        [
            effect.value,
            effect.instead_of,
            effect.where,
            f"{'−' if effect.test.value < 0 else '+'}{_size(effect.test)}",
            f"{weight(p, effect.seeds)}, {p_value(p)}",
        ]
        for effect, p in zip(found, holm([effect.test.p for effect in found]), strict=True)
    ]
    header = ["", "In place of", "Where", measure.name.capitalize(), "The difference is"]
    told = (
        "One setting changes and the others stay: each value in place of the one that the best configuration has. "
        "Tested as below, an average at each seed first"
        f"{correction(len(found))}; ± is one standard error."
    )
    return ["## What each setting does", md.table(header, rows, numbers_from=len(header)), told]


def _size(test: Difference) -> str:
    return f"{fixed(abs(test.value), 4)} ± {fixed(test.error, 4)}"


def _of_key(key: str, keys: Sequence[str], groups: Sequence[Configuration], measure: Measure) -> list[Effect]:
    """The effects of one key: on average over the other keys' settings, then at each of them."""
    others = [one for one in keys if one != key]
    cells: dict[str, dict[str, Configuration]] = {}
    for group in groups:
        params = group.experiments[0].params
        cells.setdefault(label(params, [key]), {})[label(params, others)] = group
    best, base = next(iter(cells.items()))  # the groups come with the best first
    return [
        effect for value, row in cells.items() if value != best for effect in _against(value, row, best, base, measure)
    ]


def _against(value: str, row: Cells, best: str, base: Cells, measure: Measure) -> list[Effect]:
    names = (md.code(value), md.code(best.partition("=")[2]))
    pairs = {where: (row[where], base[where]) for where in base if where in row}
    found = []
    if (test := _mean_difference(list(pairs.values()), measure)) is not None:
        found.append(Effect(*names, f"mean of {len(pairs)} settings", test, int(test.freedom) + 1))
    for where, (one, other) in pairs.items():
        if (test := apart(one, other, measure)) is not None:
            seeds = min(len(one.by_seed(measure.key)), len(other.by_seed(measure.key)))
            found.append(Effect(*names, md.code(where), test, seeds))
    return found


def _mean_difference(pairs: Sequence[tuple[Configuration, Configuration]], measure: Measure) -> Difference | None:
    """The difference averaged over several pairs of configurations, which must all have the same seeds."""
    values = [(one.by_seed(measure.key), other.by_seed(measure.key)) for one, other in pairs]
    seeds = {frozenset(by_seed) for pair in values for by_seed in pair}
    if len(pairs) < 2 or len(seeds) > 1 or len(values[0][0]) < FEWEST_PAIRS:
        return None
    in_order = list(values[0][0])
    means = [[sum(pair[side][seed] for pair in values) / len(values) for seed in in_order] for side in (0, 1)]
    return paired_difference(*means)
