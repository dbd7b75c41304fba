"""The scaling law: known parameters are recovered from made-up runs, and too few runs have none."""

from typing import Any

import numpy as np
import pytest

from pipeline.comparison.configurations import LOSS, configurations
from pipeline.comparison.experiments import Run
from pipeline.comparison.scaling import ScalingFit, fit_law, scaling_fit

from .builders import run, scaling_loss, scaling_runs

SIZES, STEPS = (1e6, 2e6, 4e6, 8e6), (300, 600, 1200)
TRUTH = {"E": 2.5, "A": 60.0, "alpha": 0.34, "B": 200.0, "beta": 0.4}


def fitted(runs: list[Run]) -> ScalingFit:
    fit = scaling_fit(configurations(runs, LOSS))
    assert fit is not None
    return fit


@pytest.fixture(scope="module")
def exact() -> ScalingFit:
    return fitted(scaling_runs(SIZES, STEPS))


@pytest.fixture(scope="module")
def noisy() -> ScalingFit:
    """Noise as of a mean over seeds of the default model: 0.2 % of the loss."""
    return fitted(scaling_runs(SIZES, STEPS, noise=0.002))


def test_known_parameters_are_recovered(exact: ScalingFit) -> None:
    assert exact.law.model_dump() == pytest.approx(TRUTH, rel=1e-3)
    assert exact.r2 == pytest.approx(1)
    assert len(exact.points) == 12
    assert exact.flops_per_product == pytest.approx(6.4)
    assert exact.predict(3e6, 2e6) == pytest.approx([scaling_loss(3e6, 2e6)] * 3, rel=1e-4)


def test_the_intervals_cover_the_truth(noisy: ScalingFit) -> None:
    for name, (low, high) in noisy.intervals.items():
        assert low < TRUTH[name] < high, name
        assert low < getattr(noisy.law, name) < high
    for parameters, tokens in ((2e6, 1.2e6), (2.4e7, 7e6)):
        loss, low, high = noisy.predict(parameters, tokens)
        assert low < scaling_loss(parameters, tokens) < high
        assert low < loss < high


def test_predictions_are_less_certain_further_away(noisy: ScalingFit) -> None:
    near, far = (noisy.predict(*point) for point in ((4e6, 1.2e6), (4e7, 1.2e7)))
    assert far[2] - far[1] > 2 * (near[2] - near[1])
    assert near[2] - near[1] > 0.002 * near[0], "no run is more certain than its seed"


def test_outliers_count_little(exact: ScalingFit) -> None:
    first, *others = exact.points
    law = fit_law([first.model_copy(update={"loss": 1.05 * first.loss}), *others])
    for point in others:
        assert law.loss(point.parameters, point.tokens) == pytest.approx(point.loss, rel=1e-3)


def test_the_best_use_of_compute_is_the_lowest_loss_on_a_grid(exact: ScalingFit) -> None:
    (parameters, *_), (tokens, *_), (loss, low, high) = exact.optimum(6.4 * 2e6 * 2e6)
    assert parameters * tokens == pytest.approx(2e6 * 2e6)
    grid = np.geomspace(1e4, 1e8, 4001)
    assert parameters == pytest.approx(grid[scaling_loss(grid, 2e6 * 2e6 / grid).argmin()], rel=5e-3)
    assert loss == pytest.approx(scaling_loss(parameters, tokens), rel=1e-4)
    assert low <= loss <= high


def test_smaller_runs_predict_the_larger_ones(exact: ScalingFit) -> None:
    held_out = exact.held_out()
    assert held_out is not None
    assert held_out[0] == pytest.approx(4)
    assert held_out[1] == pytest.approx([0] * 3, abs=1e-4)
    assert fitted(scaling_runs()).held_out() is None, "of nine, too few are left"


@pytest.mark.parametrize(
    ("parameters", "tokens", "what"),
    [
        (3e6, 1e6, None),
        (7.9e7, 2.4e6, None),
        (8.1e7, 7e5, "parameters"),
        (0.9e5, 1e6, "parameters"),
        (3e6, 2.5e7, "tokens"),
        (3e6, 6e4, "tokens"),
        (5e7, 2e7, "parameters * tokens"),
    ],
)
def test_how_far_the_fit_reaches(exact: ScalingFit, parameters: float, tokens: float, what: str | None) -> None:
    assert exact.beyond(parameters, tokens) == what


def test_the_file_predicts_what_the_fit_does(noisy: ScalingFit) -> None:
    read = ScalingFit.parse(noisy.model_dump_json(), "scaling.json")
    assert read == noisy
    assert read.predict(1e7, 1e7) == noisy.predict(1e7, 1e7)


def test_a_recipe_is_what_size_length_and_learning_rate_leave(exact: ScalingFit) -> None:
    assert exact.recipe["model.position"] == "learned"
    assert exact.recipe["tokenizer.vocab_size"] == 4096
    assert {"model.n_layer", "train.max_steps", "train.max_lr", "train.seed"}.isdisjoint(exact.recipe)
    assert not [key for key in exact.recipe if key.startswith(("sample.", "report.", "benchmarks.", "runtime."))]


def with_losses(runs: list[Run], loss: float, **params: Any) -> list[Run]:
    """The same runs with another loss and other settings."""
    return [
        run(
            f"{one.name}-{loss}",
            loss,
            parameters=one.summary.parameters.total,
            summary={"tokens": one.summary.tokens},
            model__n_layer=one.params["model.n_layer"],
            train__max_steps=one.params["train.max_steps"],
            **params,
        )
        for one in runs
    ]


def test_the_best_configuration_of_each_combination_counts(exact: ScalingFit) -> None:
    runs = scaling_runs(SIZES, STEPS)
    assert fitted([*with_losses(runs, 5.0, train__max_lr=0.1), *runs]).points == exact.points


def test_the_law_is_of_one_recipe_the_best_that_has_enough_runs() -> None:
    better = run("better", 2.0, model__position="rope")
    fit = fitted([better, *scaling_runs(model__position="alibi"), *with_losses(scaling_runs(), 5.0)])
    assert len(fit.points) == 9
    assert fit.recipe["model.position"] == "alibi"


@pytest.mark.parametrize(
    "runs",
    [
        [],
        scaling_runs(sizes=(1e6, 2e6)),
        scaling_runs(steps=(300, 600)),
        scaling_runs()[:-1],
        scaling_runs(sizes=(1e6, 1.05e6, 2e6)),
        with_losses(scaling_runs(), 3.0),
    ],
)
def test_too_few_or_equal_runs_have_no_law(runs: list[Run]) -> None:
    assert scaling_fit(configurations(runs, LOSS)) is None
