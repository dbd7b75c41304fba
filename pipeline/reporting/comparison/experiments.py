"""Experiments as `dvc exp show --json` lists them, with what each of them left in Git."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import pandas as pd
from pydantic import BaseModel, ValidationError

from pipeline.reporting import lock
from pipeline.reporting.curves import parse_curves
from pipeline.reporting.numbers import missing
from pipeline.reporting.run import Metrics, Samples, TrainSummary

State = Literal["done", "failed", "unreadable", "queued", "running"]

R = TypeVar("R", bound=BaseModel)

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
    changed: Mapping[str, Any] = field(default_factory=dict)
    """The settings that it runs with and its base does not."""
    date: str | None = None
    """When it ended, as DVC says it: 2026-11-21T07:03:47."""
    problem: str = ""
    """Why it is unreadable."""

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
        base, date = _params(baseline), (baseline.get("data") or {}).get("timestamp")
        found.append(Experiment(name, baseline["rev"], "done", base, baseline["rev"], committed=True, date=date))
        for entry in baseline.get("experiments") or []:
            revision = entry["revs"][0]
            state = _state(entry.get("executor"), revision.get("error"))
            own = entry.get("name") or revision["rev"][:7]
            params, date = _params(revision), (revision.get("data") or {}).get("timestamp")
            changed = {key: value for key, _, value in lock.differing(base, params) if key in params}
            one = Experiment(own, revision["rev"], state, params, baseline["rev"], changed=changed, date=date)
            found.append(one)
    return found


def with_results(experiment: Experiment, show: Show) -> Experiment | None:
    """The experiment with what it left in Git; itself unless it is done; None for a committed run without results.

    One whose files cannot be read is `unreadable`, and says why: the others are compared without it.
    """
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
    try:
        return replace(
            experiment,
            params=params,
            train=_record(TrainSummary, summary, "summary.json"),
            metrics=_record(Metrics, metrics, "metrics.json"),
            curves=parse_curves(io.StringIO(curves), "curves.csv") if curves else None,
            samples=_record(Samples, samples, "samples.json"),
        )
    except ValueError as error:
        return replace(experiment, params=params, state="unreadable", problem=str(error))


def _record(kind: type[R], text: str | None, name: str) -> R:
    """The record in a JSON file; an empty one without the file. Raises ValueError that names the file."""
    try:
        return kind.model_validate_json(text) if text else kind()
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, part['loc']))} {part['msg']}".strip() for part in error.errors())
        raise ValueError(f"{name}: {wrong}") from None


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
