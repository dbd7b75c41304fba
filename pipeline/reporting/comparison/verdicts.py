"""Whether the configurations differ by more than their noise, in sentences that say no more than the runs show."""

from collections.abc import Sequence

from pipeline.reporting import markdown as md
from pipeline.reporting.comparison.groups import Configuration, Measure
from pipeline.reporting.comparison.statistics import SURE, Difference, Mean, difference, holm, paired_difference
from pipeline.reporting.numbers import fixed, significant

FEWEST_PAIRS = 3
"""Two pairs leave one degree of freedom, with which hardly any difference is told from noise."""

ONCE = (
    "Each configuration was run with one seed, so nothing tells a difference from the noise between seeds. "
    "To know, repeat them with more: `dvc exp run --queue -S 'train.seed=1,2,3'` with their settings."
)


def verdicts(configurations: Sequence[Configuration], measure: Measure) -> list[str]:
    """Paragraphs: a line for each configuration held against the reference, and what they rest on.

    The reference is the committed run's configuration where it has several seeds, else the best one.
    """
    means = [(one, found) for one in configurations if (found := one.mean(measure.key)) is not None]
    if len(means) < 2:
        return []
    if all(found.n == 1 for _, found in means):
        return [ONCE]
    reference, base = _reference(means)
    others = [(one, found, apart(one, reference, measure)) for one, found in means if one is not reference]
    tested = [found for _, _, found in others if found is not None]
    corrected = iter(holm([found.p for found in tested]))
    told = []
    for one, found, test in others:
        way = "below" if found.value < base.value else "above" if found.value > base.value else "level with"
        line = f"- {md.code(one.label)} is {way} {md.code(reference.label)} in {measure.name} by "
        line += fixed(abs(found.value - base.value), 4)
        seeds = min(found.n, base.n)
        told.append(line + (_untested(found) if test is None else _tested(test, next(corrected), seeds)))
    return ["\n".join(told), *([_basis(tested, reference)] if tested else [])]


def apart(one: Configuration, other: Configuration, measure: Measure) -> Difference | None:
    """one - other: by pairs where both have the same seeds, three or more; else by Welch's test. None: untestable.

    A seed brings the same order of the data to every configuration, so much of its luck is common to them.
    """
    own, others = one.by_seed(measure.key), other.by_seed(measure.key)
    if own.keys() == others.keys() and len(own) >= FEWEST_PAIRS:
        return paired_difference(list(own.values()), [others[seed] for seed in own])
    first, second = one.mean(measure.key), other.mean(measure.key)
    return difference(first, second) if first and second else None


def weight(p: float, seeds: int) -> str:
    """What a corrected p says."""
    return "**larger than its noise**" if p < SURE else f"cannot be told from noise with {seeds} seeds"


def p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {significant(p, 2)}"


def correction(tests: int) -> str:
    return f", corrected for {tests} comparisons (Holm)" if tests > 1 else ""


def _reference(means: Sequence[tuple[Configuration, Mean]]) -> tuple[Configuration, Mean]:
    repeated = [(one, found) for one, found in means if found.n > 1]
    committed = [pair for pair in repeated if pair[0].committed]
    return committed[0] if committed else min(repeated, key=lambda pair: pair[1].value)


def _tested(test: Difference, p: float, seeds: int) -> str:
    how = "paired by seed" if test.paired else "Welch"
    numbers = f"t = {fixed(abs(test.t), 1)}, {fixed(test.freedom, 0 if test.paired else 1)} degrees of freedom"
    return f" ± {fixed(test.error, 4)}: {weight(p, seeds)} ({how}: {numbers}, {p_value(p)})."


def _untested(found: Mean) -> str:
    if found.n == 1:
        return ", but has one result: this cannot be held against its noise."
    return ": every seed gave the same difference, so nothing tells of the noise."


def _basis(tests: Sequence[Difference], reference: Configuration) -> str:
    names = {True: "a t-test of the differences at each seed (paired by seed)", False: "Welch's t-test between seeds"}
    used = " or ".join(names[paired] for paired in sorted({test.paired for test in tests}, reverse=True))
    chosen = "" if reference.committed else " The reference is the best of these, so its lead is a little flattered."
    return (
        f"By {used}{correction(len(tests))}; ± is one standard error. A difference counts as larger than its noise "
        f"where p is below {SURE:g}. It holds for this data, this size and this length of training.{chosen}"
    )
