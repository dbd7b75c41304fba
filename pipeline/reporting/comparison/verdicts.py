"""Whether the configurations differ by more than their noise, in sentences that say no more than the runs show."""

from collections.abc import Sequence

from pipeline.reporting import markdown as md
from pipeline.reporting.comparison.groups import Configuration, Measure
from pipeline.reporting.comparison.statistics import SURE, Difference, Mean, difference, holm
from pipeline.reporting.numbers import fixed, significant

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
    others = [(one, found, difference(found, base)) for one, found in means if one is not reference]
    tested = [found.p for _, _, found in others if found is not None]
    corrected = iter(holm(tested))
    told = [
        "- " + _once(one, found, reference, base, measure)
        if apart is None
        else "- " + _verdict(one, reference, apart, next(corrected), measure)
        for one, found, apart in others
    ]
    return ["\n".join(told), *([_basis(len(tested))] if tested else [])]


def _reference(means: Sequence[tuple[Configuration, Mean]]) -> tuple[Configuration, Mean]:
    repeated = [(one, found) for one, found in means if found.n > 1]
    committed = [pair for pair in repeated if pair[0].committed]
    return committed[0] if committed else min(repeated, key=lambda pair: pair[1].value)


def _verdict(one: Configuration, reference: Configuration, apart: Difference, p: float, measure: Measure) -> str:
    names = f"{md.code(one.label)} is {{}} {md.code(reference.label)} in {measure.name}"
    if apart.value == 0 and apart.error == 0:
        return names.format("equal to") + "."
    way = "below" if apart.value < 0 else "above"
    size = f"by {fixed(abs(apart.value), 4)} ± {fixed(apart.error, 4)}"
    weight = "**larger than its noise**" if p < SURE else "not larger than its noise"
    return f"{names.format(way)} {size}: {weight} ({_test(apart, p)})."


def _test(apart: Difference, p: float) -> str:
    if apart.error == 0:
        return "the seeds of each gave the same value"
    shown = "p < 0.001" if p < 0.001 else f"p = {significant(p, 2)}"
    return f"t = {fixed(apart.t, 1)}, {fixed(apart.freedom, 1)} degrees of freedom, {shown}"


def _once(one: Configuration, found: Mean, reference: Configuration, base: Mean, measure: Measure) -> str:
    way = "below" if found.value < base.value else "above"
    return (
        f"{md.code(one.label)} is {way} {md.code(reference.label)} in {measure.name} by "
        f"{fixed(abs(found.value - base.value), 4)}, but was run once: this cannot be held against its noise."
    )


def _basis(tests: int) -> str:
    many = f", corrected for {tests} comparisons (Holm)" if tests > 1 else ""
    return (
        f"Welch's t-test between seeds{many}; ± is one standard error. A difference counts as larger than its noise "
        f"where p is below {SURE:g}. It holds for this data, this size and this length of training."
    )
