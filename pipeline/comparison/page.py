"""The page of `python -m pipeline compare`: computes the values that compare.md.jinja shows, and writes it."""

import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipeline import markdown as md
from pipeline.ablation import Ablation
from pipeline.charts.pages import html_figure, html_page, picture, write_svgs
from pipeline.comparison.ablation import AblationTables, ablation_tables, in_charts, labelled
from pipeline.comparison.configurations import (
    BITS_PER_BYTE,
    LOSS,
    Configuration,
    Metric,
    accuracies,
    configuration_keys,
    configurations,
    containing,
    incomparable_metrics,
    label,
    measurement_differences,
    metric_of,
)
from pipeline.comparison.experiments import Experiment, Run, differing_keys, runs_of
from pipeline.comparison.figures import MAX_COLORED, comparison_charts
from pipeline.comparison.samples import MAX_CHARACTERS, MAX_LINES, MAX_SAMPLES, by_configuration, samples, surprisal
from pipeline.comparison.scaling import EXTRAPOLATION, MIN_R2, MIN_SIZES, RESAMPLES, scaling_fit
from pipeline.comparison.statistics import ALPHA, effects, significance
from pipeline.comparison.target_loss import TargetLoss, target_loss, validated_tokens
from pipeline.dvc_lock import ABSENT, short_keys
from pipeline.files import write_text
from pipeline.formatting import DASH, count, fixed, format_duration, hydra_value, missing, percent, power_of_ten

TEMPLATE = Path(__file__).with_name("compare.md.jinja")
PAGE, FIGURES, SCALING = "compare.md", "compare", "scaling.json"


def write_comparison(
    folder: Path,
    experiments: Sequence[Experiment],
    title: str,
    smoothing: float,
    html: bool = False,
    kept: bool = False,
    times: bool = True,
    reference: str | None = None,
    ablation: Ablation | None = None,
) -> Path:
    """Writes compare.md, its SVGs, scaling.json if there is a fit, and with `html` compare.html.

    Returns the path of compare.md.
    `kept`: the page is for other clones, which do not have these experiments. `times`: with training times.
    `reference`: a run, with whose configuration the others are compared. `ablation`: of which all experiments are.
    Raises UserError if there is no run with the name of the reference.
    """
    context = page_context(experiments, kept, times, reference, ablation)
    target = context["targets"][0].loss.value if len(context["targets"]) == 1 else None
    scaling = context["scaling"]
    charts = comparison_charts(context["in_charts"], context["metric"], smoothing, times, target, scaling)
    write_svgs(folder / FIGURES, charts)
    if scaling:
        scaling.write(folder / SCALING)
    path = folder / PAGE
    if html:
        body = render_page(title, context, {chart.name: html_figure(chart) for chart in charts})
        write_text(path.with_suffix(".html"), html_page(title, body, charts))
    write_text(path, render_page(title, context, {chart.name: picture(chart, FIGURES) for chart in charts}))
    return path


