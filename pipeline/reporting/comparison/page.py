"""The comparison as markdown: what differs, what came of it, and whether it means anything."""

import math
from collections.abc import Callable, Mapping, Sequence

from pipeline.reporting import markdown as md
from pipeline.reporting.comparison.experiments import Experiment
from pipeline.reporting.comparison.figures import MOST_CONFIGURATIONS, compute_points, fitted
from pipeline.reporting.comparison.groups import (
    BITS,
    LOSS,
    Configuration,
    Measure,
    configurations,
    differing_keys,
    label,
    measure_of,
    text_differs,
    tokens_differ,
)
from pipeline.reporting.comparison.samples import same_prompts, same_text
from pipeline.reporting.comparison.statistics import Mean
from pipeline.reporting.comparison.verdicts import verdicts
from pipeline.reporting.lock import ABSENT
from pipeline.reporting.numbers import DASH, count, duration, fixed, missing, percent, power_of_ten, significant
from pipeline.reporting.origin import tracked

NONE = """\
No experiment has been run since the last commit, so there is nothing to compare. Queue some that differ in one thing,
and run them:

```sh
dvc exp run --queue -S 'model.position=learned,rope' -S 'train.seed=1,2,3'
dvc queue start
python -m pipeline.reporting.compare
```

Experiments of earlier commits: `python -m pipeline.reporting.compare --all-commits`."""

COLUMNS: tuple[tuple[str, Callable[[Experiment], float | None], Callable[[float | None], str], int], ...] = (
    ("Loss", lambda one: one.measured("val.loss"), lambda value: fixed(value, 4), -1),
    ("Bits/byte", lambda one: one.measured("val.bpb"), lambda value: fixed(value, 4), -1),
    ("{accuracy}", lambda one: one.measured("accuracy.acc_norm"), lambda value: percent(value, 2), 1),
    ("Parameters", lambda one: one.train.parameters.total, count, 0),
    ("FLOPs", lambda one: one.train.flops, power_of_ten, 0),
    ("Time", lambda one: one.train.train_time_s, duration, -1),
    ("Tokens/s", lambda one: one.train.tokens_per_sec, lambda value: fixed(value, 0), 1),
)
"""Heading, value, its format, and which is best: the lowest (-1), the highest (1), none (0)."""


def ranked(experiments: Sequence[Experiment], measure: Measure) -> list[Experiment]:
    """The best first; those without a result last, in the order of their coming."""
    values = {id(one): one.measured(measure.key) for one in experiments}
    return sorted(experiments, key=lambda one: math.inf if (value := values[id(one)]) is None else value)


def page(experiments: Sequence[Experiment], title: str, shown: Mapping[str, str]) -> str:
    """The whole comparison, GitHub-flavoured markdown that ends with a newline.

    `shown`: how each figure, by its name, stands in the page.
    """
    heading = f"# {md.text(title)}"
    if not any(not one.committed for one in experiments):
        return f"{heading}\n\n{NONE}\n"
    measure = measure_of(experiments)
    keys = differing_keys(experiments)
    rows = ranked(experiments, measure)
    groups = ranked_configurations(experiments, measure)
    parts = [heading, _opening(rows, groups, measure), *_cautions(experiments), "## Runs", _table(rows, keys)]
    if any(len({repr(one.seed) for one in group.experiments}) > 1 for group in groups):
        parts += ["## Configurations", _configurations(groups)]
    if told := verdicts(groups, measure):
        parts += ["## Is the difference larger than the noise?", *told]
    parts += _pictures(shown, experiments, groups, measure)
    parts += [*same_prompts(rows), *same_text(rows)]
    parts += ["## Take one of them", _commands(rows, keys)]
    return "\n\n".join(part for part in parts if part) + "\n"


