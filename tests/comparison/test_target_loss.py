"""Tokens and time to the loss of a reference, against numbers computed by hand."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.comparison.configurations import LOSS, configurations, containing
from pipeline.comparison.experiments import Run
from pipeline.comparison.figures import curve
from pipeline.comparison.page import page_context
from pipeline.comparison.target_loss import Cost, TargetLoss, first_reached, target_loss
from pipeline.log import UserError
from tests.reporting import fixtures

from .builders import run, seeds, validation_curve


def reached(frame: pd.DataFrame, loss: float) -> tuple[float, float] | None:
    return first_reached(curve(run("a", curves=frame), "val/loss"), loss)


@pytest.mark.parametrize(
    ("losses", "loss", "tokens"),
    [
        ((8.0, 6.0, 5.0), 6.5, 175.0),  # three quarters of the way from 100 to 200
        ((8.0, 6.0, 5.0), 5.0, 300.0),
        ((8.0, 6.0, 5.0), 9.0, 100.0),
        ((8.0, 6.0, 5.0), 4.9, None),
        ((8.0, 6.0, 7.0, 5.0), 6.5, 175.0),  # the first time counts
        ((8.0, np.nan, 6.0), 7.0, 200.0),  # not measured at 200: linear from 100 to 300
    ],
)
def test_the_loss_is_reached_between_evaluations(losses: Any, loss: float, tokens: float | None) -> None:
    assert reached(validation_curve(*losses), loss) == (tokens and pytest.approx((tokens, tokens / 10)))


def test_time_starts_at_step_0_which_has_none_recorded() -> None:
    frame = validation_curve(8.0, 6.0, tokens=(0, 200))
    frame.loc[0, "time_s"] = np.nan
    assert reached(frame, 7.0) == pytest.approx((100.0, 10.0))


def test_rows_that_a_resumed_run_has_twice_change_nothing() -> None:
    frame = validation_curve(8.0, 6.0, 6.0, 5.0, tokens=(100, 200, 200, 300))
    assert reached(frame, 6.0) == pytest.approx((200.0, 20.0))
    assert reached(frame, 5.5) == pytest.approx((250.0, 25.0))


def study() -> list[Run]:
    """AdamW ends with 5.0, 5.2 and 5.4 at 400 tokens, Muon gets there at 200, 250 and 200, and a third never always."""
    ends = {"adamw": (5.0, 5.2, 5.4), "muon": (5.0, 5.2, 5.4), "sgd": (5.0, 9.0, 9.0)}
    curves = {
        "adamw": lambda seed, end: validation_curve(8.0, 7.0, 6.0, end),
        "muon": lambda seed, end: validation_curve(8.0, *((end + 0.5, end - 0.5) if seed == 2 else (end, end)), 4.0),
        "sgd": lambda seed, end: validation_curve(9.0, 9.0, 9.0, end),
    }
    return [
        run(f"{name}-{seed}", end, curves=curves[name](seed, end), train__optimizer=name, train__seed=seed)
        for name in ends
        for seed, end in enumerate(ends[name], 1)
    ]


def result(runs: list[Run], reference: str) -> TargetLoss:
    groups = configurations(runs, LOSS)
    found = target_loss(groups, containing(groups, reference), LOSS)
    assert found is not None
    return found


def costs(runs: list[Run], reference: str) -> dict[str, Cost]:
    return {cost.configuration.runs[0].name: cost for cost in result(runs, reference).costs}


def test_tokens_and_time_are_ratios_to_the_run_of_the_same_seed() -> None:
    found = costs(study(), "adamw-2")
    assert result(study(), "adamw-2").loss.value == pytest.approx(5.2)
    muon, adamw, sgd = found["muon-1"], found["adamw-1"], found["sgd-1"]
    assert (muon.tokens.value, muon.seconds.value) == pytest.approx((650 / 3, 65 / 3))
    assert muon.tokens_ratio.value == muon.seconds_ratio.value == pytest.approx((0.5 + 0.625 + 0.5) / 3)
    assert muon.tokens_ratio.error == pytest.approx(np.std([0.5, 0.625, 0.5], ddof=1) / math.sqrt(3))
    assert (adamw.tokens_ratio.value, adamw.tokens_ratio.error) == (1, 0)
    assert (sgd.reached, sgd.seeds) == (1, 3)
    assert math.isnan(sgd.tokens.value), "a mean over the seeds that reach it would be too optimistic"


def test_seeds_that_the_reference_lacks_are_left_out() -> None:
    runs = [one for one in study() if one.name not in ("adamw-1", "adamw-3", "sgd-2")]
    found = costs(runs, "adamw-2")
    assert (found["muon-1"].tokens.value, found["muon-1"].seeds) == (250, 1)
    assert (found["sgd-1"].seeds, found["sgd-1"].reached) == (0, 0)
    assert math.isnan(found["sgd-1"].tokens_ratio.value)


def test_the_reference_is_the_committed_run_or_the_named_one() -> None:
    runs = [*study(), run("main", 5.0, curves=validation_curve(8.0, 7.0, 6.0, 5.0), committed=True, train__seed=1)]
    assert page_context(runs)["targets"][0].reference.committed
    assert page_context(runs, reference="muon-3")["targets"][0].reference.runs[0].name == "muon-1"
    assert page_context(runs, reference="muon-3")["significance"].reference.runs[0].name == "muon-1"
    assert page_context(study())["targets"] == []
    with pytest.raises(UserError, match=r"--reference sgd-4: .*sgd-3"):
        page_context(runs, reference="sgd-4")


def test_curves_of_different_tokens_are_not_compared() -> None:
    other = run("other", 5.0, curves=validation_curve(8.0, 4.0), train__eval_tokens=1024)
    assert page_context([*study(), other], reference="adamw-1")["targets"] == []
    other = run("other", 5.0, curves=validation_curve(8.0, 4.0), tokenizer__vocab_size=512)
    assert page_context([*study(), other], reference="adamw-1")["targets"] == []
    assert page_context(seeds("rope", [3.5, 3.6]), reference="rope-1")["targets"] == []


def test_the_table_has_times_only_of_one_machine_and_dashes_for_what_is_never_reached() -> None:
    lines = result(study(), "adamw-1").table(timed=True).split("\n")
    assert lines[0] == "| Configuration | Seeds | Tokens | Ratio | Time | Ratio |"
    assert "| `optimizer=muon` | 3 | 217 ± 17 | 0.542 ± 0.042 | 22 s ± 1.7 s | 0.542 ± 0.042 |" in lines
    assert "| `optimizer=sgd` | 1 of 3 | – | – | – | – |" in lines
    gpu = run("gpu", summary={"hardware": fixtures.hardware(device="cuda")}, train__optimizer="lion")
    for runs, times in ((study(), False), ([*study(), gpu], True)):
        context = page_context(runs, times=times, reference="adamw-1")
        table = context["targets"][0].table(context["timed"])
        assert table.startswith("| Configuration | Seeds | Tokens | Ratio |\n")
