"""What sets experiments apart: the settings that differ, and the configurations that were run with several seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.reporting import markdown as md
from pipeline.reporting.comparison.experiments import Experiment
from pipeline.reporting.comparison.statistics import Mean, mean
from pipeline.reporting.lock import ABSENT

SEED = "train.seed"

TRAINED = "bpe"
"""The encoding that is learned from the training text."""

UNSEEN = ("report.", "tracking.", "sample.")
"""Settings that no compared number depends on."""

ONLY = "the one configuration"

MACHINE = ("runtime.",)
"""Settings that change how fast a run is, but not what it is."""


@dataclass(frozen=True)
class Measure:
    """The number that decides: its key, its name and its unit; lower is better."""

    key: str
    name: str
    unit: str = ""

    @property
    def axis(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name


LOSS = Measure("val.loss", "validation loss", "nats per token")
BITS = Measure("val.bpb", "bits per byte")


@dataclass(frozen=True)
class Configuration:
    """Experiments that differ in nothing but their seed."""

    label: str
    experiments: tuple[Experiment, ...]
    """Those that are done."""
    lost: tuple[Experiment, ...] = ()
    """Those that failed or cannot be read."""

    @property
    def committed(self) -> bool:
        """Whether the committed run is of this configuration."""
        return any(one.committed for one in self.experiments)

    @property
    def seeds(self) -> list[str]:
        """Of all its experiments, as text, in the order of their coming."""
        return list(dict.fromkeys(repr(one.seed) for one in (*self.experiments, *self.lost)))

    def by_seed(self, key: str) -> dict[str, float]:
        """One metric of each seed that has it. A seed counts once, however often it ran."""
        found: dict[str, float] = {}
        for one in self.experiments:
            if (value := one.measured(key)) is not None:
                found.setdefault(repr(one.seed), value)
        return found

    def without_result(self, key: str) -> list[Experiment]:
        """One experiment of each seed that has none of a metric: it diverged, failed, or cannot be read."""
        known = self.by_seed(key)
        last = {repr(one.seed): one for one in (*self.experiments, *self.lost)}
        return [one for seed, one in last.items() if seed not in known]

    def mean(self, key: str) -> Mean | None:
        """Of one metric over the seeds; None where nothing was measured."""
        values = self.by_seed(key)
        return mean(list(values.values())) if values else None


def seen_params(experiment: Experiment) -> dict[str, Any]:
    """The settings that a compared number may depend on."""
    return {key: value for key, value in experiment.params.items() if not key.startswith(UNSEEN)}


def differing_keys(experiments: Sequence[Experiment]) -> list[str]:
    """The dotted keys whose values differ among the experiments, in the order of params.yaml."""
    seen = [seen_params(experiment) for experiment in experiments]
    keys = dict.fromkeys(key for params in seen for key in params)
    return [key for key in keys if len({repr(params.get(key, ABSENT)) for params in seen}) > 1]


def configuration_keys(experiments: Sequence[Experiment]) -> list[str]:
    """The keys that set the finished experiments apart, but for the seed and the machine."""
    done = [one for one in experiments if one.state == "done"]
    return [key for key in differing_keys(done) if key != SEED and not key.startswith(MACHINE)]


def configurations(experiments: Sequence[Experiment]) -> list[Configuration]:
    """The experiments by everything but the seed and the machine, in the order of their coming; each has a done one."""
    keys = configuration_keys(experiments)
    done: dict[str, list[Experiment]] = {}
    lost: dict[str, list[Experiment]] = {}
    for one in experiments:
        if one.state in ("done", "failed", "unreadable"):
            (done if one.state == "done" else lost).setdefault(_identity(one), []).append(one)
    return [
        Configuration(label(found[0].params, keys) or ONLY, tuple(found), tuple(lost.get(identity, ())))
        for identity, found in done.items()
    ]


def _identity(experiment: Experiment) -> str:
    """All that makes a configuration: what a failed experiment changed beyond the others makes it another one."""
    seen = seen_params(experiment).items()
    return repr(sorted((key, repr(value)) for key, value in seen if key != SEED and not key.startswith(MACHINE)))


def label(params: Mapping[str, Any], keys: Sequence[str]) -> str:
    """What names a configuration: `position=rope, n_layer=6`; whole keys where their last parts are the same."""
    last = [key.rpartition(".")[2] for key in keys]
    names = [short if last.count(short) == 1 else key for key, short in zip(keys, last, strict=True)]
    return ", ".join(f"{name}={md.said(params.get(key, ABSENT))}" for name, key in zip(names, keys, strict=True))


def measure_of(experiments: Sequence[Experiment]) -> Measure:
    """Loss per token, which means the same only where the tokens are; else bits per byte."""
    done = [experiment for experiment in experiments if experiment.state == "done"]
    if tokens_differ(done) or not any(experiment.measured(LOSS.key) is not None for experiment in done):
        return BITS
    return LOSS


def tokens_differ(experiments: Sequence[Experiment]) -> bool:
    """Whether the experiments cut text into different tokens; an encoding that is trained does for other data."""
    done = [one for one in experiments if one.state == "done"]
    keys = differing_keys(done)
    trained = any(one.params.get("tokenizer.encoding") == TRAINED for one in done)
    return any(
        (key.startswith("tokenizer.") and key != "tokenizer.shard_tokens") or (trained and key.startswith("data."))
        for key in keys
    )
