"""Reads experiments: what `dvc exp show --json` lists, with the results that each of them committed to Git."""

import io
import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from pipeline import git
from pipeline.artifacts import EvaluationMetrics, RunSummary, Samples
from pipeline.config import SCRATCH
from pipeline.curves import parse_curves
from pipeline.dvc_lock import ABSENT, differing, flat, parse_lock
from pipeline.log import UserError

State = Literal["done", "failed", "unreadable", "queued", "running"]

SUMMARY, EVALUATION = "reports/train/summary.json", "reports/evaluate/metrics.json"
SAMPLES, CURVES = "reports/sample/samples.json", "reports/train/curves.csv"

MIN_REVISION_LENGTH = 7
"""Characters of a revision that can be given in place of an experiment's name."""

NO_METRIC_KEYS = ("report.", "tracking.", "sample.", "train.sample_interval", "train.benchmark_")
"""How the keys of settings begin that no compared metric depends on: pages, tracking, sampling, probes."""

VALIDATION_KEYS = ("train.eval_interval", "train.eval_tokens")
"""No compared metric depends on these either, unless train.keep or train.patience makes the loss decide."""

Show = Callable[[str, str], str | None]
"""(revision, path) -> text of the file at that revision; None if there is none."""


@dataclass(frozen=True, eq=False)
class Experiment:
    """An experiment, or the committed run that experiments start from (`committed`)."""

    name: str
    rev: str
    state: State
    params: Mapping[str, Any]
    """Dotted key of params.yaml to value."""
    base: str
    """The commit that it starts from."""
    committed: bool = False
    changed: Mapping[str, Any] = field(default_factory=dict)
    """The settings in which it differs from its base."""
    date: str | None = None
    """When it ended, as DVC writes it: 2026-11-21T07:03:47."""
    problem: str = ""
    """Why it is unreadable."""

    @property
    def seed(self) -> str:
        """train.seed as text."""
        return repr(self.params.get("train.seed"))

    @property
    def metric_params(self) -> dict[str, Any]:
        """The settings that a compared metric may depend on."""
        return metric_params(self.params)


@dataclass(frozen=True, eq=False, kw_only=True)
class Run(Experiment):
    """A finished experiment with its results. DVC lists failed and queued ones with the metrics of their base."""

    summary: RunSummary
    evaluation: EvaluationMetrics
    samples: Samples
    curves: pd.DataFrame
    base_md5: str = ""
    """DVC's hash of the weights that model.init_from names; empty for random ones."""
    model_md5: str = ""
    """DVC's hash of data/model, which another run may have started from."""


