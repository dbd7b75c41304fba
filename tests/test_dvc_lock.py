"""Reading dvc.lock."""

from pathlib import Path

import pytest

from pipeline.dvc_lock import ABSENT, Output, differing, flat, parse_lock, recorded_md5s

LOCK = """
schema: '2.0'
stages:
  train:
    cmd: python -m pipeline launch stages.train
    deps:
    - {path: data/shards, hash: md5, md5: aa.dir, size: 9, nfiles: 2}
    - {path: stages/train.py, hash: md5, md5: bb, size: 3}
    params:
      params.yaml:
        model: {n_layer: 4}
        train: {seed: 1, betas: [0.9, 0.95]}
    outs:
    - {path: data/model, hash: md5, md5: cc.dir, size: 20, nfiles: 4}
  evaluate:
    cmd: python -m pipeline launch stages.evaluate
    deps:
    - {path: data/model, hash: md5, md5: cc.dir, size: 20, nfiles: 4}
    params:
      params.yaml:
        evaluate: {stride: null}
    outs:
    - {path: reports/evaluate/metrics.json, hash: md5, md5: dd, size: 5}
"""


def test_params_inputs_and_outputs_of_all_stages() -> None:
    lock = parse_lock(LOCK)
    assert lock is not None
    assert lock.params == {"model.n_layer": 4, "train.seed": 1, "train.betas": [0.9, 0.95], "evaluate.stride": None}
    assert lock.inputs == {"data/shards": "aa.dir", "stages/train.py": "bb"}
    model = Output("train", "data/model", "cc.dir", 20, 4)
    assert lock.outputs == (model, Output("evaluate", "reports/evaluate/metrics.json", "dd", 5, None))
    assert (lock.output("data/model"), lock.output("data/shards")) == (model, None)


def test_recorded_md5s_are_those_of_outputs(tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text(LOCK)
    assert recorded_md5s(tmp_path / "dvc.lock") == {"cc.dir", "dd"}
    assert recorded_md5s(tmp_path / "missing") == set()


@pytest.mark.parametrize(
    "content",
    [b"", b"a: [", b"schema: '2.0'", b"stages: [1]", b"stages: {train: {outs: [{md5: cc}]}}", b"\xff", b"<<<<<<< HEAD"],
)
def test_a_damaged_lock_records_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "dvc.lock").write_bytes(content)
    assert recorded_md5s(tmp_path / "dvc.lock") == set()


def test_nested_mappings_get_dotted_keys() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "a.c": {}, "d": [2]}


def test_params_differ_by_value() -> None:
    old = {"a": 1, "b": 1e-3, "c": True, "gone": 3}
    new = {"a": 1.0, "b": 0.001, "c": 1, "new": None}
    assert differing(old, new) == [("c", True, 1), ("new", ABSENT, None), ("gone", 3, ABSENT)]
