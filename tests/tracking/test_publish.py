"""What the report stage adds to a training's W&B run."""

import hashlib
from pathlib import Path

import pytest

from pipeline.artifacts import TrackedRun
from pipeline.curves import Curves
from pipeline.dvc_lock import Lock, Output
from pipeline.tracking.publish import (
    MODEL,
    SUMMARY,
    evaluation_values,
    last_values,
    recorded_model,
    samples_table,
    summary_values,
)
from tests.tracking.records import METRICS, SAMPLES, summary


def test_the_model_is_referenced_only_where_the_lock_records_this_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    identity = TrackedRun(id="abc123", name="a-run", mode="offline")
    summary(identity, steps=3).write(SUMMARY)
    md5 = hashlib.md5(SUMMARY.read_bytes()).hexdigest()
    model = Output("train", MODEL, "0a1b.dir", 30, 3)
    lock = Lock({}, {}, (model, Output("train", SUMMARY.as_posix(), md5, 2, None)))
    assert recorded_model(None, SUMMARY) is None
    assert recorded_model(lock, SUMMARY) == model
    summary(identity, steps=4).write(SUMMARY)
    assert recorded_model(lock, SUMMARY) is None


def test_values_have_the_names_that_panels_use() -> None:
    values = summary_values(summary(TrackedRun(id="abc123", name="a-run", mode="offline"), steps=3))
    assert (values["tokens"], values["flops"], values["wall_time_s"]) == (24, 10**9, 2.0)
    assert not {"mfu", "params", "git", "wandb"} & values.keys()
    values = evaluation_values(METRICS)
    assert (values["evaluate/val/loss"], values["evaluate/next_lines/acc_norm"]) == (2.5, 0.5)
    assert not {"evaluate/next_lines/name", "evaluate/next_lines/acc_norm_token"} & values.keys()


def test_the_summary_has_the_last_value_of_each_column(tmp_path: Path) -> None:
    curves = Curves(tmp_path / "curves.csv", tmp_path / "published.csv")
    curves.rewind(0)
    curves.record([{"step": 1, "tokens": 8, "train/loss": 5.0, "val/loss": 4.5}])
    curves.record([{"step": 2, "tokens": 16, "train/loss": 4.0, "event": "spike"}])
    assert last_values(curves) == {"tokens": 16, "train/loss": 4.0, "val/loss": 4.5}


def test_the_samples_table_has_a_row_per_continuation() -> None:
    assert samples_table(SAMPLES) == (("prompt", "continuation"), [("", "a"), ("", "b"), ("To be", "c")])
