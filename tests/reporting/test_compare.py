"""Experiments side by side: what is told of one, many, failed, repeated, differently encoded, or no experiments."""

import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.reporting.compare import without_copies, write_comparison
from pipeline.reporting.comparison import statistics
from pipeline.reporting.comparison.experiments import Experiment
from pipeline.reporting.comparison.groups import configurations, differing_keys
from pipeline.reporting.figure import floats
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


def compared(root: Path, experiments: list[Experiment]) -> str:
    return (root / write_comparison(root, experiments, "A question", 0.9)).read_text(encoding="utf-8")


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


def test_seeds_are_averaged_and_a_clear_difference_is_called_one(tmp_path: Path) -> None:
    page = compared(tmp_path, seeds("rope", [3.50, 3.51, 3.52]) + seeds("learned", [3.60, 3.61, 3.62]))
    table = rows(page, "Configurations")
    assert table["`position=rope`"][:2] == ["3", "3.5100 ± 0.0058"]
    assert "`position=learned` is above `position=rope` in validation loss by 0.1000 ± 0.0082: **larger than" in page
    assert "t = 12.2, 4.0 degrees of freedom, p < 0.001" in page


def test_a_difference_within_the_noise_is_called_that(tmp_path: Path) -> None:
    page = compared(tmp_path, seeds("rope", [3.50, 3.54, 3.58]) + seeds("learned", [3.51, 3.55, 3.60]))
    assert "not larger than its noise" in page
    assert "**larger" not in page


def test_a_configuration_run_once_beside_repeated_ones_cannot_be_weighed(tmp_path: Path) -> None:
    page = compared(tmp_path, seeds("rope", [3.50, 3.51]) + seeds("alibi", [3.4]))
    assert "`position=alibi` is below `position=rope`" in page
    assert "was run once: this cannot be held against its noise" in page


def test_the_same_seed_run_twice_is_no_second_seed() -> None:
    found = [*seeds("rope", [3.5]), *seeds("rope", [3.5])]
    (group,) = configurations(found, differing_keys(found))
    mean = group.mean("val.loss")
    assert mean is not None
    assert mean.n == 1


def test_a_committed_run_that_an_experiment_repeats_is_shown_once() -> None:
    own, committed = experiment("own"), experiment("main", committed=True, sample__temperature=0.1)
    assert without_copies([committed, own]) == [own]
    other = experiment("other", train__seed=2)
    assert without_copies([committed, other]) == [committed, other]


def test_the_committed_configuration_is_the_reference_when_it_has_seeds(tmp_path: Path) -> None:
    learned = [experiment("main", 3.60, committed=True), *seeds("learned", [3.60, 3.61, 3.62])[1:]]
    page = compared(tmp_path, learned + seeds("rope", [3.50, 3.51, 3.52]))
    assert "`position=rope` is below `position=learned`" in page
    assert "`main` (committed)" in page
    assert "git checkout 0123456789" in page


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


def test_settings_that_change_the_measurement_are_pointed_out(tmp_path: Path) -> None:
    page = compared(tmp_path, [experiment("a"), experiment("b", data__source="files")])
    assert "The runs differ in `data.source`: they may have been measured on different text" in page


def sizes(*millions: float) -> list[Experiment]:
    return [
        experiment(f"size-{size}", 4.0 * size**-0.07, parameters=int(size * 1e6), model__n_layer=int(size))
        for size in millions
    ]


def test_from_four_sizes_on_the_power_law_is_fitted_and_recovered(tmp_path: Path) -> None:
    page = compared(tmp_path, sizes(1, 2, 4, 8))
    assert re.search(r"Fitted to 4 runs: validation loss = [\d.]+ · C\^-0\.0700 ", page)
    assert "R² 1.000" in page
    assert (tmp_path / "compare/compute.svg").exists()


def test_with_fewer_sizes_there_is_a_scatter_without_a_law_and_with_one_size_none(tmp_path: Path) -> None:
    assert "A power law is fitted from four model sizes on." in compared(tmp_path, sizes(1, 2, 4))
    assert "Loss against compute" not in compared(tmp_path, seeds("rope", [3.5, 3.6]))
    assert "Loss against compute" not in compared(tmp_path, sizes(1, 1.01)), "another norm is no other size"


def test_results_that_are_missing_or_no_numbers_are_dashes(tmp_path: Path) -> None:
    bare = Experiment("bare", "f" * 40, "done", PARAMS | {"train.seed": 5}, "base")
    table = rows(compared(tmp_path, [experiment("a"), experiment("nan", math.nan, train__seed=2), bare]))
    assert list(table)[1] == "`a`"
    assert table["`nan`"][1] == "–"
    assert set(table["`bare`"][1:]) == {"–"}


def test_more_configurations_than_colours_are_drawn_in_part_and_told_in_full(tmp_path: Path) -> None:
    many = [experiment(f"e{n}", 3.5 + n / 100, curves=fixtures.curves(30), train__max_lr=n / 1e3) for n in range(1, 12)]
    page = compared(tmp_path, many)
    assert "The 8 best of 11 configurations are drawn." in page
    assert len(rows(page)) == 12


def test_student_s_distribution_and_holm_s_correction_match_the_tables() -> None:
    for t, freedom, p in ((12.706, 1, 0.05), (2.776, 4, 0.05), (4.604, 4, 0.01), (1.960, 1e6, 0.05), (0, 3, 1.0)):
        assert statistics.two_sided_p(t, freedom) == pytest.approx(p, abs=2e-4)
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([]) == []


def test_welch_s_test_matches_a_worked_example() -> None:
    """Means 2 and 4, variances 1 and 4, three values each; p lies between the closed forms for 2 and 3 degrees."""
    apart = statistics.difference(statistics.mean([1, 2, 3]), statistics.mean([2, 4, 6]))
    assert apart is not None
    assert apart.value == -2
    assert apart.error == pytest.approx(math.sqrt(5 / 3))
    assert apart.freedom == pytest.approx((5 / 3) ** 2 / ((1 / 3) ** 2 / 2 + (4 / 3) ** 2 / 2))
    t = 2 / math.sqrt(5 / 3)
    of_two = 1 - t / math.sqrt(2 + t * t)
    of_three = 1 - 2 / math.pi * (math.atan(t / math.sqrt(3)) + t * math.sqrt(3) / (3 + t * t))
    assert statistics.two_sided_p(t, 2) == pytest.approx(of_two, abs=1e-6)
    assert statistics.two_sided_p(t, 3) == pytest.approx(of_three, abs=1e-6)
    assert of_three < apart.p < of_two


def test_values_without_any_spread_are_equal_or_apart() -> None:
    same, other = statistics.mean([1.0, 1.0]), statistics.mean([2.0, 2.0])
    equal, apart = statistics.difference(same, same), statistics.difference(same, other)
    assert equal is not None
    assert apart is not None
    assert (equal.p, apart.p) == (1.0, 0.0)
    assert statistics.difference(same, statistics.mean([1.0])) is None
    assert statistics.power_law(floats([1, 2, 3]), floats([2, 2, 2])).exponent == pytest.approx(0)
