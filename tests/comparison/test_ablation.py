"""An ablation: which experiments belong to it, its tables by hand, and labels of configurations with many settings."""

import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.ablation import Ablation
from pipeline.comparison.ablation import AblationTables, Row, ablation_experiments, ablation_tables, labelled
from pipeline.comparison.configurations import LOSS, MAX_LABEL_KEYS, configurations
from pipeline.comparison.experiments import Run
from pipeline.comparison.page import page_context, render_page
from pipeline.log import UserError

from .builders import PARAMS, run, unfinished

ABLATION = Ablation(
    Path("steps.yaml"),
    {
        "adamw": {"train.optimizer": "adamw", "train.max_lr": 2e-3},
        "muon": {"train.optimizer": "muon", "train.max_lr": 6e-3},
        "rope": {"model.position": "rope"},
        "faster": {"train.max_lr": 8e-3, "model.mlp": "relu", "model.norm": "rmsnorm", "model.qk_norm": True},
    },
)
LOSSES = {
    "adamw": [4.00, 4.02, 4.04],
    "muon": [3.89, 3.92, 3.95],
    "rope": [3.80, 3.83, 3.86],
    "faster": [3.70, 3.72, 3.75],
    "without-muon": [3.80, 3.83, 3.87],
    "without-rope": [3.71, 3.71, 3.76],
}


def runs_of_step(name: str, losses: list[float], **others: Any) -> list[Run]:
    """A run of each seed 1, 2, ... of a configuration, as `sweep` names it. `others`: settings of no step."""
    settings = {**ABLATION.cumulative(), **ABLATION.leave_one_out()}[name]
    params = {key.replace(".", "__"): value for key, value in settings.items()} | others
    changed = {key: value for key, value in settings.items() if PARAMS.get(key) != value}
    return [
        run(f"{name},seed={seed}", loss, changed=changed, train__seed=seed, **params)
        for seed, loss in enumerate(losses, 1)
    ]


def all_runs(*names: str, **others: Any) -> list[Run]:
    return [one for name in names or LOSSES for one in runs_of_step(name, LOSSES[name], **others)]


def tables(runs: list[Run]) -> list[AblationTables]:
    return ablation_tables(labelled(configurations(runs, LOSS), ABLATION), ABLATION, LOSS)


def numbers(row: Row) -> tuple[float, float, float]:
    """Mean, its difference from the one before or from full, and the standard error of that."""
    assert row.configuration is not None
    assert row.difference is not None
    assert row.difference[1] is not None
    value, test = row.difference
    return row.configuration.mean(LOSS).value, value, test.error


def test_each_step_is_tested_against_the_one_before_and_the_corrected_tests_are_paired() -> None:
    """muon - adamw is -.11 -.10 -.09; rope - muon -.09 three times; faster - rope -.10 -.11 -.11."""
    (found,) = tables(all_runs())
    assert [row.name for row in found.steps] == ["adamw", "muon", "rope", "faster"]
    start, muon, rope, faster = found.steps
    assert (start.difference, start.total) == (None, None)
    assert start.settings == "optimizer=adamw, max_lr=0.002"
    assert numbers(muon) == pytest.approx((3.92, -0.1, 0.01 / math.sqrt(3)))
    assert rope.difference == (pytest.approx(-0.09), None), "the same difference at every seed"
    assert numbers(faster) == pytest.approx((3.72333, -0.10667, 0.01 / 3), abs=1e-5)
    assert muon.difference is not None
    assert muon.difference[1] is not None
    t = 0.1 / (0.01 / math.sqrt(3))
    assert muon.difference[1].p == pytest.approx(1 - t / math.sqrt(2 + t * t)), "the larger of two p-values"
    assert faster.total is not None
    assert faster.total[0] == pytest.approx(3.72333 - 4.02, abs=1e-5)


def test_each_left_out_step_is_tested_against_all_steps() -> None:
    (found,) = tables(all_runs())
    full, muon, rope, faster = found.left_out
    assert (full.name, full.configuration, full.settings) == ("full", found.steps[-1].configuration, "")
    assert numbers(muon)[:2] == pytest.approx((3.83333, 0.11), abs=1e-5)
    assert numbers(rope)[:2] == pytest.approx((3.72667, 0.00333), abs=1e-5)
    assert (faster.name, faster.configuration) == ("without-faster", found.steps[-2].configuration)


def test_a_table_without_runs_of_its_own_is_left_out() -> None:
    (steps,) = tables(all_runs("adamw", "muon", "rope", "faster"))
    assert len(steps.steps) == 4
    assert steps.left_out == []
    (left_out,) = tables(all_runs("rope", "faster", "without-muon"))
    assert left_out.steps == []
    assert [row.configuration is None for row in left_out.left_out] == [False, False, True, False]