def metric_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Of all settings as dotted keys, those that a compared metric may depend on."""
    loss_decides = params.get("train.keep") == "best" or params.get("train.patience") is not None
    ignored = NO_METRIC_KEYS if loss_decides else NO_METRIC_KEYS + VALIDATION_KEYS
    return {key: value for key, value in params.items() if not key.startswith(ignored)}


def read_experiments(root: Path, names: Sequence[str] = (), commits: Sequence[str] = ()) -> list[Experiment]:
    """The experiments from HEAD, and the committed runs that they start from.

    `commits`: options of `dvc exp show` for those of other commits too. With `names`, these experiments only, from any
    commit. Raises UserError if DVC fails, or a name is unknown or ambiguous.
    """
    experiments = parse_exp_show(_exp_show(root, ["--all-commits"] if names else commits))
    head = git.revision(root).commit
    if names:
        named = [find(name, experiments, head) for name in names]
        experiments = list({experiment.rev: experiment for experiment in named}.values())
    else:
        bases = {head, *(experiment.base for experiment in experiments if not experiment.committed)}
        experiments = [experiment for experiment in experiments if experiment.base in bases]
    read = [with_results(experiment, lambda rev, path: git.show(root, rev, path)) for experiment in experiments]
    return with_distinct_names([experiment for experiment in read if experiment is not None], head)


def _exp_show(root: Path, commits: Sequence[str]) -> list[dict[str, Any]]:
    """What `dvc exp show --json` prints."""
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json", *commits]
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError("`dvc exp show` failed:\n" + textwrap.indent(done.stderr.strip() or done.stdout.strip(), "  "))
    baselines: list[dict[str, Any]] = json.loads(done.stdout)
    return baselines


def parse_exp_show(baselines: Sequence[Mapping[str, Any]]) -> list[Experiment]:
    """The experiments in the output of `dvc exp show --json`, without results; each baseline comes first, as committed.

    The workspace is left out: it has no revision to read results from.
    """
    experiments: list[Experiment] = []
    for baseline in baselines:
        base = baseline["rev"]
        if base == "workspace":
            continue
        base_params, date = _params_and_date(baseline)
        name = baseline.get("name") or base[:7]
        experiments.append(Experiment(name, base, "done", base_params, base, committed=True, date=date))
        for entry in baseline.get("experiments") or []:
            revision = entry["revs"][0]
            rev = revision["rev"]
            state = _state(entry.get("executor"), revision.get("error"))
            params, date = _params_and_date(revision)
            changed = {key: value for key, _, value in differing(base_params, params) if key in params}
            name = entry.get("name") or rev[:7]
            experiments.append(Experiment(name, rev, state, params, base, changed=changed, date=date))
    return experiments


def _params_and_date(revision: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    data = revision.get("data") or {}
    params = ((data.get("params") or {}).get("params.yaml") or {}).get("data") or {}
    return flat(params), data.get("timestamp")


def _state(executor: Mapping[str, Any] | None, error: object) -> State:
    state = (executor or {}).get("state")
    if error or state == "failed":
        return "failed"
    return state if state in ("queued", "running") else "done"


def with_results(experiment: Experiment, show: Show) -> Experiment | None:
    """A finished experiment as a Run, or `unreadable` if a file of it is missing or damaged; any other as it is.

    None for a commit without results.
    """
    if experiment.state != "done":
        return experiment
    texts = {path: show(experiment.rev, path) for path in (SUMMARY, EVALUATION, SAMPLES, CURVES)}
    known = vars(experiment)
    lock = parse_lock(show(experiment.rev, "dvc.lock"))
    if experiment.committed:
        if texts[SUMMARY] is None and texts[EVALUATION] is None:
            return None
        # params.yaml may have been edited since the results were computed: dvc.lock records their params.
        known = {**known, "params": {**experiment.params, **(lock.params if lock else {})}}
    base = lock and lock.initial_weights(known["params"].get("model.init_from", SCRATCH))
    model = lock and lock.output("data/model")
    try:
        summary, evaluation, samples, curves = (_present(text, path) for path, text in texts.items())
        return Run(
            **known,
            summary=RunSummary.parse(summary, SUMMARY),
            evaluation=EvaluationMetrics.parse(evaluation, EVALUATION),
            samples=Samples.parse(samples, SAMPLES),
            curves=parse_curves(io.StringIO(curves), CURVES),
            base_md5=base[1] if base else "",
            model_md5=model.md5 if model else "",
        )
    except ValueError as error:
        return Experiment(**{**known, "state": "unreadable", "problem": str(error)})


def _present(text: str | None, path: str) -> str:
    if text is None:
        raise UserError(f"{path} is missing")
    return text


def find(name: str, experiments: Sequence[Experiment], head: str | None) -> Experiment:
    """The experiment with this name or revision; if several commits have one, the one that starts from `head`.

    Raises UserError if the name is unknown or ambiguous.
    """
    matches = list(
        {
            experiment.rev: experiment
            for experiment in experiments
            if experiment.name == name or (len(name) >= MIN_REVISION_LENGTH and experiment.rev.startswith(name))
        }.values()
    )
    if not matches:
        raise UserError(f"{name}: no such experiment; `dvc exp list --all-commits` lists them")
    matches = [experiment for experiment in matches if experiment.base == head] or matches
    matches = [experiment for experiment in matches if experiment.state == "done"] or matches  # a failed one was rerun
    if len(matches) > 1:
        revisions = ", ".join(f"{match.rev[:7]} (from commit {match.base[:7]})" for match in matches)
        raise UserError(f"{name}: {len(matches)} experiments have this name; give a revision: {revisions}")
    return matches[0]


def with_distinct_names(experiments: Sequence[Experiment], head: str | None) -> list[Experiment]:
    """Adds its commit to the name of an experiment that another commit's has too: `deep@1a2b3c4`; not if it is HEAD."""
    bases = {(experiment.name, experiment.base) for experiment in experiments}
    repeated = {name for name, count in Counter(name for name, _ in bases).items() if count > 1}
    return [
        replace(experiment, name=f"{experiment.name}@{experiment.base[:7]}")
        if experiment.name in repeated and experiment.base != head
        else experiment
        for experiment in experiments
    ]


def runs_of(experiments: Sequence[Experiment]) -> list[Run]:
    """The finished experiments."""
    return [experiment for experiment in experiments if isinstance(experiment, Run)]


def differing_keys(experiments: Sequence[Experiment]) -> list[str]:
    """The settings in which the experiments differ, as dotted keys in the order of params.yaml."""
    keys = dict.fromkeys(key for experiment in experiments for key in experiment.metric_params)
    return [key for key in keys if len({repr(experiment.params.get(key, ABSENT)) for experiment in experiments}) > 1]
