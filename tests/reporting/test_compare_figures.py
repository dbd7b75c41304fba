"""What the figures of a comparison hold: means before runs, the end larger, a law only where there is one."""

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from pipeline.reporting.comparison.experiments import Experiment
from pipeline.reporting.comparison.figures import comparison_figures
from pipeline.reporting.comparison.groups import BITS, LOSS, configurations
from pipeline.reporting.comparison.scaling import fitted

from . import fixtures
from .test_compare import compared, experiment, rows, seeds, sizes


def curve(*losses: float, tokens: tuple[int, ...] = (100, 200, 300, 400)) -> pd.DataFrame:
    """Validation losses at some tokens; the time is a tenth of them in seconds."""
    kept = tokens[: len(losses)]
    frame = {"step": kept, "tokens": kept, "time_s": [token / 10 for token in kept], "val/loss": losses}
    return pd.DataFrame(frame).assign(event="")


def drawn(
    experiments: list[Experiment], times: bool = True
) -> tuple[list[tuple[str, str, list[float], list[float]]], ...]:
    """(name, style, x, y) of each line in each panel of the validation figure."""
    figure = comparison_figures(configurations(experiments), LOSS, 0.0, times)[0]
    return tuple(
        [(line.name, line.style, line.x.tolist(), line.y.tolist()) for line in panel.series] for panel in figure.panels
    )


def test_the_mean_of_each_configuration_stands_in_front_of_its_runs() -> None:
    first, second = (curve(4.0, 3.0, 2.0, 1.0), curve(6.0, 5.0, 4.0, 3.0))
    runs = [replace(one, curves=frame) for one, frame in zip(seeds("rope", [3, 3]), (first, second), strict=True)]
    tokens, end, time = drawn([*runs, replace(experiment("x", model__position="learned"), curves=first)])
    assert [(name, style) for name, style, _, _ in tokens] == [
        ("", "faint"),
        ("", "faint"),
        ("position=rope", "line"),
        ("position=learned", "line"),
    ]
    assert tokens[2][3] == [5.0, 4.0, 3.0, 2.0]
    assert end[2][2:] == ([300, 400], [3.0, 2.0]), "the last third, from 267 on"
    assert time[2][2] == [10, 20, 30, 40]


def test_a_mean_is_over_the_tokens_that_all_runs_reached() -> None:
    runs = seeds("rope", [3, 3])
    short = [replace(runs[0], curves=curve(4.0, 3.0)), replace(runs[1], curves=curve(6.0, 5.0, 4.0, 3.0))]
    assert drawn(short)[0][2][2:] == ([100, 200], [5.0, 4.0])
    nan = [replace(runs[0], curves=curve(4.0, float("nan"), 2.0)), short[1]]
    assert drawn(nan)[0][2][2:] == ([100, 300], [5.0, 3.0]), "values are averaged at the same tokens"
    apart = [replace(runs[0], curves=curve(4.0, tokens=(7,))), short[1]]
    assert [style for _, style, _, _ in drawn(apart)[0]] == ["faint", "faint"]


def test_the_axis_has_its_unit_and_the_words_their_numbers() -> None:
    runs = [replace(experiment("x", train__max_lr=rate), curves=curve(5, 4, 3, rate)) for rate in (1.5, 2.25)]
    figure = comparison_figures(configurations(runs), LOSS, 0.0)[0]
    assert figure.panels[0].y.label == "validation loss (nats per token)"
    assert figure.alt == (
        "Validation loss over tokens, 2 configurations: ends between 1.500 (max_lr=1.5) and 2.250 (max_lr=2.25)."
    )
    assert comparison_figures(configurations(runs[:1]), LOSS, 0.0)[0].alt.endswith(
        "tokens: ends at 1.500 (the one configuration)."
    )


def test_the_page_says_of_what_part_the_curves_are(tmp_path: Path) -> None:
    runs = [experiment(name, curves=fixtures.curves(30), train__seed=seed) for seed, name in enumerate("ab")]
    assert "Validation curves show" in compared(
        tmp_path, [replace(one, params={**one.params, "train.eval_tokens": 32_768}) for one in runs]
    )
    page = compared(tmp_path, [replace(one, params={**one.params, "train.eval_tokens": 61_234}) for one in runs])
    assert "Validation curves show" not in page, "they show all of it"


def test_more_configurations_than_colours_are_drawn_in_part_and_told_in_full(tmp_path: Path) -> None:
    many = [experiment(f"e{n}", 3.5 + n / 100, curves=fixtures.curves(30), train__max_lr=n / 1e3) for n in range(1, 12)]
    page = compared(tmp_path, many)
    assert "The 8 best of 11 configurations are drawn." in page
    assert len(rows(page)) == 12


def test_from_four_sizes_on_the_power_law_is_fitted_and_recovered(tmp_path: Path) -> None:
    page = compared(tmp_path, sizes(1, 2, 4, 8))
    text = r"Fitted to the best configuration at each of 4 sizes: validation loss = [\d.]+ · C\^-0\.0700 "
    assert re.search(text, page)
    assert "R² 1.000" in page
    assert (tmp_path / "compare/compute.svg").exists()


def test_with_fewer_sizes_there_is_a_scatter_without_a_law_and_with_one_size_none(tmp_path: Path) -> None:
    assert "A power law is fitted from four model sizes on;" in compared(tmp_path, sizes(1, 2, 4))
    assert "Loss against compute" not in compared(tmp_path, seeds("rope", [3.5, 3.6]))
    assert "Loss against compute" not in compared(tmp_path, sizes(1, 1.01)), "another norm is no other size"


def test_sizes_that_differ_by_an_activation_are_one_size() -> None:
    assert fitted(configurations(sizes(2.66, 2.65, 7.40, 7.38)), LOSS) is None
    assert fitted(configurations(sizes(1, 2, 4, 8)), LOSS) is not None


def test_a_setting_that_is_bad_at_one_size_does_not_bend_the_law() -> None:
    bad = experiment("bad", 5.0, parameters=8_000_000, model__n_layer=8, train__max_lr=1.0)
    fit = fitted(configurations([*sizes(1, 2, 4, 8), bad]), LOSS)
    assert fit is not None
    assert fit.law.exponent == pytest.approx(-0.07)


@pytest.mark.parametrize("losses", [(3.0, 3.1, 3.2, 3.3), (3.4, 3.0, 3.5, 3.2)])
def test_a_loss_that_does_not_fall_with_compute_is_no_power_law(tmp_path: Path, losses: tuple[float, ...]) -> None:
    runs = [
        experiment(f"s{size}", loss, parameters=size * 10**6, model__n_layer=size)
        for size, loss in zip((1, 2, 4, 8), losses, strict=True)
    ]
    page = compared(tmp_path, runs)
    assert "No power law describes these runs" in page
    assert "Fitted" not in page
    figure = comparison_figures(configurations(runs), LOSS, 0.0)[-1]
    assert [series.name for series in figure.panels[0].series] == ["runs"]


def test_bits_per_byte_have_no_unit_besides() -> None:
    assert BITS.axis == "bits per byte"
