"""The tables of a comparison: one row for each run, and one for each configuration; the commands that give a row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.reporting import markdown as md
from pipeline.reporting.comparison.cautions import incomparable
from pipeline.reporting.comparison.experiments import Experiment
from pipeline.reporting.comparison.groups import BITS, LOSS, Configuration, Measure, differing_keys, label
from pipeline.reporting.comparison.statistics import Mean
from pipeline.reporting.lock import ABSENT
from pipeline.reporting.numbers import DASH, count, duration, fixed, missing, percent, power_of_ten
from pipeline.reporting.origin import override, tracked

ACCURACY = "accuracy.acc_norm"

Value = Callable[[Experiment], float | None]
Format = Callable[[float | None], str]


@dataclass(frozen=True)
class Column:
    """A number of each run; `best`: the lowest (-1), the highest (1), none (0)."""

    heading: str
    value: Value
    shown: Format
    best: int
    key: str = ""
    """Of a metric."""
    is_time: bool = False


COLUMNS = (
    Column("Loss", lambda one: one.measured(LOSS.key), lambda value: fixed(value, 4), -1, LOSS.key),
    Column("Bits/byte", lambda one: one.measured(BITS.key), lambda value: fixed(value, 4), -1, BITS.key),
    Column("{accuracy}", lambda one: one.measured(ACCURACY), lambda value: percent(value, 2), 1, ACCURACY),
    Column("Parameters", lambda one: one.train.parameters.total, count, 0),
    Column("FLOPs", lambda one: one.train.flops, power_of_ten, 0),
    Column("Time", lambda one: one.train.train_time_s, duration, -1, is_time=True),
    Column("Tokens/s", lambda one: one.train.tokens_per_sec, lambda value: fixed(value, 0), 1, is_time=True),
)


def runs_table(rows: Sequence[Experiment], kept: bool, times: bool) -> str:
    """One row for each run: what differs, and the numbers that matter, the best in bold.

    `kept`: no ids that mean something on this machine alone. `times`: with what says how fast the runs were.
    """
    keys = differing_keys(rows)
    names = {"HellaSwag" if one.metrics.accuracy.is_hellaswag else "Next lines" for one in rows if one.metrics.accuracy}
    never_best = incomparable(rows) | ({ACCURACY} if len(names) > 1 else set())
    header, columns = ["Run", *(md.code(key) for key in keys)], []
    for column in COLUMNS:
        values = [column.value(one) if one.state == "done" else None for one in rows]
        if all(missing(found) for found in values) or (column.is_time and not times):
            continue
        if column.best == 0 and len(set(values) - {None}) < 2:
            continue  # the same in every row: says nothing of a difference
        if column.heading == "Tokens/s" and len({one.train.tokens for one in rows if one.state == "done"}) == 1:
            continue  # the time says it
        columns.append(_emboldened(values, column.shown, 0 if column.key in never_best else column.best))
        header.append(column.heading.format(accuracy=" or ".join(sorted(names))))
    if any(_tracked(one, kept) != DASH for one in rows):
        columns.append([_tracked(one, kept) for one in rows])
        header.append("W&B")
    body = [
        [_name(one), *(md.setting(one.params.get(key, ABSENT)) for key in keys), *(column[place] for column in columns)]
        for place, one in enumerate(rows)
    ]
    note = "\n\nBest in bold; accuracy is `acc_norm`." if names else "\n\nBest in bold."
    return md.table(header, body, numbers_from=1 + len(keys)) + note


def configurations_table(groups: Sequence[Configuration], measure: Measure) -> str:
    """Mean and standard error over the seeds."""
    metrics = ((LOSS.key, "Loss"), (BITS.key, "Bits/byte"), (ACCURACY, "`acc_norm`"))
    measured = [(key, name) for key, name in metrics if any(group.mean(key) for group in groups)]
    rows = []
    for group in groups:
        all_of_them, lost = len(group.seeds), len(group.without_result(measure.key))
        row = [md.code(group.label), f"{all_of_them - lost} of {all_of_them}" if lost else str(all_of_them)]
        row += [with_error(group.mean(key), lambda value: fixed(value, 4)) for key, _ in measured if key != ACCURACY]
        row += [with_error(group.mean(key), lambda value: percent(value, 2)) for key, _ in measured if key == ACCURACY]
        rows.append(row)
    return md.table(["Configuration", "Seeds", *(name for _, name in measured)], rows)


def with_error(mean: Mean | None, shown: Format) -> str:
    """A mean, with its standard error where there is one."""
    if mean is None:
        return DASH
    return shown(mean.value) + ("" if mean.error is None else f" ± {shown(mean.error)}")


def commands(rows: Sequence[Experiment], kept: bool) -> str:
    """What brings each finished run into the workspace; on a `kept` page, what runs it again, in any clone."""
    done = [one for one in rows if one.state == "done"]
    if not done:
        return "No run has finished."
    written = [(_again if kept else _taken)(one) for one in done]
    keys, width = differing_keys(rows), max(map(len, written))
    words = ["as committed" if one.committed else one.name if kept else label(one.params, keys) for one in done]
    lines = [f"{command:<{width}}  # {said}".rstrip(" #") for command, said in zip(written, words, strict=True)]
    if not kept:
        return (
            md.fence("\n".join(lines), "sh")
            + "\n\nThen `dvc repro` has nothing left to do: the run is in the workspace."
        )
    bases = list(dict.fromkeys(one.base for one in done))
    blocks = [
        [f"git checkout {base[:10]}", *(line for line, one in zip(lines, done, strict=True) if one.base == base)]
        for base in bases
    ]
    return md.fence("\n\n".join("\n".join(block) for block in blocks), "sh")


def _taken(one: Experiment) -> str:
    return f"git checkout {one.rev[:10]}" if one.committed else f"dvc exp apply {one.name}"


def _again(one: Experiment) -> str:
    """`dvc exp run` with what the run changes; what that grammar cannot say stands there as a comment."""
    if one.committed:
        return "dvc repro"
    deciding = {key: value for key, value in one.changed.items() if not key.startswith(("report.", "tracking."))}
    said = {key: override(key, value) for key, value in deciding.items()}
    by_hand = [f"{key}: {md.said(deciding[key])}" for key, found in said.items() if found is None]
    command = " ".join(["dvc exp run", *(f"-S {found}" for found in said.values() if found is not None)])
    return command + (f"  # with {', '.join(by_hand)} in params.yaml" if by_hand else "")


def _tracked(one: Experiment, kept: bool) -> str:
    """The W&B run: a link where it is online; else its id, which is of use where the files of the run are."""
    run = one.train.wandb
    if one.state != "done":
        return DASH
    return tracked(run) if run.url else md.code(run.id) if run.id and not kept else DASH


def _emboldened(values: Sequence[float | None], shown: Format, better: int) -> list[str]:
    words = [shown(value).replace(" ", "\u00a0") for value in values]  # a number is not broken over two lines
    known = [value for value in values if value is not None and not missing(value)]
    if better == 0 or len(set(known)) < 2:
        return words
    best = words[values.index(min(known) if better < 0 else max(known))]
    return [f"**{word}**" if word == best else word for word in words]


def _name(one: Experiment) -> str:
    name = md.code(one.name)
    if one.committed:
        return f"{name} (committed)"
    return name if one.state == "done" else f"{name} ({one.state})"
