"""Charts: means in front of runs, the end enlarged, a scaling law only if there is one."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.charts import pages
from pipeline.charts.specs import Chart
from pipeline.comparison import figures
from pipeline.comparison.configurations import BITS_PER_BYTE, LOSS, configurations
from pipeline.comparison.experiments import Run
from pipeline.comparison.scaling import scaling_fit
from tests.reporting import fixtures
from tests.reporting.test_charts import layers

from .builders import run, scaling_runs, seeds
from .builders import validation_curve as curve


def lines(*runs: Run) -> dict[tuple[str, str], list[tuple[float, float, float]]]:
    """(configuration, run) to the points (tokens, seconds, value) of the validation chart."""
    frame = figures.curves(configurations(runs, LOSS), lambda run: figures.curve(run, "val/loss"))
    return {
        (str(series), str(name)): list(zip(line["tokens"], line["seconds"], line["y"], strict=True))
        for (series, name), line in frame.groupby(["series", "run"], sort=False)
    }


def charts(runs: list[Run], times: bool = True, metric: Any = LOSS) -> dict[str, Chart]:
    drawn = figures.comparison_charts(configurations(runs, metric), metric, 0.9, times)
    return {chart.name: chart for chart in drawn}


def panels(chart: Chart) -> list[str]:
    """The titles of the x axes."""
    spec = chart.to_dict()
    return [panel["layer"][0]["encoding"]["x"]["axis"]["title"] for panel in spec["hconcat"]]


def test_a_mean_is_over_runs_and_a_single_run_is_its_own() -> None:
    drawn = lines(
        run("a", 3.0, curves=curve(4.0, 3.0), model__position="rope", train__seed=1),
        run("b", 3.0, curves=curve(6.0, 5.0), model__position="rope", train__seed=2),
        run("c", 3.5, curves=curve(9.0, 8.0), model__position="learned"),
    )
    assert drawn == {
        ("position=rope", "0"): [(100, 10, 4.0), (200, 20, 3.0)],
        ("position=rope", "1"): [(100, 10, 6.0), (200, 20, 5.0)],
        ("position=rope", ""): [(100, 10, 5.0), (200, 20, 4.0)],
        ("position=learned", ""): [(100, 10, 9.0), (200, 20, 8.0)],
    }


@pytest.mark.parametrize(
    ("first", "mean"),
    [
        (curve(4.0, 3.0), [(100, 10, 5.0), (200, 20, 4.0)]),
        (curve(4.0, np.nan, 2.0), [(100, 10, 5.0), (300, 30, 3.0)]),
        (curve(4.0, tokens=(7,)), []),
    ],
)
def test_a_mean_is_over_the_tokens_at_which_all_runs_have_a_value(
    first: pd.DataFrame, mean: list[tuple[float, float, float]]
) -> None:
    drawn = lines(run("a", curves=first), run("b", curves=curve(6.0, 5.0, 4.0, 3.0), train__seed=2))
    assert drawn.get(("the only configuration", ""), []) == mean
    assert len(drawn) == 2 + bool(mean)


def test_panels_over_tokens_their_end_and_time() -> None:
    runs = [run(name, curves=fixtures.curves(60), train__max_lr=rate) for rate, name in enumerate("ab")]
    found = charts(runs)
    assert list(found) == ["validation", "training"]
    assert panels(found["validation"]) == ["tokens", "tokens, last third", "training time (seconds)"]
    assert panels(charts(runs, times=False)["validation"]) == ["tokens", "tokens, last third"]
    assert found["validation"].series == ["max_lr=0", "max_lr=1"]


def test_the_second_panel_starts_at_two_thirds_of_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    lines = figures.lines
    monkeypatch.setattr(figures, "lines", lambda frame, *rest: drawn.append(list(frame["x"])) or lines(frame, *rest))
    charts([run("a", curves=curve(4.0, 3.0, 2.0, 1.0))])
    assert drawn == [[100, 200, 300, 400], [300, 400], [10, 20, 30, 40]]


def test_no_training_curves_where_losses_are_not_comparable() -> None:
    runs = [run(name, curves=fixtures.curves(60), tokenizer__encoding=name) for name in ("bpe", "bytes")]
    assert list(charts(runs, metric=BITS_PER_BYTE)) == ["validation"]


def test_without_curves_there_is_no_chart() -> None:
    assert charts([run("a", curves=curve())]) == {}


def test_all_runs_are_drawn_and_those_without_a_colour_are_others() -> None:
    runs = [run(f"r{n}", 3.5 + n / 100, curves=curve(5, 4, 3, 2), train__max_lr=n / 1e3) for n in range(8)]
    assert charts(runs)["validation"].series == [f"max_lr={n / 1e3}" for n in range(8)]
    runs += [run(f"r{n}", 5.0, curves=curve(5, 4, 3, 2), train__max_lr=n / 1e3) for n in range(8, 11)]
    runs.append(run("main", 9.0, curves=curve(5), train__max_lr=1.0, committed=True))
    chart = charts(runs)["validation"]
    colored = ["max_lr=1.0", *(f"max_lr={n / 1e3}" for n in range(6))]  # the committed run comes first
    assert chart.series == [*colored, "5 others"]
    others, best, single, hover = layers(chart.to_dict())[:4]
    assert {row["name"] for row in others["values"]} == {f"max_lr={n / 1e3}" for n in range(6, 11)}
    assert {row["name"] for row in best["values"]} == set(colored)
    assert [row["name"] for row in single["values"]] == ["max_lr=1.0"], "a single point is no line"
    assert len({row["name"] for row in hover["values"]}) == 12


def test_labels_fit_the_legend() -> None:
    changes = {"model__position": "sinusoidal", "model__norm": "rmsnorm", "model__mlp": "relu_squared"}
    runs = [run("a", curves=curve(5, 4), **changes, train__max_lr=0.00125), run("b", curves=curve(5, 4))]
    label = "position=sinusoidal,norm=rmsnorm,mlp=relu_squared,max_lr=0.00125".replace(",", ", ")
    assert label in pages.svg(charts(runs)["validation"], pages.LIGHT)


def test_a_panel_of_the_end_needs_runs_of_one_length() -> None:
    runs = [run("short", curves=curve(5, 4), train__max_lr=1), run("long", curves=curve(5, 4, 3, 2))]
    assert panels(charts(runs)["validation"]) == ["tokens", "training time (seconds)"]


def test_the_alternative_text_has_the_ends_of_the_curves() -> None:
    runs = [run(f"x{end}", train__max_lr=end, curves=curve(5, 4, 3, end)) for end in (1.5, 2.25)]
    alt = charts(runs)["validation"].alt
    assert "1.500 (max_lr=1.5)" in alt
    assert "2.250 (max_lr=2.25)" in alt


def test_loss_against_compute_has_the_fit_where_there_is_one() -> None:
    groups = configurations(scaling_runs(), LOSS)
    drawn = figures.comparison_charts(groups, LOSS, 0.9, scaling=scaling_fit(groups))
    compute, residuals = (chart for chart in drawn if chart.name in ("compute", "residuals"))
    assert compute.series == ["runs", "compute-optimal by the fit"]
    assert residuals.series == ["1.00 M parameters", "2.00 M parameters", "4.00 M parameters"]
    assert charts(scaling_runs())["compute"].series == ["runs"]
    assert "compute" not in charts(seeds("rope", [3.5, 3.6]))
    other_norm = [run(name, parameters=size, model__norm=name) for name, size in (("a", 10**6), ("b", 1_010_000))]
    assert "compute" not in charts(other_norm), "another norm is not another size"
