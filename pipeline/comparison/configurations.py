"""Configurations: runs that differ in their seed only. And the metrics that are compared between them."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from pipeline import markdown as md
from pipeline.comparison.experiments import Experiment, Run, differing_keys, runs_of
from pipeline.dvc_lock import ABSENT, short_keys
from pipeline.formatting import fixed, percent
from pipeline.log import UserError

SEED = "train.seed"

MAX_LABEL_KEYS = 4
"""Settings in a label. If more differ, a configuration is labelled by the name that its runs share, if they do."""

ONLY = "the only configuration"
"""The label of a configuration that differs from no other."""


@dataclass(frozen=True)
class Metric:
    """A metric of a run."""

    key: str
    """loss, bpb, or a benchmark's task."""
    name: str
    heading: str
    """In tables."""
    unit: str = ""

    @property
    def column(self) -> str:
        """Of curves.csv, for loss and bits per byte."""
        return f"val/{self.key}"

    @property
    def axis(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def of(self, run: Run) -> float:
        """The run's value; NaN for a benchmark that was not measured."""
        if self in (LOSS, BITS_PER_BYTE):
            return float(getattr(run.evaluation.val, self.key))
        benchmark = run.evaluation.benchmarks.get(self.key)
        return benchmark.value(benchmark.main)[0] if benchmark else math.nan

    def text(self, value: float) -> str:
        return fixed(value, 4) if self in (LOSS, BITS_PER_BYTE) else percent(value, 2)


LOSS = Metric("loss", "validation loss", "Loss", "nats per token")
BITS_PER_BYTE = Metric("bpb", "bits per byte", "Bits/byte")


def accuracies(runs: Sequence[Run]) -> list[Metric]:
    """The main metric of each benchmark that a run was measured on."""
    benchmarks = {task: result for run in runs for task, result in run.evaluation.benchmarks.items()}
    return [
        Metric(task, f"{result.name} accuracy", Markup(f"{md.text(result.name)} {md.code(result.main)}"))
        for task, result in benchmarks.items()
    ]


@dataclass(frozen=True)
class Mean:
    """A mean of `n` values with its standard error, which is NaN for fewer than two values."""

    value: float
    error: float
    n: int


def mean(values: Sequence[float]) -> Mean:
    """The mean of any number of values; NaN of none."""
    n = len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Mean(float(np.mean(values)) if n else math.nan, error, n)


@dataclass(frozen=True, eq=False)
class Configuration:
    """Experiments that differ in their seed only."""

    label: str
    """Its settings that differ from those of others, or a name in their place."""
    runs: tuple[Run, ...]
    """At least one."""
    failed: tuple[Experiment, ...] = ()
    """Failed and unreadable experiments with the same settings."""

    @property
    def committed(self) -> bool:
        """Whether one of the runs is the committed one."""
        return any(run.committed for run in self.runs)

    @property
    def seeds(self) -> list[str]:
        """All seeds, those that failed too."""
        return list(dict.fromkeys(experiment.seed for experiment in (*self.runs, *self.failed)))

    @property
    def failed_seeds(self) -> dict[str, Experiment]:
        """The seeds without a run, each with its experiment."""
        done = {run.seed for run in self.runs}
        return {experiment.seed: experiment for experiment in self.failed if experiment.seed not in done}

    def by_seed(self, metric: Metric) -> dict[str, float]:
        """Seed to value. A seed that was run several times counts once."""
        values: dict[str, float] = {}
        for run in self.runs:
            if math.isfinite(value := metric.of(run)):
                values.setdefault(run.seed, value)
        return values

    def mean(self, metric: Metric) -> Mean:
        """The mean over seeds."""
        return mean(list(self.by_seed(metric).values()))


def configuration_keys(experiments: Sequence[Experiment]) -> list[str]:
    """The settings in which the runs differ, without the seed and the runtime section."""
    return [key for key in differing_keys(runs_of(experiments)) if _identifies(key)]


def configurations(experiments: Sequence[Experiment], metric: Metric) -> list[Configuration]:
    """The runs by configuration, best mean first."""
    keys = configuration_keys(experiments)
    runs: dict[str, list[Run]] = {}
    failed: dict[str, list[Experiment]] = {}
    for experiment in experiments:
        # All settings count, not only `keys`: a failed experiment with settings of its own is another configuration.
        settings = repr(identifying_settings(experiment))
        if isinstance(experiment, Run):
            runs.setdefault(settings, []).append(experiment)
        elif experiment.state in ("failed", "unreadable"):
            failed.setdefault(settings, []).append(experiment)
    labels = {settings: label(members[0].params, keys) or ONLY for settings, members in runs.items()}
    if len(keys) > MAX_LABEL_KEYS:
        names = {settings: _shared_name(members) for settings, members in runs.items()}
        count = Counter(names.values())
        labels |= {settings: name for settings, name in names.items() if name and count[name] == 1}
    unranked = [
        Configuration(labels[settings], tuple(members), tuple(failed.get(settings, ())))
        for settings, members in runs.items()
    ]
    return sorted(unranked, key=lambda configuration: configuration.mean(metric).value)


def identifying_settings(experiment: Experiment) -> list[tuple[str, str]]:
    """(key, value) of all settings that make a configuration, sorted."""
    return sorted((key, repr(value)) for key, value in experiment.metric_params.items() if _identifies(key))


def _shared_name(runs: Sequence[Run]) -> str:
    """The name of the runs without the seed in it: `muon` of `muon,seed=1`. Empty if it is not the same for all."""
    names = {re.sub(r"(^|,)(train\.)?seed=[^,@]*", "", run.name).strip(",") for run in runs}
    return names.pop() if len(names) == 1 else ""


def containing(configurations: Sequence[Configuration], name: str) -> Configuration:
    """The configuration of the run with this name. Raises UserError if there is none."""
    for configuration in configurations:
        if any(run.name == name for run in configuration.runs):
            return configuration
    names = ", ".join(run.name for configuration in configurations for run in configuration.runs)
    raise UserError(f"--reference {name}: no finished run has this name; compared are {names or 'none'}")


def _identifies(key: str) -> bool:
    """Whether a setting makes another configuration: the runtime section changes how fast a run is, not its result."""
    return key != SEED and not key.startswith("runtime.")


def label(params: Mapping[str, Any], keys: Sequence[str]) -> str:
    """`position=rope, n_layer=6`; dotted keys if their last parts are the same."""
    return ", ".join(f"{name}={md.yaml_text(params.get(key, ABSENT))}" for key, name in short_keys(keys).items())


def measurement_differences(experiments: Sequence[Experiment]) -> dict[str, list[str]]:
    """The settings in which the runs differ and which change how a metric is measured, by what they change."""
    runs = runs_of(experiments)
    keys = differing_keys(runs)
    data = [key for key in keys if key.startswith("data.")]
    tokens = [key for key in keys if key.startswith("tokenizer.") and key != "tokenizer.shard_tokens"]
    if any(run.params.get("tokenizer.encoding") == "bpe" for run in runs):  # it is trained on the data
        tokens += data
    differences = {
        "tokens": tokens,
        "data": data,
        "stride": [key for key in keys if key == "evaluate.stride"],
        "items": [key for key in keys if key.startswith("benchmarks.") and key != "benchmarks.tasks"],
        "precision": [key for key in keys if key == "evaluate.dtype"],
        "context": [key for key in keys if key == "model.block_size"],
    }
    return {kind: settings for kind, settings in differences.items() if settings}


def incomparable_metrics(experiments: Sequence[Experiment]) -> set[Metric]:
    """The metrics by which no run can be called the best."""
    losses, benchmarks = {LOSS, BITS_PER_BYTE}, set(accuracies(runs_of(experiments)))
    affected = {"tokens": {LOSS}, "stride": losses, "items": benchmarks, "data": losses | benchmarks}
    return set().union(*(affected.get(kind, set()) for kind in measurement_differences(experiments)))


def metric_of(experiments: Sequence[Experiment]) -> Metric:
    """The metric that ranks the runs: loss per token, or bits per byte if their tokens differ."""
    return BITS_PER_BYTE if "tokens" in measurement_differences(experiments) else LOSS
