"""The experiments of an ablation: which of its configurations each one is, and what its steps are worth."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from pipeline.ablation import WITHOUT, Ablation
from pipeline.comparison.configurations import Configuration, Metric, configuration_keys, identifying_settings, label
from pipeline.comparison.experiments import Experiment
from pipeline.comparison.statistics import Difference, differences
from pipeline.log import UserError


@dataclass(frozen=True)
class Row:
    """A configuration of an ablation."""

    name: str
    settings: str
    """Of the step that is added or left out: `optimizer=muon, max_lr=0.006`. Empty for `full`."""
    configuration: Configuration | None
    """None if no run of it has finished."""
    difference: tuple[float, Difference | None] | None
    """From the step before, or from `full`; p is corrected. None if one of the two has no finished run."""
    total: tuple[float, Difference | None] | None = None
    """From the start."""


@dataclass(frozen=True)
class AblationTables:
    """What each step is worth, with the same other settings in all runs."""

    where: str
    """The other settings, as far as they differ from those of other tables."""
    steps: list[Row]
    """In the order of the file. Empty if there are only runs with a step left out."""
    left_out: list[Row]
    """`full` comes first. Empty if no run has a step left out."""

    @property
    def configurations(self) -> list[Configuration]:
        """Those that have runs, in the order of the tables."""
        return list(dict.fromkeys(row.configuration for row in (*self.steps, *self.left_out) if row.configuration))


def ablation_experiments(experiments: Sequence[Experiment], ablation: Ablation) -> list[Experiment]:
    """The experiments that belong to an ablation: those whose other settings another of its configurations has too.

    Raises UserError if there are none.
    """
    found: list[tuple[Experiment, str]] = []
    names: dict[str, set[str]] = {}
    for experiment in experiments:
        if name := _name(experiment, ablation):
            settings = identifying_settings(experiment)
            others = repr([(key, value) for key, value in settings if key not in ablation.keys])
            names.setdefault(others, set()).add(name)
            found.append((experiment, others))
    kept = [experiment for experiment, others in found if len(names[others]) > 1]
    if not kept:
        raise UserError(
            f"no experiments have the settings in {ablation.path}: run `python -m pipeline sweep --cumulative`"
        )
    return kept


def labelled(configurations: Sequence[Configuration], ablation: Ablation) -> list[Configuration]:
    """The configurations with their names in the ablation as labels: `rope`, or `rope, n_layer=6`."""
    return [
        replace(group, label=", ".join(filter(None, [_name(group.runs[0], ablation), where])))
        for group, where in _other_settings(configurations, ablation).items()
    ]


def ablation_tables(
    configurations: Sequence[Configuration], ablation: Ablation, metric: Metric
) -> list[AblationTables]:
    """Tables for each choice of the settings that the ablation does not set. `configurations`: of the ablation only."""
    others = _other_settings(configurations, ablation)
    return [
        _tables(where, [group for group in others if others[group] == where], ablation, metric)
        for where in dict.fromkeys(others.values())
    ]


def in_charts(tables: Sequence[AblationTables]) -> list[Configuration]:
    """The steps that have runs, those that matter most first: the start, then from the last step backwards."""
    rows = [row for table in tables for row in (table.steps[:1] + table.steps[:0:-1])]
    return [row.configuration for row in rows if row.configuration]


def _tables(where: str, groups: Sequence[Configuration], ablation: Ablation, metric: Metric) -> AblationTables:
    def find(settings: Mapping[str, Any]) -> Configuration | None:
        return next((group for group in groups if _matches(group.runs[0], settings, ablation.keys)), None)

    def compare(
        pairs: Iterable[tuple[Configuration | None, Configuration | None]],
    ) -> list[tuple[float, Difference | None] | None]:
        pairs = list(pairs)
        tested = iter(differences([(group, base) for group, base in pairs if group and base], metric))
        return [next(tested) if group and base else None for group, base in pairs]

    steps = {name: find(settings) for name, settings in ablation.cumulative().items()}
    left_out = {name: find(settings) for name, settings in ablation.leave_one_out().items()}
    start, *_, full = steps.values()
    from_before = compare((group, before) for before, group in pairwise([None, *steps.values()]))
    from_start = compare((group, None if group is start else start) for group in steps.values())
    from_full = compare((group, None if group is full else full) for group in left_out.values())
    texts = {name: label(settings, list(settings)) for name, settings in ablation.steps.items()}
    step_rows = [
        Row(name, texts[name], group, difference, total)
        for (name, group), difference, total in zip(steps.items(), from_before, from_start, strict=True)
    ]
    left_out_rows = [
        Row(name, texts.get(name.removeprefix(WITHOUT), ""), group, difference)
        for (name, group), difference in zip(left_out.items(), from_full, strict=True)
    ]
    # The last two steps are configurations of both tables.
    shows_left_out = any(group and group not in steps.values() for group in left_out.values())
    shows_steps = any(group and group not in left_out.values() for group in steps.values()) or not shows_left_out
    return AblationTables(where, step_rows if shows_steps else [], left_out_rows if shows_left_out else [])


def _other_settings(configurations: Sequence[Configuration], ablation: Ablation) -> dict[Configuration, str]:
    """The settings of each configuration in which the runs differ and that the ablation does not set."""
    keys = configuration_keys([run for group in configurations for run in group.runs])
    others = [key for key in keys if key not in ablation.keys]
    return {group: label(group.runs[0].params, others) for group in configurations}


def _name(experiment: Experiment, ablation: Ablation) -> str | None:
    """The name of the experiment's configuration in the ablation."""
    every = {**ablation.cumulative(), **ablation.leave_one_out()}
    return next((name for name, settings in every.items() if _matches(experiment, settings, ablation.keys)), None)


def _matches(experiment: Experiment, settings: Mapping[str, Any], keys: Collection[str]) -> bool:
    """Whether the experiment has these settings, and the other keys are as in the commit that it starts from."""
    return all(
        experiment.params.get(key) == settings[key] if key in settings else key not in experiment.changed
        for key in keys
    )
