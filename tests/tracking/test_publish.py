"""What the stages after training leave is read as W&B is told of it."""

import hashlib
from pathlib import Path
from typing import Any

from pipeline.tracking.publish import evaluation_numbers, last_cells, recorded_model, samples_table
from tests.reporting import fixtures


def lock(summary_md5: str) -> dict[str, Any]:
    """A dvc.lock of a training."""
    model = {"path": "data/model", "hash": "md5", "md5": "0a1b.dir", "size": 30, "nfiles": 3}
    summary = {"path": "reports/train/summary.json", "hash": "md5", "md5": summary_md5, "size": 2}
    return {"schema": "2.0", "stages": {"train": {"cmd": "", "outs": [model, summary]}}}


def test_the_model_is_named_by_dvc_s_hash_of_this_training_and_never_by_another_s(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    summary = Path("reports/train/summary.json")
    summary.parent.mkdir(parents=True)
    summary.write_text('{"tokens": 1}')
    assert recorded_model(Path("dvc.lock"), summary) is None
    fixtures.write_yaml(Path("dvc.lock"), lock(hashlib.md5(summary.read_bytes()).hexdigest()))
    assert recorded_model(Path("dvc.lock"), summary) == {
        "path": "data/model",
        "md5": "0a1b.dir",
        "size": 30,
        "files": 3,
    }
    summary.write_text('{"tokens": 2}')
    assert recorded_model(Path("dvc.lock"), summary) is None


def test_the_last_value_of_each_curve_is_told(tmp_path: Path) -> None:
    file = tmp_path / "curves.csv"
    file.write_text("step,tokens,train/loss,val/loss,event\n1,8,5.0,4.5,\n2,16,4.0,,spike\n3,24,nan,,\n")
    found = last_cells(file)
    assert (found["tokens"], found["val/loss"]) == (24, 4.5)
    assert list(found) == ["tokens", "train/loss", "val/loss"]


def test_numbers_and_samples_have_the_names_that_panels_use() -> None:
    metrics: dict[str, dict[str, Any]] = {
        "val": {"loss": 2.5},
        "next_lines": {"name": "lines", "is_hellaswag": False, "acc": 0.5},
    }
    assert evaluation_numbers(metrics) == {"evaluate/val/loss": 2.5, "evaluate/next_lines/acc": 0.5}
    samples = {"prompts": [{"prompt": None, "continuations": ["a", "b"]}, {"prompt": "To be", "continuations": ["c"]}]}
    assert samples_table(samples) == (("prompt", "continuation"), [("", "a"), ("", "b"), ("To be", "c")])
