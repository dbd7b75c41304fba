"""A rank that dies is restarted, and a run resumes on another number of ranks."""

import math
from typing import Any

import pytest

from tests.faults.conftest import Begin
from tests.faults.small import same


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_restarts_killed_ranks_and_they_resume(begin: Begin, whole_on_two: dict[str, Any], rank: int) -> None:
    """Rank 0 holds the lock on the run and its W&B run; its successor takes them over."""
    run = begin(tracking={"mode": "offline"})
    run.train(f"kill@13:{rank}", ranks=2, MAX_RESTARTS="1")
    assert run.resumed_at() == [12]
    assert same(run.result(), whole_on_two)
    assert len(list(run.path.glob("wandb/offline-run-*"))) == 1  # the successor's, with all rows


@pytest.mark.slow
def test_a_run_resumes_on_two_ranks_after_one_and_on_one_after_two(begin: Begin) -> None:
    """Without dropout only the order of floating-point additions differs."""
    alone, run = begin("alone", model={"dropout": 0.0}), begin(model={"dropout": 0.0})
    alone.train()
    run.train("term@7", ok=False)
    run.train("term@15:1", ok=False, ranks=2)
    run.train()
    assert len(run.resumed_at()) == 2
    curve = run.curve()
    assert len(curve) == 25
    for mine, other in zip(curve[1:], alone.curve()[1:], strict=True):
        assert mine["tokens"] == other["tokens"]
        for name in ("train/loss", "train/grad_norm", "train/lr"):
            assert math.isclose(float(mine[name]), float(other[name]), rel_tol=1e-4), (mine["step"], name)
