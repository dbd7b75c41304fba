"""A rank that dies or fails."""

from typing import Any

import pytest

from tests.faults.conftest import Begin
from tests.faults.small import same


@pytest.mark.slow
def test_torchrun_restarts_killed_ranks_and_they_resume(begin: Begin, whole_on_two: dict[str, Any]) -> None:
    """Rank 0 holds the lock on the run and its W&B run; its successor takes them over."""
    run = begin(tracking={"mode": "offline"})
    run.train("kill@13:0", ranks=2, MAX_RESTARTS="1")
    assert run.resumed_at() == [12]
    assert same(run.result(), whole_on_two)
    assert len(list(run.path.glob("wandb/offline-run-*"))) == 1  # the successor's, with all rows


@pytest.mark.slow
def test_a_rank_that_fails_says_why_and_is_restarted_in_seconds(begin: Begin, whole_on_two: dict[str, Any]) -> None:
    run = begin()
    output = run.train("raise@13:1", ranks=2, MAX_RESTARTS="1").output
    assert "RuntimeError: no such kernel" in output
    assert "forcefully exiting" not in output  # which torchrun says of a rank that it kills, after 30 s
    assert run.resumed_at() == [12]
    assert same(run.result(), whole_on_two)
