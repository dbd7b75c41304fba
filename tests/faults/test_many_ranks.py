"""A rank that dies is started again, and another number of ranks goes on."""

import math
from typing import Any

import pytest

from tests.faults.conftest import Begin
from tests.faults.small import same


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_starts_killed_ranks_again_and_they_resume(
    begin: Begin, whole_on_two: dict[str, Any], rank: int
) -> None:
    """The lock on the run and the W&B run are rank 0's: its successor takes them over."""
    run = begin(tracking={"mode": "offline"})
    output = run.train(f"kill@13:{rank}", ranks=2, MAX_RESTARTS="1").output
    assert "resuming after step 12 of 24" in output
    assert same(run.result(), whole_on_two)
    assert len(list(run.path.glob("wandb/offline-run-*"))) == 2


@pytest.mark.slow
def test_a_run_goes_on_with_two_ranks_after_one_and_with_one_after_two(begin: Begin) -> None:
    """With dropout off, what differs is the order of floating-point additions alone."""
    alone, run = begin("alone", model={"dropout": 0.0}), begin(model={"dropout": 0.0})
    alone.train()
    run.train("term@7", ok=False)
    output = run.train("term@15:1", ok=False, ranks=2).output
    assert "the run goes on with 2 ranks after 1" in output
    assert "the run goes on with 1 ranks after 2" in run.train().output
    curve = run.curve()
    assert len(curve) == 25
    for mine, other in zip(curve[1:], alone.curve()[1:], strict=True):
        assert mine["tokens"] == other["tokens"]
        for name in ("train/loss", "train/grad_norm", "train/lr"):
            assert math.isclose(float(mine[name]), float(other[name]), rel_tol=1e-4), (mine["step"], name)
