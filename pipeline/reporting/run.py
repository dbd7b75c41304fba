"""One run as the stages left it: every file that its report is made from, read once.

Only what the train stage writes has to be there; the rest is None where it is missing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import dvc_lock, git
from pipeline.artifacts import EvaluationMetrics, RunSummary, Samples
from pipeline.curves import read_curves


@dataclass(frozen=True)
class Run:
    """What a report is made from."""

    curves: pd.DataFrame
    train: RunSummary
    metrics: EvaluationMetrics | None
    samples: Samples | None
    lock: dvc_lock.Lock | None
    committed: dvc_lock.Lock | None
    """dvc.lock as last committed."""
    committed_params: Mapping[str, Any] | None
    """params.yaml as last committed: dotted key to value."""
    revision: git.Revision

    def setting(self, key: str) -> Any:
        """The value that a stage ran with, for a dotted key of params.yaml; None where no stage recorded it."""
        section, _, name = key.partition(".")
        recorded = self.train.params.get(section, {})
        return recorded[name] if name in recorded else (self.lock.params.get(key) if self.lock else None)

    @property
    def validation_tokens(self) -> int | None:
        """Tokens of the validation split that can be scored: all but the first, which nothing predicts."""
        split = self.train.data.get("val")
        return split.tokens - 1 if split and split.tokens else None

    @property
    def epochs(self) -> float | None:
        """How often training read its split; None where the split's size is unknown."""
        split = self.train.data.get("train")
        return self.train.tokens / split.tokens if split and split.tokens else None

    @property
    def validation_in_training(self) -> int | None:
        """Tokens, from the split's start, that the validation curve is over; None where it is over all of them."""
        tokens: int | None = self.setting("train.eval_tokens")
        return None if tokens is None or tokens >= (self.validation_tokens or tokens + 1) else tokens


def read_run(root: Path) -> Run:
    """Reads the run in the repository at `root`.

    Raises FileNotFoundError where training has not run, UserError where a file does not have the expected form.
    """
    metrics, samples = root / "reports/evaluate/metrics.json", root / "reports/sample/samples.json"
    return Run(
        curves=read_curves(root / "reports/train/curves.csv"),
        train=RunSummary.read(root / "reports/train/summary.json"),
        metrics=EvaluationMetrics.read(metrics) if metrics.exists() else None,
        samples=Samples.read(samples) if samples.exists() else None,
        lock=dvc_lock.read_lock(root / "dvc.lock"),
        committed=dvc_lock.parse_lock(git.show(root, "HEAD", "dvc.lock")),
        committed_params=dvc_lock.parse_params(git.show(root, "HEAD", "params.yaml")),
        revision=git.revision(root),
    )
