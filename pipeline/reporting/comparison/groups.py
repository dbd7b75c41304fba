"""What sets experiments apart: the settings that differ, and the configurations that were run with several seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.reporting import markdown as md
from pipeline.reporting.comparison.experiments import Experiment
from pipeline.reporting.comparison.statistics import Mean, mean
from pipeline.reporting.lock import ABSENT

SEED = "train.seed"

UNSEEN = ("report.", "tracking.", "sample.")
"""Settings that no compared number depends on."""

MACHINE = ("runtime.",)
"""Settings that change how fast a run is, but not what it is."""


@dataclass(frozen=True)
class Measure:
    """The number that decides: its key, its name with the unit; lower is better."""

    key: str
    name: str


LOSS = Measure("val.loss", "validation loss")
BITS = Measure("val.bpb", "bits per byte")


@dataclass(frozen=True)
class Configuration:
    """Experiments that differ in nothing but their seed."""

    label: str
    experiments: tuple[Experiment, ...]
    committed: bool
    """Whether the committed run is of this configuration."""

    def mean(self, key: str) -> Mean | None:
        """Of one metric over the seeds; None where nothing was measured. A seed counts once, however often it ran."""
        by_seed: dict[str, float] = {}
        for experiment in self.experiments:
            value = experiment.measured(key)
            if value is not None:
                by_seed.setdefault(repr(experiment.seed), value)
        return mean(list(by_seed.values())) if by_seed else None


def seen_params(experiment: Experiment) -> dict[str, Any]:
    """The settings that a compared number may depend on."""
    return {key: value for key, value in experiment.params.items() if not key.startswith(UNSEEN)}


def differing_keys(experiments: Sequence[Experiment]) -> list[str]:
    """The dotted keys whose values differ among the experiments, in the order of params.yaml."""
    seen = [seen_params(experiment) for experiment in experiments]
    keys = dict.fromkeys(key for params in seen for key in params)
    return [key for key in keys if len({repr(params.get(key, ABSENT)) for params in seen}) > 1]


def configurations(experiments: Sequence[Experiment], keys: Sequence[str]) -> list[Configuration]:
    """The finished experiments by everything in `keys` but the seed and the machine, in the order of their coming."""
    named = [key for key in keys if key != SEED and not key.startswith(MACHINE)]
    grouped: dict[str, list[Experiment]] = {}
    for experiment in experiments:
        if experiment.state == "done":
            grouped.setdefault(label(experiment.params, named), []).append(experiment)
    return [
        Configuration(name or "the one configuration", tuple(found), any(one.committed for one in found))
        for name, found in grouped.items()
    ]


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
    """Whether the experiments cut text into different tokens."""
    keys = differing_keys([experiment for experiment in experiments if experiment.state == "done"])
    return any(key.startswith("tokenizer.") and key != "tokenizer.shard_tokens" for key in keys)


def text_differs(experiments: Sequence[Experiment]) -> list[str]:
    """The differing keys that may change what is measured: the data, and how it is scored."""
    return [key for key in differing_keys(experiments) if key.startswith(("data.", "hellaswag.", "evaluate."))]
