"""Reading experiments: what DVC lists, what Git holds, which experiment a name refers to."""

from collections.abc import Mapping
from typing import Any

import pytest

from pipeline.comparison.experiments import (
    CURVES,
    EVALUATION,
    SAMPLES,
    SUMMARY,
    Experiment,
    Run,
    differing_keys,
    find,
    parse_exp_show,
    with_distinct_names,
    with_results,
)
from pipeline.log import UserError
from tests.reporting import fixtures

from .builders import run, unfinished


def exp_show(*experiments: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What `dvc exp show --json` prints (DVC 3.67)."""
    data = {"rev": "a" * 40, "params": {"params.yaml": {"data": fixtures.PARAMS}}, "metrics": {}}
    return [
        {"rev": "workspace", "name": None, "data": data, "error": None, "experiments": None},
        {"rev": "a" * 40, "name": "main", "data": data, "error": None, "experiments": list(experiments) or None},
    ]


def entry(
    name: str | None, state: str | None = None, error: Mapping[str, str] | None = None, **train: Any
) -> Mapping[str, Any]:
    """One experiment in it; `train`: its settings in that section."""
    params = {**fixtures.PARAMS, "train": fixtures.PARAMS["train"] | train}
    data = {"params": {"params.yaml": {"data": params}}, "timestamp": "2026-11-21T07:03:47"}
    executor = {"state": state, "name": "dvc-task"} if state else None
    revision = {"rev": "b" * 40, "name": name, "data": None if error and not state else data, "error": error}
    return {"revs": [revision], "executor": executor, "name": name}


FILES = {
    SUMMARY: fixtures.run_summary().model_dump_json(),
    EVALUATION: fixtures.evaluation_metrics().model_dump_json(),
    SAMPLES: fixtures.samples().model_dump_json(),
    CURVES: fixtures.curves(20).to_csv(index=False),
    "dvc.lock": "schema: '2.0'\nstages:\n  train:\n    params:\n      params.yaml:\n        train: {seed: 7}\n",
}


def read(experiment: Experiment, files: Mapping[str, str]) -> Experiment | None:
    return with_results(experiment, lambda rev, path: files.get(path))


def test_experiments_are_listed_with_their_states() -> None:
    error = {"msg": "Experiment run failed", "type": ""}
    experiments = parse_exp_show(
        exp_show(
            entry("a"),
            entry("b", "success"),
            entry("c", "queued"),
            entry("d", "running"),
            entry("e", "failed", error),
            entry("f", None, error),
            entry(None),
        )
    )
    assert [(experiment.name, experiment.state, experiment.committed) for experiment in experiments] == [
        ("main", "done", True),
        ("a", "done", False),
        ("b", "done", False),
        ("c", "queued", False),
        ("d", "running", False),
        ("e", "failed", False),
        ("f", "failed", False),
        ("bbbbbbb", "done", False),
    ]
    assert experiments[1].params["model.n_layer"] == 4
    assert experiments[1].base == "a" * 40
    assert experiments[1].date == "2026-11-21T07:03:47"


def test_changed_settings_are_those_that_differ_from_the_base() -> None:
    main, experiment = parse_exp_show(exp_show(entry("a", max_lr=0.5)))
    assert experiment.changed == {"train.max_lr": 0.5}
    assert main.changed == {}


def test_results_are_read_from_git() -> None:
    _, listed = parse_exp_show(exp_show(entry("a")))
    experiment = read(listed, FILES)
    assert isinstance(experiment, Run)
    assert experiment.summary == fixtures.run_summary()
    assert experiment.evaluation == fixtures.evaluation_metrics()
    assert experiment.samples == fixtures.samples()
    assert len(experiment.curves) == 20
    assert experiment.seed == "1"


def test_a_committed_run_has_the_params_of_its_lock_file() -> None:
    main, _ = parse_exp_show(exp_show(entry("a")))
    committed = read(main, FILES)
    assert committed is not None
    assert committed.seed == "7", "params.yaml may have been edited after the run"
    assert committed.params["model.n_layer"] == 4
    assert read(main, {}) is None


@pytest.mark.parametrize("path", [SUMMARY, EVALUATION, SAMPLES, CURVES])
@pytest.mark.parametrize("text", [None, '{"val": 3}', "{", ""])
def test_an_experiment_with_a_missing_or_damaged_file_is_unreadable(path: str, text: str | None) -> None:
    _, listed = parse_exp_show(exp_show(entry("a")))
    files = {name: content for name, content in (FILES | {path: text}).items() if content is not None}
    experiment = read(listed, files)
    assert experiment is not None
    assert experiment.state == "unreadable"
    assert path in experiment.problem


@pytest.mark.parametrize("state", ["failed", "queued", "running"])
def test_files_of_an_unfinished_experiment_are_not_read(state: Any) -> None:
    experiment = unfinished("a", state)
    assert read(experiment, FILES) is experiment


def test_a_name_that_two_commits_have_is_told_apart_by_its_commit() -> None:
    runs = [run("rope", base="new-commit"), run("rope", base="old-commit"), run("alibi", base="old-commit")]
    named = with_distinct_names(runs, "new-commit")
    assert [experiment.name for experiment in named] == ["rope", "rope@old-com", "alibi"]
    assert named[0] is runs[0]


def test_a_name_that_several_commits_have_is_the_experiment_from_head() -> None:
    new, old = run("rope", rev="a" * 40, base="new"), run("rope", rev="b" * 40, base="old")
    other = run("alibi", rev="c" * 40, base="old")
    for order in ([new, old, other], [other, old, new]):
        assert find("rope", order, "new") is new
        assert find("rope", order, "old") is old
        assert find("alibi", order, "new") is other
        assert find("bbbbbbb", order, "new") is old


def test_an_ambiguous_or_unknown_name_is_an_error() -> None:
    experiments = [run("rope", rev="a" * 40, base="first-commit"), run("rope", rev="b" * 40, base="second-commit")]
    with pytest.raises(UserError, match=r"rope.*aaaaaaa \(from commit first-c\), bbbbbbb"):
        find("rope", experiments, "third-commit")
    with pytest.raises(UserError, match="robe"):
        find("robe", experiments, "third-commit")


def test_of_a_failed_experiment_and_its_rerun_the_rerun_is_meant() -> None:
    done = run("rope", base="new")
    assert find("rope", [unfinished("rope", "failed"), done], None) is done


def test_the_validation_during_training_counts_only_where_it_decides() -> None:
    def keys(*settings: Mapping[str, Any]) -> list[str]:
        return differing_keys([run("a", **each) for each in settings])

    often, rarely = {"train__eval_interval": 10}, {"train__eval_interval": 20}
    assert keys(often, rarely) == []
    assert keys({**often, "train__keep": "best"}, {**rarely, "train__keep": "best"}) == ["train.eval_interval"]
    assert keys({**often, "train__patience": 2}, {**rarely, "train__patience": 2}) == ["train.eval_interval"]
    assert keys({**often, "train__keep": "best"}, {**often, "train__keep": "last"}) == ["train.keep"]