def test_a_step_without_a_run_and_the_one_after_it_have_no_difference() -> None:
    (found,) = tables(all_runs("adamw", "rope", "faster"))
    _, muon, rope, faster = found.steps
    assert (muon.configuration, muon.difference, muon.total, rope.difference) == (None, None, None, None)
    assert rope.total is not None
    assert faster.difference is not None


def test_experiments_of_an_ablation_are_found_by_their_settings() -> None:
    ablation = all_runs("adamw", "muon")
    failed = unfinished("x", "failed", train__optimizer="adamw", train__max_lr=2e-3, train__seed=4)
    others = [
        run(
            "tuning",
            changed={"train.optimizer": "adamw", "train.max_lr": 1e-3},
            train__optimizer="adamw",
            train__max_lr=1e-3,
        ),
        run(
            "post",
            changed={"model.norm_placement": "post"},
            model__norm_placement="post",
            **{k.replace(".", "__"): v for k, v in ABLATION.cumulative()["muon"].items()},
        ),
    ]
    assert ablation_experiments([*ablation, *others, failed], ABLATION) == [*ablation, failed]
    with pytest.raises(UserError, match=r"steps\.yaml"):
        ablation_experiments(others, ABLATION)


def test_settings_that_no_step_sets_make_tables_of_their_own() -> None:
    runs = all_runs() + all_runs("adamw", "muon", model__n_layer=6)
    found = {table.where: len(table.left_out) for table in tables(runs)}
    assert found == {f"n_layer={PARAMS['model.n_layer']}": 4, "n_layer=6": 0}
    assert {group.label for group in labelled(configurations(runs, LOSS), ABLATION)} >= {"muon, n_layer=6"}


def test_tokens_are_those_to_the_loss_of_the_start_of_each_table() -> None:
    runs = all_runs() + all_runs("adamw", "muon", model__n_layer=6)
    targets = page_context(runs, ablation=ABLATION)["targets"]
    assert {target.reference.label: len(target.costs) for target in targets} == {
        f"adamw, n_layer={PARAMS['model.n_layer']}": 6,
        "adamw, n_layer=6": 2,
    }
    (named,) = page_context(all_runs(), reference="muon,seed=2", ablation=ABLATION)["targets"]
    assert named.reference.label == "muon"


def test_the_page_has_the_tables_in_place_of_the_tests_of_a_grid() -> None:
    page = render_page("Steps", page_context(all_runs(), ablation=ABLATION), {})
    headings = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    assert headings[:5] == ["Cumulative ablation", "Leave-one-out ablation", "Runs", "Configurations", "Settings"]
    assert not {"Significance", "Effect of each setting"} & set(headings)
    assert "\n\n\n" not in page
    line = next(line for line in page.splitlines() if line.startswith("| `muon` | `optimizer"))
    assert [cell.strip() for cell in line.split("|")][1:6] == [
        "`muon`",
        "`optimizer=muon, max_lr=0.006`",
        "3",
        "3.9200 ± 0.0173",
        "−0.1000 ± 0.0058",
    ]
    context = page_context(all_runs(), ablation=ABLATION)
    assert "`optimizer`" not in context["runs_table"].header
    assert len(context["settings_table"].rows) == 6
    assert [group.label for group in context["in_charts"]] == ["adamw", "faster", "rope", "muon"]


def test_configurations_that_differ_in_many_settings_are_labelled_by_the_name_that_their_runs_share() -> None:
    context = page_context(all_runs())
    assert [group.label for group in context["configurations"]] == [
        "faster",
        "without-rope",
        "rope",
        "without-muon",
        "muon",
        "adamw",
    ]
    assert len(context["settings_table"].header) == 1 + len(ABLATION.keys) > 1 + MAX_LABEL_KEYS
    few = page_context(all_runs("adamw", "muon"))
    assert [group.label for group in few["configurations"]] == [
        "optimizer=muon, max_lr=0.006",
        "optimizer=adamw, max_lr=0.002",
    ]
    assert few["settings_table"] is None


def test_a_name_that_two_configurations_share_is_no_label() -> None:
    again = runs_of_step("faster", [3.6, 3.61], train__weight_decay=0.5)
    labels = [group.label for group in configurations(all_runs() + again, LOSS)]
    assert "rope" in labels
    assert "faster" not in labels
    assert sum("weight_decay=0.5" in label for label in labels) == 1
