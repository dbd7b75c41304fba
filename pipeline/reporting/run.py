"""One run as the stages left it: every file that its report is made from, read once.

Only what training writes has to be there. The rest may be missing, and is None then.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.files import read_json
from pipeline.reporting import git
from pipeline.reporting import lock as locks
from pipeline.reporting.curves import read_curves


class _Record(BaseModel):
    """Part of a JSON file. What a report does not show is ignored; what an older run did not write is None."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Hardware(_Record):
    device: str | None = None
    device_name: str | None = None
    world_size: int | None = None
    cores: int | None = None
    dtype: str | None = None
    compile: bool | str | None = None
    torch: str | None = None
    python: str | None = None


class Parameters(_Record):
    total: int | None = None
    without_embeddings: int | None = None


class TrainedAt(_Record):
    revision: str | None = None


class Tracked(_Record):
    mode: str | None = None
    id: str | None = None
    name: str | None = None
    url: str | None = None


class TrainSummary(_Record):
    """reports/train/summary.json. Times in seconds, energy in joules, `flops` in all."""

    params: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)
    parameters: Parameters = Parameters()
    steps: int | None = None
    tokens: int | None = None
    flops: float | None = None
    train_time_s: float | None = None
    wall_time_s: float | None = None
    tokens_per_sec: float | None = None
    mfu: float | None = None
    energy_j: float | None = None
    final_train_loss: float | None = None
    hardware: Hardware = Hardware()
    git: TrainedAt = TrainedAt()
    wandb: Tracked = Tracked()
    resumes: int = 0
    resumed_at: list[int] = Field(default_factory=list)
    """Steps."""
    skipped_steps: int = 0


class Validation(_Record):
    """Over every token of the validation split; loss in nats per token."""

    loss: float | None = None
    perplexity: float | None = None
    bpb: float | None = None
    tokens: int | None = None


class Accuracy(_Record):
    """Four-way multiple choice; shares of `items`, with their standard errors."""

    name: str = "HellaSwag"
    is_hellaswag: bool = False
    items: int = 0
    acc: float | None = None
    acc_stderr: float | None = None
    acc_norm: float | None = None
    acc_norm_stderr: float | None = None
    acc_norm_token: float | None = None
    acc_norm_token_stderr: float | None = None


class Metrics(_Record):
    """reports/evaluate/metrics.json."""

    val: Validation | None = None
    hellaswag: Accuracy | None = None
    next_lines: Accuracy | None = None

    @property
    def accuracy(self) -> Accuracy | None:
        return self.hellaswag or self.next_lines


class Prompt(_Record):
    prompt: str | None = None
    continuations: list[str] = Field(default_factory=list)


class Surprise(_Record):
    """How hard the model found a text: its tokens with their cross entropy in nats."""

    text: str = ""
    tokens: list[tuple[str, float | None]] = Field(default_factory=list)


class Samples(_Record):
    """reports/sample/samples.json."""

    settings: Mapping[str, Any] = Field(default_factory=dict)
    prompts: list[Prompt] = Field(default_factory=list)
    surprise: Surprise = Surprise()


class Split(_Record):
    tokens: int | None = None
    documents: int | None = None
    utf8_bytes: int | None = None


class Shards(_Record):
    """data/shards/manifest.json."""

    encoding_name: str | None = None
    vocab_size: int | None = None
    splits: Mapping[str, Split] = Field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """Everything that a report tells of."""

    curves: pd.DataFrame
    train: TrainSummary
    metrics: Metrics | None
    samples: Samples | None
    shards: Shards | None
    lock: locks.Lock | None
    committed: locks.Lock | None
    """dvc.lock as last committed."""
    committed_params: Mapping[str, Any] | None
    """params.yaml as last committed: dotted key to value."""
    revision: git.Revision

    def setting(self, key: str) -> Any:
        """The value that a stage recorded for a dotted key of params.yaml; None where nothing did."""
        section, _, name = key.partition(".")
        recorded = self.train.params.get(section, {})
        return recorded[name] if name in recorded else (self.lock.params.get(key) if self.lock else None)

    @property
    def validation_tokens(self) -> int | None:
        """All of the validation split that can be scored, which its first token cannot: nothing stands before it."""
        split = self.shards.splits.get("val") if self.shards else None
        return split.tokens - 1 if split and split.tokens else None


def read_run(root: Path) -> Run:
    """Reads the run in the repository at `root`.

    Raises FileNotFoundError where training has not run, ValueError that names a file with another form than expected.
    """
    summary = root / "reports/train/summary.json"
    if not summary.exists():
        raise FileNotFoundError(f"{summary} not found: run the train stage (dvc repro train)")
    lock_file = root / "dvc.lock"
    return Run(
        curves=read_curves(root / "reports/train/curves.csv"),
        train=_record(summary, TrainSummary) or TrainSummary(),
        metrics=_record(root / "reports/evaluate/metrics.json", Metrics),
        samples=_record(root / "reports/sample/samples.json", Samples),
        shards=_record(root / "data/shards/manifest.json", Shards),
        lock=locks.parse(lock_file.read_text(encoding="utf-8")) if lock_file.exists() else None,
        committed=locks.parse(git.show(root, "HEAD", "dvc.lock")),
        committed_params=locks.parse_params(git.show(root, "HEAD", "params.yaml")),
        revision=git.revision(root),
    )


R = TypeVar("R", bound=_Record)


def _record(path: Path, kind: type[R]) -> R | None:
    """The record in a JSON file; None without the file."""
    if not path.exists():
        return None
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors())
        raise ValueError(f"{path} has another form than this report reads: {wrong}") from None
