"""Experiments side by side: what is told of one, many, failed, repeated, differently encoded, or no experiments."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.reporting.compare import without_copies, write_comparison
from pipeline.reporting.comparison.experiments import Experiment
from pipeline.reporting.comparison.figures import comparison_figures
from pipeline.reporting.comparison.groups import LOSS, configurations
from pipeline.reporting.lock import flat
from pipeline.reporting.run import Metrics, TrainSummary

from . import fixtures

PARAMS = flat(fixtures.PARAMS)


def experiment(
    name: str,
    loss: float | None = 3.6,
    bpb: float | None = None,
    parameters: int = 4_000_000,
    curves: pd.DataFrame | None = None,
    committed: bool = False,
    state: str = "done",
    **changed: Any,
) -> Experiment:
    """An experiment with `changed` settings, `model__position` for model.position."""
    metrics = fixtures.metrics()
    metrics["val"] = {"loss": loss, "bpb": loss / 1.55 if bpb is None and loss else bpb, "tokens": 61_234}
    train = fixtures.summary() | {"flops": 6.0 * parameters * 1e7, "parameters": {"total": parameters}}
    return Experiment(
        name,
        "0123456789" * 4,
        state,  # type: ignore[arg-type]
        PARAMS | {key.replace("__", "."): value for key, value in changed.items()},
        "base",
        committed,
        TrainSummary.model_validate(train),
        Metrics.model_validate(metrics),
        curves,
    )


def compared(root: Path, experiments: list[Experiment], **wanted: bool) -> str:
    return write_comparison(root, experiments, "A question", 0.9, **wanted).read_text(encoding="utf-8")


def rows(page: str, heading: str = "Runs") -> dict[str, list[str]]:
    """The cells of the table under a heading, by its first column."""
    lines = [line for line in page.split(f"## {heading}\n")[1].split("\n## ")[0].splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert len(cells) > 2
    return {row[0]: row[1:] for row in [cells[0], *cells[2:]]}


def test_without_experiments_the_page_says_what_to_do(tmp_path: Path) -> None:
    for found in ([], [experiment("main", committed=True)]):
        page = compared(tmp_path, found)
        assert "dvc exp run --queue -S 'model.position=learned,rope'" in page
        assert "| --- |" not in page


def test_one_experiment_is_shown_and_not_weighed(tmp_path: Path) -> None:
    page = compared(tmp_path, [experiment("only", curves=fixtures.curves(60))])
    assert "1 finished run. There is nothing to hold it against yet." in page
    assert "noise" not in page
    assert "dvc exp apply only" in page


def test_only_the_settings_that_differ_are_columns_and_the_best_is_bold(tmp_path: Path) -> None:
    page = compared(
        tmp_path,
        [experiment("a", 3.61, train__max_lr=1e-3), experiment("b", 3.52, train__max_lr=2e-3, sample__temperature=0.5)],
    )
    table = rows(page)
    assert table["Run"][:2] == ["`train.max_lr`", "Loss"]
    assert list(table) == ["Run", "`b`", "`a`"], "the best first"
    assert table["`b`"][:2] == ["`0.002`", "**3.5200**"]
    assert table["`a`"][:2] == ["`0.001`", "3.6100"]
    assert "sample.temperature" not in page, "no compared number depends on it"
    assert "run with one seed, so nothing tells a difference from the noise" in page


def test_a_failed_or_queued_experiment_has_a_row_and_never_the_numbers_of_its_base(tmp_path: Path) -> None:
    page = compared(
        tmp_path,
        [
            experiment("good", 3.6),
            experiment("bad", 3.1, state="failed", train__max_lr=9.0),
            experiment("later", 3.1, state="queued", train__max_lr=8.0),
        ],
    )
    table = rows(page)
    assert set(table["`bad` (failed)"][1:]) == {"–"}
    assert set(table["`later` (queued)"][1:]) == {"–"}
    assert "3.1000" not in page
    assert "1 failed and 1 queued besides" in page
    assert "`dvc queue logs bad`" in page
    assert "dvc exp apply bad" not in page


def test_all_failed_is_a_page_too(tmp_path: Path) -> None:
    page = compared(tmp_path, [experiment("bad", state="failed"), experiment("worse", state="failed", train__seed=2)])
    assert "0 finished runs" in page
    assert "No run has finished." in page


def seeds(position: str, losses: list[float]) -> list[Experiment]:
    return [
        experiment(f"{position}-{seed}", loss, model__position=position, train__seed=seed)
        for seed, loss in enumerate(losses, 1)
    ]


def test_a_committed_run_that_an_experiment_repeats_is_shown_once() -> None:
    own, committed = experiment("own"), experiment("main", committed=True, sample__temperature=0.1)
    assert without_copies([committed, own]) == [own]
    other = experiment("other", train__seed=2)
    assert without_copies([committed, other]) == [committed, other]


def test_different_encodings_are_compared_by_bits_per_byte(tmp_path: Path) -> None:
    page = compared(
        tmp_path,
        [
            experiment("bpe", 3.6, bpb=2.31, curves=fixtures.curves(60)),
            experiment("bytes", 1.5, bpb=2.45, tokenizer__encoding="bytes", curves=fixtures.curves(60)),
        ],
    )
    table = rows(page)
    assert list(table) == ["Run", "`bpe`", "`bytes`"]
    assert table["`bpe`"][1:3] == ["3.6000", "**2.3100**"]
    assert "**1.5000**" not in page, "a loss per token means nothing between encodings"
    assert "compare bits per byte" in page
    assert not (tmp_path / "compare/training.svg").exists()
    assert (tmp_path / "compare/validation.svg").exists()


def sizes(*millions: float) -> list[Experiment]:
    return [
        experiment(f"size-{size}", 4.0 * size**-0.07, parameters=int(size * 1e6), model__n_layer=int(size))
        for size in millions
    ]


def test_results_that_are_missing_or_no_numbers_are_dashes(tmp_path: Path) -> None:
    bare = Experiment("bare", "f" * 40, "done", PARAMS | {"train.seed": 5}, "base")
    table = rows(compared(tmp_path, [experiment("a"), experiment("nan", math.nan, train__seed=2), bare]))
    assert list(table)[1] == "`a`"
    assert table["`nan`"][1] == "–"
    assert set(table["`bare`"][1:]) == {"–"}


def test_a_kept_page_says_how_to_run_a_row_and_nothing_that_only_its_author_has(tmp_path: Path) -> None:
    runs = [
        replace(one, changed={"train.seed": one.seed, "tracking.group": "seeds"}) for one in seeds("rope", [3.5, 3.6])
    ]
    page = compared(tmp_path, runs, kept=True)
    assert "git checkout base\ndvc exp run -S train.seed=1  # rope-1\ndvc exp run -S train.seed=2  # rope-2\n" in page
    assert "exp apply" not in page
    assert "W&B" not in page, "an offline run's id leads nowhere"
    assert "tracking.group" not in page
    assert "W&B" in compared(tmp_path, runs)


def test_a_kept_page_links_the_runs_that_are_online(tmp_path: Path) -> None:
    tracked = fixtures.summary() | {"wandb": {"mode": "online", "name": "it", "url": "https://wandb.example/it"}}
    one = replace(experiment("a"), train=TrainSummary.model_validate(tracked))
    assert "[it](https://wandb.example/it)" in compared(tmp_path, [one, experiment("b", 3.7)], kept=True)


def test_a_setting_that_the_command_line_cannot_say_stands_beside_the_command(tmp_path: Path) -> None:
    one = replace(experiment("a"), changed={"data.files": ["a$b"], "train.max_lr": 0.01})
    page = compared(tmp_path, [one], kept=True)
    assert """dvc exp run -S train.max_lr=0.01  # with data.files: ["a$b"] in params.yaml  # a""" in page


