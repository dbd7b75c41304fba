"""What runs are called: by what they change, and beside the runs that they can be compared with."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.tracking.identity import LONGEST_NAME, RunIdentity, changes, run_group, run_identity, run_name, spelled
from pipeline.tracking.provenance import Experiment, experiment, params_at
from tests.reporting import fixtures

COMMITTED: dict[str, Any] = {
    "data": {"source": "files"},
    "hellaswag": {"items": 400},
    "tokenizer": {"encoding": "bpe"},
    "model": {"position": "learned", "n_layer": 4, "dropout": 0.0},
    "train": {"seed": 1, "max_lr": 6e-3, "betas": [0.9, 0.95]},
    "sample": {"temperature": 0.8},
    "tracking": {"group": None},
}
BASE = "80a69db0707bdfc3e714daf8a403eb946098c12c"


def params(**changed: Any) -> dict[str, Any]:
    """The committed params with some others."""
    values = {section: dict(keys) for section, keys in COMMITTED.items()}
    for key, value in changed.items():
        section, _, name = key.partition(".")
        values[section][name] = value
    return values


def name(values: dict[str, Any], experiment: str | None = "faery-wind") -> str:
    return run_name(values, COMMITTED, Experiment(experiment, BASE), "0123456789abcdef")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"model.position": "rope", "train.seed": 2}, "position=rope seed=2"),
        ({"train.max_lr": 1e-3, "model.dropout": 0}, "max_lr=0.001"),
        ({"train.betas": [0.9, 0.99], "data.source": None}, "source=null betas=[0.9, 0.99]"),
        ({"sample.temperature": 0.5, "tracking.group": "x", "train.seed": 3}, "seed=3"),
        ({"sample.temperature": 0.5}, "faery-wind"),
        ({}, "faery-wind"),
    ],
)
def test_a_run_is_called_by_what_it_trains_differently(changed: dict[str, Any], expected: str) -> None:
    assert name(params(**changed)) == expected


def test_an_experiment_whose_name_says_what_it_changes_keeps_it() -> None:
    assert name(params(**{"train.seed": 2}), "position=learned,seed=2") == "position=learned,seed=2"


def test_a_plain_run_of_committed_params_is_called_by_its_commit_and_inputs() -> None:
    assert name(params(), None) == "80a69db-012345"
    assert run_name(params(), {}, Experiment(None, None), "0123456789abcdef") == "nogit-012345"


def test_keys_of_the_same_name_keep_their_sections() -> None:
    assert spelled({"model.seed": 1, "train.seed": 2, "model.n_layer": 3}) == "model.seed=1 train.seed=2 n_layer=3"


def test_a_key_that_the_committed_file_did_not_have_is_no_change() -> None:
    assert changes(params() | {"model": {**COMMITTED["model"], "new": 1}}, COMMITTED) == {}


def test_names_are_bounded_and_tell_how_much_they_leave_out() -> None:
    text = spelled({f"train.key_{number}": "x" * 50 for number in range(20)})
    assert len(text) <= LONGEST_NAME + len(" +20")
    shown = text.count("key_")
    assert text.endswith(f" +{20 - shown}")
    assert shown >= 2


def test_a_group_never_spans_two_commits() -> None:
    assert run_group(None, Experiment("faery-wind", BASE)) == "80a69db"
    assert run_group("position,seed", Experiment("faery-wind", BASE)) == "position,seed @ 80a69db"
    assert run_group(None, Experiment(None, None)) is None


def test_a_resumed_run_keeps_id_name_and_group(tmp_path: Path) -> None:
    first = run_identity(tmp_path / "wandb.json", "seed=2", "80a69db", "offline")
    again = run_identity(tmp_path / "wandb.json", "another", "another", "online")
    assert again == RunIdentity(first.id, "seed=2", "online", "80a69db")


def test_the_commit_and_its_params_are_those_that_the_experiment_starts_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(variable, raising=False)
    assert experiment() == Experiment(None, None)
    assert params_at(None) == {}
    fixtures.git(tmp_path, "init", "--quiet", "--initial-branch=main")
    fixtures.write_yaml(tmp_path / "params.yaml", {"train": {"seed": 1}})
    fixtures.commit(tmp_path)
    base = experiment().baseline
    fixtures.write_yaml(tmp_path / "params.yaml", {"train": {"seed": 2}})
    assert params_at(base) == {"train": {"seed": 1}}
    fixtures.commit(tmp_path)
    monkeypatch.setenv("DVC_EXP_NAME", "faery-wind")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", str(base))
    assert experiment() == Experiment("faery-wind", base)
    assert params_at(experiment().baseline) == {"train": {"seed": 1}}
