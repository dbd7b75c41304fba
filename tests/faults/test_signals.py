"""SIGTERM and SIGINT, to whom and how often they may come: all ranks stop after one step, save, and exit in time."""

import time
from typing import Any

import pytest

from tests.faults.conftest import Begin
from tests.faults.small import Ended, SmallRun, same

LIMIT_S = 20.0


def stopped(run: SmallRun, *faults: str, ranks: int = 1) -> Ended:
    """Trains until a signal ends it, which must be in time and leave whole checkpoints alone."""
    ended = run.train(*faults, ok=False, ranks=ranks)
    took = time.monotonic() - float((run.path / "signalled").read_text())
    assert took < LIMIT_S, f"{took:.1f} s from the signal to the end"
    assert all(name.startswith("step_") for name in run.checkpoints()), run.checkpoints()
    return ended


@pytest.mark.slow
def test_two_ranks_stop_on_signals_to_one_of_them_and_to_torchrun_and_end_as_never_stopped(
    begin: Begin, whole_on_two: dict[str, Any]
) -> None:
    """To one worker; then to torchrun, and again to both workers while the checkpoint is half written."""
    run = begin()
    output = stopped(run, "term@7:1", ranks=2).output
    assert output.count("SIGTERM: stopped after step 8 of 24 and saved") == 1  # all agree, one says it
    assert run.newest().step == 8  # the other rank heard of it before the next step
    ended = stopped(run, "term-launcher@14:0", "term-in-save@14", "term-in-save@15", ranks=2)
    assert "resuming after step 8 of 24" in ended.output
    assert "SIGTERM: stopped after step 1" in ended.output
    assert "Traceback" not in ended.output
    assert run.newest().step in (14, 15)
    assert "resuming after step 1" in run.train(ranks=2).output
    assert same(run.result(), whole_on_two)


def test_further_signals_during_the_save_leave_no_half_checkpoint(begin: Begin, whole: dict[str, Any]) -> None:
    run = begin()
    ended = stopped(run, "int@9", "term-in-save@9")
    assert ended.code == 130
    assert "SIGINT: stopped after step 9 of 24 and saved" in ended.output
    assert "resuming after step 9 of 24" in run.train().output
    assert same(run.result(), whole)