def ranked_configurations(experiments: Sequence[Experiment], measure: Measure) -> list[Configuration]:
    """The configurations of the finished experiments, the best mean first."""
    done = [one for one in experiments if one.state == "done"]
    groups = configurations(done, differing_keys(done))
    means = {group.label: group.mean(measure.key) for group in groups}
    return sorted(groups, key=lambda group: found.value if (found := means[group.label]) else math.inf)


def _opening(rows: Sequence[Experiment], groups: Sequence[Configuration], measure: Measure) -> str:
    done = [one for one in rows if one.state == "done"]
    states = [
        f"{len(found)} {state}"
        for state in ("failed", "unreadable", "running", "queued")
        if (found := _in(rows, state))
    ]
    text = f"{len(done)} finished run{'s' * (len(done) != 1)}"
    if len(groups) > 1:
        text += f" of {len(groups)} configurations"
    text += f" ({md.listing(states)} besides)." if states else "."
    if len(done) == 1:
        return f"{text} There is nothing to hold it against yet."
    if not done or (best := done[0].measured(measure.key)) is None:
        return f"{text} None has a {measure.name}."
    text += f" The lowest {measure.name} of one run is {fixed(best, 4)}, of {md.code(done[0].name)}."
    repeated = [(group, mean) for group in groups if (mean := group.mean(measure.key)) and mean.n > 1]
    if repeated and len(groups) > 1:
        group, mean = repeated[0]
        over = f"{fixed(mean.value, 4)} ± {fixed(mean.error, 4)}, of {md.code(group.label)}"
        text += f" The lowest mean over seeds is {over}."
    return text


def _cautions(experiments: Sequence[Experiment]) -> list[str]:
    """What the reader must know before comparing numbers."""
    done = [one for one in experiments if one.state == "done"]
    told = []
    if tokens_differ(done):
        told.append(
            "The runs cut text into different tokens, so a loss per token means something else in each: "
            "compare bits per byte."
        )
    if keys := text_differs(done):
        told.append(
            f"The runs differ in {md.listing([md.code(key) for key in keys])}: they may have been measured on "
            "different text, and then not even bits per byte compare."
        )
    if (bases := len({one.base for one in done})) > 1:
        told.append(f"The runs start from {bases} commits: the code may differ as well as the settings.")
    for one in experiments:
        if one.state == "failed":
            told.append(f"{md.code(one.name)} failed: `dvc queue logs {one.name}` says why, where it was queued.")
        if one.state == "unreadable":
            told.append(f"{md.code(one.name)} left a file that cannot be read, {md.text(one.problem)}.")
    return told


def _table(rows: Sequence[Experiment], keys: Sequence[str]) -> str:
    """One row for each run: what differs, and the numbers that matter, the best in bold."""
    names = {"HellaSwag" if one.metrics.accuracy.is_hellaswag else "Next lines" for one in rows if one.metrics.accuracy}
    mixed = tokens_differ(rows)
    header, columns = ["Run", *(md.code(key) for key in keys)], []
    for heading, value, shown, better in COLUMNS:
        values = [value(one) if one.state == "done" else None for one in rows]
        if all(missing(found) for found in values):
            continue
        if better == 0 and len(set(values) - {None}) < 2:
            continue  # the same in every row: says nothing of a difference
        if heading == "Tokens/s" and len({one.train.tokens for one in rows if one.state == "done"}) == 1:
            continue  # the time says it
        incomparable = (heading == "Loss" and mixed) or (heading == "{accuracy}" and len(names) > 1)
        columns.append(_emboldened(values, shown, 0 if incomparable else better))
        header.append(heading.format(accuracy=" or ".join(sorted(names))))
    if any(one.train.wandb.id for one in rows):
        columns.append([_tracked(one) for one in rows])
        header.append("W&B")
    body = [
        [_name(one), *(md.setting(one.params.get(key, ABSENT)) for key in keys), *(column[place] for column in columns)]
        for place, one in enumerate(rows)
    ]
    note = "\n\nBest in bold; accuracy is `acc_norm`." if names else "\n\nBest in bold."
    return md.table(header, body) + note


