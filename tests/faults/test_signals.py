"""SIGTERM and SIGINT: all ranks stop after the same step, save a whole checkpoint, and exit non-zero."""

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.faults.conftest import Begin
from tests.faults.small import Ended, Process, SmallRun, same

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


def held(run: SmallRun, *faults: str, **options: Any) -> Process:
    """Starts training and returns once it waits before step 9; until a file `go` appears."""
    process = run.start("hold@9", *faults, **options)
    while not (run.path / "held").exists():
        assert process.poll() is None
        time.sleep(0.05)
    return process


# In place of DVC: starts its arguments through a shell that waits for them, as /bin/sh does.
DVC = """
import os, shlex, subprocess, sys
subprocess.run(["/bin/sh", "-c", shlex.join(sys.argv[1:]) + "; exit"], env=os.environ | {"DVC_STAGE": "train"})
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_training_saves_and_stops_when_dvc_is_killed(begin: Begin, ranks: int) -> None:
    run = begin()
    dvc = held(run, ranks=ranks, on=("env", "-u", "DVC_STAGE", sys.executable, "-c", DVC))
    dvc.kill()
    time.sleep(1)
    (run.path / "go").touch()
    output, _ = dvc.communicate(timeout=LIMIT_S)  # until the last process has closed it
    assert "SIGTERM: stopped and saved" in output
    assert run.newest().step in (9, 10)


# Starts its arguments on two ranks, as a user may without our launcher.
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python")


@pytest.mark.slow
@pytest.mark.parametrize(("on", "ranks"), [((), 2), (TORCHRUN, 1)], ids=["ours", "the user's"])
def test_ranks_save_and_stop_when_torchrun_is_killed(
    begin: Begin, whole_on_two: dict[str, Any], on: tuple[str, ...], ranks: int
) -> None:
    run = begin()
    ended = run.train("kill-launcher@9:0", ok=False, ranks=ranks, on=on, timeout_s=LIMIT_S)
    assert ended.code == -signal.SIGKILL
    assert run.newest().step < 24
    run.train(ranks=2)
    assert same(run.result(), whole_on_two)


def test_the_end_of_a_process_is_noticed_without_pidfd_too() -> None:
    """As on macOS."""
    code = "import os, sys, time; vars(os).pop('pidfd_open', None); from pipeline.runtime import stop_with"
    with subprocess.Popen(["sleep", "60"]) as watched:
        command = [sys.executable, "-c", f"{code}; stop_with(int(sys.argv[1])); time.sleep(60)", str(watched.pid)]
        with subprocess.Popen(command) as watching:
            watched.kill()
            watched.wait()
            assert watching.wait(LIMIT_S) == -signal.SIGTERM


def test_training_saves_on_a_signal_when_nothing_reads_its_output(begin: Begin) -> None:
    """As `tee` does not after Ctrl-C."""
    run = begin()
    process = held(run, "int@16")  # a step that logs a validation loss
    assert process.stdout is not None
    process.stdout.close()
    (run.path / "go").touch()
    process.wait(LIMIT_S)
    assert run.newest().step == 16


@pytest.mark.slow
def test_nohup_holds_for_torchrun(begin: Begin) -> None:
    run = begin()
    process = held(run, ranks=2, on=("nohup",))
    process.send_signal(signal.SIGHUP)
    time.sleep(1)
    (run.path / "go").touch()
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0