def test_commit_days_and_machine_of_the_runs_are_said(tmp_path: Path) -> None:
    first, second = experiment("a"), experiment("b", 3.5, train__seed=2)
    page = compared(tmp_path, [replace(first, date="2026-11-21T07:03:47"), replace(second, date="2026-11-20T23:59:59")])
    machine = "Intel Xeon Platinum 8481C, 2 cores, bfloat16, torch 2.13.0"
    assert f"Run from commit `base`, 2026-11-20 to 2026-11-21, {machine}." in page


def test_without_times_neither_the_table_nor_a_figure_has_them(tmp_path: Path) -> None:
    runs = [experiment(name, curves=fixtures.curves(60), train__seed=seed) for seed, name in enumerate("ab")]
    assert "Time" in rows(compared(tmp_path, runs))["Run"]
    assert "Time" not in rows(compared(tmp_path, runs, times=False))["Run"]
    figure = comparison_figures(configurations(runs), LOSS, 0.9, times=False)[0]
    assert len(comparison_figures(configurations(runs), LOSS, 0.9)[0].panels) == 1 + len(figure.panels)


def test_words_are_aligned_to_the_left_and_numbers_to_the_right(tmp_path: Path) -> None:
    page = compared(tmp_path, [*seeds("rope", [3.5]), *seeds("learned", [3.6])])
    assert "| Run | `model.position` | Loss |" in page
    assert "| --- | --- | ---: |" in page