def _tracked(one: Experiment) -> str:
    """The W&B run: a link where it is online, else its id."""
    run = one.train.wandb
    if one.state != "done":
        return DASH
    return tracked(run) if run.url else md.code(run.id) if run.id else DASH


def _emboldened(values: Sequence[float | None], shown: Callable[[float | None], str], better: int) -> list[str]:
    words = [shown(value).replace(" ", "\u00a0") for value in values]  # a number is not broken over two lines
    known = [value for value in values if value is not None and not missing(value)]
    if better == 0 or len(set(known)) < 2:
        return words
    best = words[values.index(min(known) if better < 0 else max(known))]
    return [f"**{word}**" if word == best else word for word in words]


def _configurations(groups: Sequence[Configuration]) -> str:
    """Mean and standard error over the seeds."""
    metrics = ((LOSS.key, "Loss"), (BITS.key, "Bits/byte"), ("accuracy.acc_norm", "`acc_norm`"))
    measured = [(key, name) for key, name in metrics if any(group.mean(key) for group in groups)]
    rows = []
    for group in groups:
        row = [md.code(group.label), str(len({repr(one.seed) for one in group.experiments}))]
        row += [_mean(group.mean(key), as_percent=key.startswith("accuracy")) for key, _ in measured]
        rows.append(row)
    return md.table(["Configuration", "Seeds", *(name for _, name in measured)], rows)


def _mean(mean: Mean | None, as_percent: bool) -> str:
    if mean is None:
        return DASH
    shown = (lambda value: percent(value, 2)) if as_percent else (lambda value: fixed(value, 4))
    return shown(mean.value) + ("" if mean.error is None else f" ± {shown(mean.error)}")


def _pictures(
    shown: Mapping[str, str], experiments: Sequence[Experiment], groups: Sequence[Configuration], measure: Measure
) -> list[str]:
    parts = []
    if curves := [shown[name] for name in ("validation", "training") if name in shown]:
        parts += ["## Curves", *curves]
        if len(groups) > MOST_CONFIGURATIONS:
            parts.append(f"The {MOST_CONFIGURATIONS} best of {len(groups)} configurations are drawn.")
    if "compute" in shown:
        parts += ["## Loss against compute", shown["compute"], _law(experiments, measure)]
    return parts


def _law(experiments: Sequence[Experiment], measure: Measure) -> str:
    points = compute_points(experiments, measure)
    if (law := fitted(points)) is None:
        return "A power law is fitted from four model sizes on."
    low, high = min(flops for _, flops, _ in points), max(flops for _, flops, _ in points)
    return (
        f"Fitted to {len(points)} runs: {measure.name} = {significant(law.factor, 3)} · C^{fixed(law.exponent, 4)} "
        f"for C from {power_of_ten(low)} to {power_of_ten(high)} FLOPs (R² {fixed(law.r2, 3)} of the logarithms). "
        "It has no term for what no compute removes, so it describes this range and foretells nothing far beyond it."
    )


def _commands(rows: Sequence[Experiment], keys: Sequence[str]) -> str:
    lines = []
    width = max(len(_command(one)) for one in rows)
    for one in rows:
        if one.state == "done":
            words = "as committed" if one.committed else label(one.params, keys)
            lines.append(f"{_command(one):<{width}}  # {words}".rstrip(" #"))
    if not lines:
        return "No run has finished."
    return (
        md.fence("\n".join(lines), "sh") + "\n\nThen `dvc repro` has nothing left to do: the run is in the workspace."
    )


def _command(one: Experiment) -> str:
    return f"git checkout {one.rev[:10]}" if one.committed else f"dvc exp apply {one.name}"


def _name(one: Experiment) -> str:
    name = md.code(one.name)
    if one.committed:
        return f"{name} (committed)"
    return name if one.state == "done" else f"{name} ({one.state})"


def _in(rows: Sequence[Experiment], state: str) -> list[Experiment]:
    return [one for one in rows if one.state == state]
