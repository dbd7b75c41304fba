"""SIGKILL: the run goes on from its newest checkpoint and ends as one never killed, bit for bit."""

import shutil
from typing import Any

import pytest

from tests.faults import kills
from tests.faults.conftest import Begin
from tests.faults.small import same


def test_a_killed_run_ends_with_the_weights_optimizer_and_curves_of_one_never_killed(
    begin: Begin, whole: dict[str, Any]
) -> None:
    """Dropout is on, the optimizer is Muon beside AdamW, probes are taken; 12 steps, SIGKILL, 12 steps.

    In between, a run of another configuration begins in the same directory, which takes up nothing of it.
    """
    run = begin()
    assert run.train("kill@13", ok=False).code == -9
    run.set(train={"seed": 2})
    assert "resuming" not in run.train().output
    assert not same(run.curve(), whole["curve"])
    (finished,) = run.path.glob(".runs/*/finished.json")
    shutil.rmtree(finished.parent)
    run.set()
    assert "resuming after step 12 of 24" in run.train().output
    assert same(run.result(), whole)
    assert [row["step"] for row in run.curve()] == [str(step) for step in range(25)]


@pytest.mark.slow
def test_a_compiled_run_that_was_killed_ends_as_one_never_killed(begin: Begin) -> None:
    compiled = {"compile": "on"}
    never_killed = begin("never", runtime=compiled)
    never_killed.train()
    run = begin("killed", runtime=compiled)
    run.train("kill@13", ok=False)
    output = run.train().output
    assert "resuming after step 12 of 24" in output
    assert "without torch.compile" not in output
    assert same(run.result(), never_killed.result())


@pytest.mark.slow
def test_kills_at_random_times_change_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """The script of docs/resilience.md, with fewer kills."""
    assert kills.main(["--kills", "2", "--seed", "2"]) == 0
    assert capsys.readouterr().out.count("| equal, bit for bit |") == 3
