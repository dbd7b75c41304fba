"""Names and groups of W&B runs."""

from typing import Any

import pytest

from pipeline.git import Experiment
from pipeline.tracking.wandb_run import LONGEST_NAME, changes, changes_text, notes, run_group, run_name

COMMITTED: dict[str, Any] = {
    "data": {"source": "files"},
    "tokenizer": {"encoding": "bpe"},
    "model": {"position": "learned", "n_layer": 4, "dropout": 0.0},
    "train": {"seed": 1, "max_lr": 6e-3, "betas": [0.9, 0.95]},
    "sample": {"temperature": 0.8},
    "tracking": {"group": None},
}
BASE = "80a69db0707bdfc3e714daf8a403eb946098c12c"
KEY = "0123456789abcdef"


def params(**changed: Any) -> dict[str, Any]:
    """The committed params with some other values."""
    values = {section: dict(keys) for section, keys in COMMITTED.items()}
    for key, value in changed.items():
        section, _, name = key.partition(".")
        values[section][name] = value
    return values


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"model.position": "rope", "train.seed": 2}, "position=rope seed=2"),
        ({"train.max_lr": 1e-3, "model.dropout": 0}, "max_lr=0.001"),
        ({"train.betas": [0.9, 0.99], "data.source": None}, "source=null betas=[0.9, 0.99]"),
        ({"sample.temperature": 0.5, "tracking.group": "x", "train.seed": 3}, "seed=3"),
        ({"sample.temperature": 0.5}, "80a69db-012345"),
        ({}, "80a69db-012345"),
    ],
)
def test_a_run_is_named_by_its_experiment_or_else_by_what_it_trains_differently(
    changed: dict[str, Any], name: str
) -> None:
    assert run_name(params(**changed), COMMITTED, Experiment(None, BASE), KEY) == name
    assert run_name(params(**changed), COMMITTED, Experiment("faery-wind", BASE), KEY) == "faery-wind"


def test_a_run_of_no_commit_is_named_by_its_key() -> None:
    assert run_name(params(), {}, Experiment(None, None), KEY) == "nogit-012345"


def test_the_notes_of_an_experiment_say_what_it_changes_and_how_to_get_it() -> None:
    experiment = Experiment("faery-wind", BASE)
    assert notes({"train.seed": 3}, experiment) == "seed=3\n\ndvc exp apply faery-wind"
    assert notes({}, experiment) == "dvc exp apply faery-wind"
    assert notes({"train.seed": 3}, Experiment(None, BASE)) is None


def test_keys_with_the_same_last_part_keep_their_sections() -> None:
    assert changes_text({"model.seed": 1, "train.seed": 2, "model.n_layer": 3}) == "model.seed=1 train.seed=2 n_layer=3"


def test_a_key_missing_from_the_committed_file_is_not_a_change() -> None:
    assert changes(params() | {"model": {**COMMITTED["model"], "new": 1}}, COMMITTED) == {}


def test_long_names_are_cut_and_count_what_is_left_out() -> None:
    name = changes_text({f"train.key_{number}": "x" * 50 for number in range(20)})
    assert len(name) <= LONGEST_NAME + len(" +20")
    named = name.count("key_")
    assert named >= 2
    assert name.endswith(f" +{20 - named}")


def test_a_group_never_spans_two_commits() -> None:
    assert run_group(None, Experiment("faery-wind", BASE)) == "80a69db"
    assert run_group("position,seed", Experiment("faery-wind", BASE)) == "position,seed @ 80a69db"
    assert run_group(None, Experiment(None, None)) is None
