"""A sample of what `python -m tests.faults.kill_points` does."""

import subprocess
import sys

from tests.faults.small import ROOT

STAGES = ["download", "tokenize", "train", "evaluate", "sample"]  # a report takes several seconds


def test_stages_killed_at_some_points_end_as_if_never_killed() -> None:
    command = [sys.executable, "-m", "tests.faults.kill_points", "--points", "3", *STAGES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:5]] for line in done.stdout.splitlines()[2:]]
    assert [(stage, kills, failures) for stage, _, kills, failures in rows] == [(stage, "3", "0") for stage in STAGES]
    points = {stage: int(number) for stage, number, _, _ in rows}
    assert points["download"] > 30
    assert points["tokenize"] > 50
    assert points["train"] > 80
