"""Experiments as `dvc exp show --json` lists them, with what each of them left in Git."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd
from pydantic import ValidationError

from pipeline.reporting import lock
from pipeline.reporting.curves import parse_curves
from pipeline.reporting.numbers import missing
from pipeline.reporting.run import Metrics, Samples, TrainSummary

State = Literal["done", "failed", "queued", "running"]

Show = Callable[[str, str], str | None]
"""(revision, path) -> the text of that file at that revision; None where it is not there."""


@dataclass(frozen=True)
class Experiment:
    """One experiment, or the committed run that the experiments start from (`committed`).

    Only one that is done has results: DVC lists a failed or queued one with the numbers of the run it started from.
    """

    name: str
    rev: str
    state: State
    params: Mapping[str, Any]
    """Dotted key of params.yaml to value."""
    base: str
    """The commit that it starts from."""
    committed: bool = False
    train: TrainSummary = field(default_factory=TrainSummary)
    metrics: Metrics = field(default_factory=Metrics)
    curves: pd.DataFrame | None = None
    samples: Samples = field(default_factory=Samples)

    @property
    def seed(self) -> Any:
        return self.params.get("train.seed")

    def measured(self, key: str) -> float | None:
        """A metric by its dotted name, `val.loss`; None where it was not measured or is no finite number."""
        if self.state != "done":
            return None
        part, _, name = key.partition(".")
        value = getattr(self.metrics.accuracy if part == "accuracy" else self.metrics.val, name, None)
        return None if missing(value) else value


def listed(shown: Sequence[Mapping[str, Any]]) -> list[Experiment]:
    """What `dvc exp show --json` prints as experiments without their results, the committed run of each baseline first.

    The workspace is left out: it has no revision from which to read its results.
    """
    found: list[Experiment] = []
    for baseline in shown:
        if baseline.get("rev") == "workspace":
            continue
        name = baseline.get("name") or baseline["rev"][:7]
        found.append(Experiment(name, baseline["rev"], "done", _params(baseline), baseline["rev"], committed=True))
        for entry in baseline.get("experiments") or []:
            revision = entry["revs"][0]
            state = _state(entry.get("executor"), revision.get("error"))
            own = entry.get("name") or revision["rev"][:7]
            found.append(Experiment(own, revision["rev"], state, _params(revision), baseline["rev"]))
    return found


def with_results(experiment: Experiment, show: Show) -> Experiment | None:
    """The experiment with what it left in Git; itself unless it is done; None for a committed run without results."""
    if experiment.state != "done":
        return experiment
    summary = show(experiment.rev, "reports/train/summary.json")
    metrics = show(experiment.rev, "reports/evaluate/metrics.json")
    curves = show(experiment.rev, "reports/train/curves.csv")
    samples = show(experiment.rev, "reports/sample/samples.json")
    params = experiment.params
    if experiment.committed:
        if summary is None and metrics is None:
            return None
        recorded = lock.parse(show(experiment.rev, "dvc.lock"))
        # params.yaml may have been edited since the committed results were computed; dvc.lock says what they are of.
        params = {**params, **recorded.params} if recorded else params
    name = f"{experiment.name}'s {{}}"
    try:
        return replace(
            experiment,
            params=params,
            train=TrainSummary.model_validate(json.loads(summary)) if summary else TrainSummary(),
            metrics=Metrics.model_validate(json.loads(metrics)) if metrics else Metrics(),
            curves=parse_curves(io.StringIO(curves), name.format("curves.csv")) if curves else None,
            samples=Samples.model_validate(json.loads(samples)) if samples else Samples(),
        )
    except (json.JSONDecodeError, ValidationError) as error:
        raise ValueError(f"{name.format('reports')} at {experiment.rev[:10]} cannot be read: {error}") from None


def _params(revision: Mapping[str, Any]) -> dict[str, Any]:
    files = (revision.get("data") or {}).get("params") or {}
    return lock.flat((files.get("params.yaml") or {}).get("data") or {})


def _state(executor: Mapping[str, Any] | None, error: object) -> State:
    state = (executor or {}).get("state")
    if error or state == "failed":
        return "failed"
    if state in ("queued", "running"):
        return "queued" if state == "queued" else "running"
    return "done"
