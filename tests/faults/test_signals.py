"""SIGTERM and SIGINT: all ranks stop after the same step, save a whole checkpoint, and exit non-zero."""

from typing import Any

import pytest

from tests.faults.conftest import Begin
from tests.faults.small import Ended, SmallRun, same

LIMIT_S = 60.0  # a process that hangs on a signal is killed, and the test fails


def stopped(run: SmallRun, *faults: str, ranks: int = 1) -> Ended:
    """Trains until a signal ends it, leaving only whole checkpoints."""
    ended = run.train(*faults, ok=False, ranks=ranks, timeout_s=LIMIT_S)
    assert "Traceback" not in ended.output
    assert all(name.startswith("step_") for name in run.checkpoints()), run.checkpoints()
    return ended


@pytest.mark.slow
def test_two_ranks_stop_together_on_signals_to_one_rank_and_to_torchrun(
    begin: Begin, whole_on_two: dict[str, Any]
) -> None:
    """To one rank; then to torchrun, and to both ranks while the checkpoint is half written."""
    run = begin()
    stopped(run, "term@7:1", ranks=2)
    assert run.newest().step == 8  # the other rank heard of it before the next step
    stopped(run, "term-launcher@14:0", "term-in-save@14", "term-in-save@15", ranks=2)
    assert run.newest().step in (14, 15)
    run.train(ranks=2)
    assert run.resumed_at()[0] == 8
    assert same(run.result(), whole_on_two)


def test_further_signals_during_the_save_leave_no_half_checkpoint(begin: Begin, whole: dict[str, Any]) -> None:
    run = begin()
    assert stopped(run, "int@9", "term-in-save@9").code == 130
    assert run.newest().step == 9
    run.train()
    assert same(run.result(), whole)