def render_page(title: str, context: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """The page as GitHub markdown. `figures`: name of a chart to the markdown that shows it."""
    return md.render(TEMPLATE, {**context, "title": title, "figures": figures})


def page_context(
    experiments: Sequence[Experiment],
    kept: bool = False,
    times: bool = True,
    reference: str | None = None,
    ablation: Ablation | None = None,
) -> dict[str, Any]:
    """All values that the template shows, except the title and the figures."""
    metric = metric_of(experiments)
    runs = sorted(runs_of(experiments), key=metric.of)
    unfinished = [experiment for experiment in experiments if not isinstance(experiment, Run)]
    groups = configurations(experiments, metric)
    if ablation:
        groups = labelled(groups, ablation)
    keys, settings = differing_keys([*runs, *unfinished]), settings_table(groups)
    if settings:
        shown = ablation.keys if ablation else configuration_keys(runs)
        keys = [key for key in keys if key not in shown]
    ablations = ablation_tables(groups, ablation, metric) if ablation else []
    repeated = [group for group in groups if group.mean(metric).n > 1]
    hardware = [run.summary.hardware for run in runs]
    named = containing(groups, reference) if reference is not None else None
    timed = times and len({it.describe() for it in hardware}) == 1
    return {
        "metric": metric,
        "metrics": [LOSS, BITS_PER_BYTE, *accuracies(runs)],
        "only_committed": all(experiment.committed for experiment in experiments),
        "runs": runs,
        "unfinished": unfinished,
        "states": Counter(experiment.state for experiment in unfinished),
        "configurations": groups,
        "best": repeated[0] if len(repeated) > 1 else None,
        "repeated": any(len(group.seeds) > 1 for group in groups),
        "by_configuration": by_configuration(groups),
        "commits": list(dict.fromkeys(run.base[:10] for run in runs)),
        "days": sorted({run.date[:10] for run in runs if run.date}),
        "machines": list(dict.fromkeys(f"{it.describe()}, {it.dtype}, torch {it.torch}" for it in hardware)),
        "differences": measurement_differences(experiments),
        "runs_table": runs_table([*runs, *unfinished], keys, kept, times),
        "settings_table": settings,
        "ablations": ablations,
        "in_charts": in_charts(ablations) or groups,
        "effects": [] if ablation else effects(groups, metric),
        "significance": None if ablation else significance(groups, metric, named),
        "named_reference": named,
        "targets": [] if metric in incomparable_metrics(runs) else _targets(groups, named, ablations, metric),
        "timed": timed,
        "eval_tokens": _eval_tokens(runs),
        "scaling": scaling_fit(groups),
        "samples": samples(runs, groups),
        "surprisal": surprisal(runs, groups),
        "commands": commands(runs, keys, kept),
        "kept": kept,
        "limits": {
            "alpha": ALPHA,
            "colored": MAX_COLORED,
            "sizes": MIN_SIZES,
            "r2": MIN_R2,
            "extrapolation": EXTRAPOLATION,
            "resamples": RESAMPLES,
            "samples": MAX_SAMPLES,
            "characters": MAX_CHARACTERS,
            "lines": MAX_LINES,
        },
    }


def _targets(
    groups: Sequence[Configuration], named: Configuration | None, ablations: Sequence[AblationTables], metric: Metric
) -> list[TargetLoss]:
    """What it costs to reach the loss of the named or the committed configuration, or of the start of each ablation."""
    compared = [(groups, named)]
    if ablations and not named:
        compared = [(table.configurations, table.steps[0].configuration) for table in ablations if table.steps]
        compared = [(members, start) for members, start in compared if start]
    return [target for members, base in compared if (target := target_loss(members, base, metric))]


def _eval_tokens(runs: Sequence[Run]) -> list[int]:
    """How many tokens the validation curves cover, for runs where that is not the whole split."""
    return sorted({part for run in runs if (part := validated_tokens(run)) < run.summary.data["val"].tokens - 1})


@dataclass(frozen=True)
class Table:
    """A table and which of its columns are numbers."""

    header: list[str]
    rows: list[list[str]]
    numbers: range


@dataclass(frozen=True)
class Column:
    """A value of each run."""

    heading: str
    value: Callable[[Run], float]
    text: Callable[[float], str]
    best: Callable[[Sequence[float]], float] | None = None
    """min or max; None if no value is better."""

    def cells(self, runs: Sequence[Run]) -> list[str]:
        """The values as text, the best in bold."""
        values = [self.value(run) for run in runs]
        texts = [self.text(value).replace(" ", "\u00a0") for value in values]  # no line break inside a number
        finite = [value for value in values if not missing(value)]
        if self.best is None or len(set(finite)) < 2:
            return texts
        best = texts[values.index(self.best(finite))]
        return [Markup(f"**{md.text(text)}**") if text == best else text for text in texts]


def runs_table(experiments: Sequence[Experiment], settings: Sequence[str], kept: bool, times: bool) -> Table:
    """A row for each experiment, of which the runs come first: metrics, cost, size, then the settings."""
    runs, keys = runs_of(experiments), short_keys(settings)
    columns, dashes = _columns(runs, times), [DASH] * (len(experiments) - len(runs))
    header = ["Run", *(column.heading for column in columns), *map(md.code, keys.values())]
    cells: list[list[str]] = [[_name(experiment, runs) for experiment in experiments]]
    cells += [[*column.cells(runs), *dashes] for column in columns]
    cells += [[md.setting(experiment.params.get(key, ABSENT)) for experiment in experiments] for key in keys]
    if any(run.base_md5 for run in runs):
        header.append("Initial weights")
        cells.append([*(_initial_weights(run, runs) for run in runs), *dashes])
    if any(wandb := [_wandb(run, kept) for run in runs]):
        header.append(Markup("W&B"))
        cells.append([*(cell or DASH for cell in wandb), *dashes])
    return Table(header, [list(row) for row in zip(*cells, strict=True)], range(1, 1 + len(columns)))


def _initial_weights(run: Run, runs: Sequence[Run]) -> str:
    """The run whose model this one started from, if it is compared too; else DVC's hash of the weights."""
    if not run.base_md5:
        return "random"
    base = next((other.name for other in runs if other.model_md5 == run.base_md5), None)
    return Markup(f"model of {md.code(base)}" if base else f"MD5 {md.code(run.base_md5)}")


def settings_table(groups: Sequence[Configuration]) -> Table | None:
    """The settings of each configuration that differ; None if the labels consist of them."""
    keys = configuration_keys([run for group in groups for run in group.runs])
    if not keys or all(group.label == label(group.runs[0].params, keys) for group in groups):
        return None
    rows = [
        [md.code(group.label), *(md.setting(group.runs[0].params.get(key, ABSENT)) for key in keys)] for group in groups
    ]
    return Table(["Configuration", *map(md.code, short_keys(keys).values())], [list(row) for row in rows], range(0))


def _name(experiment: Experiment, runs: Sequence[Run]) -> Markup:
    """The name with what sets the experiment apart: committed, unfinished, or trained once together with a run before.

    Runs share their training if they differ in settings that it does not depend on, such as those of sampling.
    """
    note = Markup("committed" if experiment.committed else experiment.state)
    if isinstance(experiment, Run) and not experiment.committed:
        before = runs[: runs.index(experiment)]
        same = (run for run in before if run.metric_params == experiment.metric_params)
        shared = next((run.name for run in same if run.summary == experiment.summary), None)
        if shared is None:
            return md.code(experiment.name)
        note = Markup(f"same model as {md.code(shared)}")
    return Markup(f"{md.code(experiment.name)} ({note})")


def _columns(runs: Sequence[Run], times: bool) -> list[Column]:
    incomparable = incomparable_metrics(runs)
    if not runs:
        return []
    ranking, other = (
        Column(metric.heading, metric.of, metric.text, None if metric in incomparable else min)
        for metric in ((LOSS, BITS_PER_BYTE) if metric_of(runs) is LOSS else (BITS_PER_BYTE, LOSS))
    )
    columns = [ranking, Column("Tokens", lambda run: run.summary.tokens, count)]
    if any(run.summary.data["train"].counted is not None for run in runs):
        columns.append(Column("Loss tokens", _counted_share, lambda share: percent(share, 0)))
    if times:
        same_work = len({(run.summary.tokens, run.summary.hardware.describe()) for run in runs}) == 1
        seconds = Column("Time", lambda run: run.summary.train_time_s, format_duration, min if same_work else None)
        columns.append(seconds)
    columns.append(other)
    for metric in accuracies(runs):
        columns.append(Column(metric.heading, metric.of, metric.text, None if metric in incomparable else max))
    if len({run.summary.parameters.total for run in runs}) > 1:
        columns.append(Column("Parameters", lambda run: run.summary.parameters.total, count))
    if len({run.summary.flops for run in runs}) > 1:
        columns.append(Column("FLOPs", lambda run: run.summary.flops, power_of_ten))
    if times and len({run.summary.tokens for run in runs}) > 1:  # else the time says it
        columns.append(Column("Tokens/s", lambda run: run.summary.tokens_per_sec, lambda v: fixed(v, 0)))
    return columns


def _counted_share(run: Run) -> float:
    """The share of the training tokens that count in the loss."""
    size = run.summary.data["train"]
    return 1.0 if size.counted is None else size.counted / size.tokens


def _wandb(run: Run, kept: bool) -> str:
    """A link to the W&B run, or its id, which is of use only on the machine that holds its files."""
    wandb = run.summary.wandb
    if wandb.url:
        return md.link(wandb.name, wandb.url)
    return "" if kept or wandb.mode == "disabled" else md.code(wandb.id)


def commands(runs: Sequence[Run], keys: Sequence[str], kept: bool) -> str:
    """Shell commands that restore each run from this clone; on a `kept` page, that repeat it in any clone.

    `keys`: the settings that name a run.
    """
    lines = []
    for run in runs:
        if kept:
            changed = {k: v for k, v in run.changed.items() if not k.startswith(("report.", "tracking."))}
            flags = [f"-S {shlex.quote(f'{key}={hydra_value(value)}')}" for key, value in changed.items()]
            command, comment = " ".join(["dvc exp run", *flags]), run.name
        else:
            name = run.rev[:10] if run.name.endswith(f"@{run.base[:7]}") else run.name
            command, comment = f"dvc exp apply {shlex.quote(name)}", label(run.params, keys)
        if run.committed:
            command, comment = "dvc repro" if kept else f"git checkout {run.rev[:10]}", "as committed"
        comment = " ".join(comment.split())
        # zsh without interactive_comments runs a pasted comment as arguments.
        lines.append((command, comment if re.fullmatch(r"[\w .,:=+/–-]*", comment) else shlex.quote(comment)))
    width = max((len(command) for command, _ in lines), default=0)
    texts = [f"{command:<{width}}  # {comment}".rstrip(" #") for command, comment in lines]
    if not kept:
        return "\n".join(texts)
    blocks: dict[str, list[str]] = {}
    for run, text in zip(runs, texts, strict=True):
        blocks.setdefault(run.base, [f"git checkout {run.base[:10]}"]).append(text)
    return "\n\n".join("\n".join(block) for block in blocks.values())
