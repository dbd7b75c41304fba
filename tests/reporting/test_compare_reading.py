"""Experiments as DVC lists them and Git holds them: their states, their results, and which one a name means."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.log import Stop
from pipeline.reporting.compare import named
from pipeline.reporting.comparison.experiments import Experiment, listed, with_results

from . import fixtures
from .test_compare import compared, experiment, rows


def shown(experiments: list[Mapping[str, Any]], params: Mapping[str, Any] = fixtures.PARAMS) -> list[Mapping[str, Any]]:
    """What `dvc exp show --json` prints, DVC 3.67."""
    data = {"rev": "a" * 40, "params": {"params.yaml": {"data": params}}, "metrics": {}}
    return [
        {"rev": "workspace", "name": None, "data": data, "error": None, "experiments": None},
        {"rev": "a" * 40, "name": "main", "data": data, "error": None, "experiments": experiments or None},
    ]


def entry(name: str | None, state: str | None = None, error: Mapping[str, str] | None = None) -> Mapping[str, Any]:
    data = {"params": {"params.yaml": {"data": fixtures.PARAMS}}}
    executor = {"state": state, "name": "dvc-task"} if state else None
    revision = {"rev": "b" * 40, "name": name, "data": None if error and not state else data, "error": error}
    return {"revs": [revision], "executor": executor, "name": name}


def test_what_dvc_lists_is_read_with_its_state() -> None:
    failed = {"msg": "Experiment run failed", "type": ""}
    found = listed(
        shown([entry("a"), entry("b", "success"), entry("c", "queued"), entry("d", "failed", failed), entry(None)])
    )
    assert [(one.name, one.state, one.committed) for one in found] == [
        ("main", "done", True),
        ("a", "done", False),
        ("b", "done", False),
        ("c", "queued", False),
        ("d", "failed", False),
        ("bbbbbbb", "done", False),
    ]
    assert found[1].params["model.n_layer"] == 4
    assert [one.name for one in listed(shown([]))] == ["main"]
    assert listed(shown([entry("gone", None, failed)]))[1].state == "failed"


def test_results_are_read_from_git_and_a_committed_run_goes_by_its_lock() -> None:
    files = {
        "reports/train/summary.json": json.dumps(fixtures.summary()),
        "reports/evaluate/metrics.json": json.dumps(fixtures.metrics()),
        "reports/train/curves.csv": fixtures.curves(20).to_csv(index=False),
        "dvc.lock": "schema: '2.0'\nstages:\n  train:\n    params:\n      params.yaml:\n        train: {seed: 7}\n",
    }
    main, own = listed(shown([entry("own")]))
    read = with_results(own, lambda rev, path: files.get(path))
    assert read is not None
    assert read.measured("val.loss") == 3.587
    assert read.seed == 1
    assert read.curves is not None
    assert len(read.curves) == 20
    committed = with_results(main, lambda rev, path: files.get(path))
    assert committed is not None
    assert committed.seed == 7, "the results are of what dvc.lock records, whatever params.yaml says by now"
    assert with_results(main, lambda rev, path: None) is None


def test_one_unreadable_experiment_keeps_its_row_and_stops_nothing(tmp_path: Path) -> None:
    broken = {"reports/evaluate/metrics.json": '{"val": 3}', "reports/train/curves.csv": "no table"}
    _, own = listed(shown([entry("own")]))
    for path, text in broken.items():
        read = with_results(own, lambda rev, asked, path=path, text=text: text if asked == path else None)  # type: ignore[misc]
        assert read is not None
        assert read.state == "unreadable"
        page = compared(tmp_path, [experiment("good"), read])
        assert "1 finished run (1 unreadable besides)." in page
        assert set(rows(page)["`own` (unreadable)"]) <= {"–"}
        assert f"`own` left a file that cannot be read, {path.rpartition('/')[2]}" in page
        assert "exp apply own" not in page
    assert (with_results(own, lambda rev, path: "{") or own).state == "unreadable"


def test_what_an_experiment_changed_is_known_from_its_commit() -> None:
    theirs = {**fixtures.PARAMS, "train": {**fixtures.PARAMS["train"], "max_lr": 0.5}}
    changed = entry("a")
    changed["revs"][0]["data"]["params"]["params.yaml"]["data"] = theirs
    main, own = listed(shown([changed]))
    assert own.changed == {"train.max_lr": 0.5}
    assert main.changed == {}


def several(*found: tuple[str, str, str]) -> list[Experiment]:
    """Experiments of (name, revision, base)."""
    return [replace(experiment(name), rev=rev * 40, base=base) for name, rev, base in found]


def test_a_name_that_commits_share_is_the_experiment_of_the_commit_one_stands_on() -> None:
    found = several(("rope", "a", "new"), ("rope", "b", "old"), ("alibi", "c", "old"))
    for order in (found, found[::-1]):
        assert named("rope", order, "new").rev == "a" * 40
        assert named("rope", order, "old").rev == "b" * 40
        assert named("alibi", order, "new").rev == "c" * 40
        assert named("bbbbbbb", order, "new").rev == "b" * 40


def test_a_name_of_two_experiments_of_other_commits_is_asked_back() -> None:
    found = several(("rope", "a", "first-commit"), ("rope", "b", "second-commit"))
    with pytest.raises(Stop, match=r"2 experiments are called rope: aaaaaaa \(from commit first-c\), bbbbbbb"):
        named("rope", found, "third-commit")
    with pytest.raises(Stop, match="no experiment is called robe"):
        named("robe", found, "third-commit")


def test_an_experiment_that_was_run_again_is_meant_and_not_the_failed_one() -> None:
    failed, done = several(("rope", "a", "new"), ("rope", "b", "new"))
    assert named("rope", [replace(failed, state="failed"), done], "new") is done
