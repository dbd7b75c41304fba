"""One run as the stages left it, read once: its results, what differs from the last committed run, and the commands
that reproduce it."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import pandas as pd
from markupsafe import Markup

from pipeline import dvc_lock, git
from pipeline import markdown as md
from pipeline.artifacts import EvaluationMetrics, RunSummary, Samples, TrainingSample, TrainingSamples
from pipeline.config import SCRATCH
from pipeline.curves import read_curves
from pipeline.formatting import hydra_value
from pipeline.log import UserError

SUMMARY = "reports/train/summary.json"


@dataclass(frozen=True)
class BaseRun:
    """The weights that a run started from, other than random ones."""

    path: str
    md5: str
    """DVC's hash."""
    commit: str | None
    """The commit whose run made them; None where no commit did."""


@dataclass(frozen=True)
class Run:
    """What a report is made from."""

    curves: pd.DataFrame
    train: RunSummary
    metrics: EvaluationMetrics
    samples: Samples
    training_samples: Sequence[TrainingSample]
    lock: dvc_lock.Lock | None
    """None where the stages were run without DVC, or the file is damaged."""
    committed: dvc_lock.Lock | None
    """dvc.lock as last committed."""
    committed_params: Mapping[str, Any]
    """params.yaml as last committed: dotted key to value; empty without a commit."""
    revision: git.Revision
    base: BaseRun | None
    """None for random weights, and without a dvc.lock."""

    def setting(self, key: str) -> Any:
        """The value that a stage ran with, for a dotted key of params.yaml; None where no stage recorded it."""
        section, _, name = key.partition(".")
        recorded = self.train.params.get(section, {})
        return recorded[name] if name in recorded else (self.lock.params.get(key) if self.lock else None)

    def number(self, key: str) -> int:
        """The same for a whole number. Raises UserError where it is none."""
        value = self.setting(key)
        if not isinstance(value, int):
            raise UserError(f"{SUMMARY}: {key} ({value!r}) must be a whole number")
        return value

    @property
    def validation_tokens(self) -> int:
        """Tokens of the validation split that can be scored: all but the first, which nothing predicts."""
        return self.train.data["val"].tokens - 1

    @property
    def epochs(self) -> float:
        """How often training read its split."""
        return self.train.epochs or self.train.tokens / self.train.data["train"].tokens

    @property
    def validation_in_training(self) -> int | None:
        """Tokens, from the split's start, that the validation curve is over; None where it is over all of them."""
        tokens = self.number("train.eval_tokens")
        return tokens if tokens < self.validation_tokens else None


def read_run(root: Path) -> Run:
    """Reads the run in the repository at `root`.

    Raises FileNotFoundError where a stage has not run, UserError where a file does not have the expected form.
    """
    train = RunSummary.read(root / SUMMARY)
    sizes = {f"data.{split}.tokens": size.tokens for split, size in train.data.items()} | {"tokens": train.tokens}
    for key in ("tokens", "data.train.tokens", "data.val.tokens"):
        if not 0 < sizes.get(key, 0) < 2**63:
            raise UserError(f"{SUMMARY}: {key} ({sizes.get(key)}) must be at least 1")
    lock = dvc_lock.read_lock(root / "dvc.lock")
    return Run(
        curves=read_curves(root / "reports/train/curves.csv"),
        train=train,
        metrics=EvaluationMetrics.read(root / "reports/evaluate/metrics.json"),
        samples=Samples.read(root / "reports/sample/samples.json"),
        training_samples=TrainingSamples.read(root / "reports/train/samples.json").samples,
        lock=lock,
        committed=dvc_lock.parse_lock(git.show(root, "HEAD", "dvc.lock")),
        committed_params=dvc_lock.flat(git.params_at("HEAD", root)),
        revision=git.revision(root),
        base=_base(root, lock, train.params.get("model", {}).get("init_from", SCRATCH)),
    )


def _base(root: Path, lock: dvc_lock.Lock | None, init_from: str) -> BaseRun | None:
    """What `model.init_from` names, by the hash that DVC has recorded."""
    if lock is None or (weights := lock.initial_weights(init_from)) is None:
        return None
    path, md5 = weights
    commit = git.first_commit_with(root, "dvc.lock", md5)
    made = dvc_lock.parse_lock(git.show(root, commit, "dvc.lock")) if commit else None
    return BaseRun(path, md5, commit if made and md5 in {output.md5 for output in made.outputs} else None)


def commands(run: Run) -> list[str]:
    """The shell commands that reproduce the run: clone, check out, run with what differs from the committed params."""
    revision = run.revision
    lines = []
    if revision.remote:
        directory = re.sub(r"\.git$", "", revision.remote.rstrip("/")).rpartition("/")[2]
        lines.append(f"git clone {shlex.quote(revision.remote)} && cd {shlex.quote(directory)}")
    if revision.commit:
        lines.append(f"git checkout {revision.commit}")
    lines.append("make setup && . .venv/bin/activate")
    changed = _changed_settings(run.committed_params, run.lock.params) if run.lock and run.committed_params else []
    settings = [
        f"-S {shlex.quote(f'{key}={hydra_value(value)}')}" for key, _, value in changed if value != dvc_lock.ABSENT
    ]
    lines.append(" \\\n  ".join(["dvc exp run", *settings]) if settings else "dvc repro")
    return lines


def differences(run: Run) -> dict[str, list[Any]] | None:
    """What differs from the committed dvc.lock: `settings` as (key, was, now), `code` as paths; None without one."""
    if run.lock is None or run.committed is None:
        return None
    return {
        "settings": _changed_settings(run.committed.params, run.lock.params),
        "code": [path for path, _, _ in dvc_lock.differing(run.committed.inputs, run.lock.inputs)],
    }


def _changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, old, new) of the params that differ; those of the report change no result."""
    return [change for change in dvc_lock.differing(old, new) if not change[0].startswith("report.")]


def uncommitted(run: Run) -> tuple[list[str], list[str]]:
    """Changed or new files: (those that the run was made from, those that no stage reads).

    Without dvc.lock any file may be an input. Git names a new directory by its `/`.
    """
    inputs = [*run.lock.inputs, "params.yaml", "dvc.yaml"] if run.lock else None
    read = [path for path in run.revision.changed if inputs is None or any(_overlap(path, part) for part in inputs)]
    return read, [path for path in run.revision.changed if path not in read]


def _overlap(path: str, other: str) -> bool:
    """Whether they are the same, or one is a directory that holds the other."""
    first, second = PurePosixPath(path), PurePosixPath(other)
    return first.is_relative_to(second) or second.is_relative_to(first)


def commit_link(run: Run, commit: str) -> Markup:
    """A commit in markdown, as a link where the repository is on GitHub."""
    if match := re.search(r"github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?$", run.revision.remote or ""):
        return Markup(f"[{md.code(commit[:10])}](https://github.com/{match[1]}/commit/{quote(commit)})")
    return md.code(commit)
