"""What a reader is told before the numbers: what was measured differently, and what is left out of a mean."""

from pathlib import Path
from typing import Any

import pytest

from .test_compare import compared, experiment, rows, seeds


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"evaluate__stride": 64},
            "The runs were scored differently (`evaluate.stride`): their losses do not compare.",
        ),
        ({"hellaswag__items": 7}, "answered different questions (`hellaswag.items`): their accuracies do not compare."),
        ({"evaluate__dtype": "float32"}, "scored in different precision (`evaluate.dtype`)"),
        ({"model__block_size": 256}, "Tokens of a longer context are scored with more of it (`model.block_size`)"),
        ({"data__source": "files"}, "The runs differ in `data.source`: they may have been measured on different text"),
    ],
)
def test_a_setting_that_changes_the_measurement_is_pointed_out(
    tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    assert words in compared(tmp_path, [experiment("a", 3.6), experiment("b", 3.5, **changed)])
    assert words not in compared(tmp_path, [experiment("a", 3.6), experiment("b", 3.5, train__max_lr=0.1)])


@pytest.mark.parametrize("changed", [{"evaluate__stride": 64}, {"data__max_bytes": 10**6}])
def test_no_loss_is_the_best_where_losses_do_not_compare(tmp_path: Path, changed: dict[str, Any]) -> None:
    table = rows(compared(tmp_path, [experiment("a", 3.6), experiment("b", 3.5, **changed)]))
    assert table["`b`"][1:3] == ["3.5000", f"{3.5 / 1.55:.4f}"]


def test_other_data_is_another_encoding_where_that_is_trained(tmp_path: Path) -> None:
    words = "The runs cut text into different tokens"
    bpe = [experiment("a"), experiment("b", data__max_bytes=10**6)]
    assert words in compared(tmp_path, bpe)
    fixed: dict[str, Any] = {"tokenizer__encoding": "gpt2"}
    assert words not in compared(tmp_path, [experiment("a", **fixed), experiment("b", data__max_bytes=10**6, **fixed)])


def test_a_seed_without_a_result_is_counted_and_said(tmp_path: Path) -> None:
    nan = experiment("rope-3", float("nan"), model__position="rope", train__seed=3)
    failed = experiment("learned-3", 3.0, state="failed", model__position="learned", train__seed=3)
    page = compared(tmp_path, [*seeds("rope", [3.5, 3.52]), nan, *seeds("learned", [3.6, 3.61]), failed])
    table = rows(page, "Configurations")
    assert table["`position=rope`"][:2] == ["2 of 3", "3.5100 ± 0.0100"]
    assert table["`position=learned`"][0] == "2 of 3"
    told = "1 of 3 seeds has no result ({}); its mean is over the others and may flatter it."
    assert f"`position=rope`: {told.format('`rope-3`')}" in page
    assert f"`position=learned`: {told.format('`learned-3`')}" in page


def test_a_seed_that_failed_once_and_was_run_again_is_not_lost(tmp_path: Path) -> None:
    failed = experiment("old", 3.0, state="failed", model__position="rope", train__seed=2)
    page = compared(tmp_path, [*seeds("rope", [3.5, 3.52]), failed, *seeds("learned", [3.6, 3.61])])
    assert rows(page, "Configurations")["`position=rope`"][0] == "2"
    assert "no result" not in page


def test_a_failed_run_of_other_settings_is_no_lost_seed(tmp_path: Path) -> None:
    failed = experiment("wild", 3.0, state="failed", model__position="rope", train__seed=3, train__max_lr=9.0)
    page = compared(tmp_path, [*seeds("rope", [3.5, 3.52]), failed, *seeds("learned", [3.6, 3.61])])
    assert rows(page, "Configurations")["`position=rope`"][0] == "2"
    assert "no result" not in page
    assert "`wild` failed" in page
