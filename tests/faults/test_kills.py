"""SIGKILL, code that changes, and locks: a run resumes from its newest checkpoint and ends bit for bit the same."""

import shutil
import time
from typing import Any

import pytest

from tests.faults.conftest import Begin
from tests.faults.small import corrupted_copy, same


def test_a_killed_run_ends_with_the_weights_optimizer_and_curves_of_one_never_killed(
    begin: Begin, whole: dict[str, Any]
) -> None:
    """With dropout, Muon beside AdamW and probes. In between, another configuration runs in the same directory."""
    run = begin()
    assert run.train("kill@13", ok=False).code == -9
    run.set(train={"seed": 2})
    run.train()
    assert run.resumed_at() == []
    assert not same(run.curve(), whole["curve"])
    (finished,) = run.path.glob(".runs/*/finished.json")
    shutil.rmtree(finished.parent)
    run.set()
    run.train()
    assert run.resumed_at() == [12]
    assert same(run.result(), whole)
    assert [row["step"] for row in run.curve()] == [str(step) for step in range(25)]


@pytest.mark.slow
def test_a_longer_run_continues_a_finished_one_as_if_it_were_one_run(begin: Begin) -> None:
    """Killed on the way, too. A run of another length does not, with runtime.resume: never."""
    constant = {"schedule": "constant", "benchmark_interval": 8}
    run, at_once = begin(train={**constant, "max_steps": 16}), begin("at once", train=constant)
    run.train()
    run.set(train=constant)
    run.train("kill@22", ok=False)
    run.train()
    first, second = run.summary().resumes
    assert (first.step, str(first.run)[-3:], second.step, second.run) == (16, "-16", 20, None)
    at_once.train()
    assert same(run.curve(), at_once.curve())
    assert same(run.weights(), at_once.weights())
    run.set(train={**constant, "max_steps": 20}, runtime={"resume": "never"})
    run.train()
    assert run.resumed_at() == []


def test_a_run_resumes_although_its_code_has_changed_and_names_the_files(begin: Begin, whole: dict[str, Any]) -> None:
    run = begin()
    run.train("kill@13", ok=False)
    (run.path / "stages/code.py").write_text("version = 2\n")
    output = run.train().output
    (resume,) = run.summary().resumes
    assert (resume.step, resume.changed_files) == (12, ["stages/code.py"])
    assert "stages/code.py" in output
    assert same(run.result(), whole)


def test_resume_same_code_starts_over_and_keeps_the_old_state(begin: Begin, whole: dict[str, Any]) -> None:
    run = begin()
    run.train("kill@13", ok=False)
    (run.path / "stages/code.py").write_text("version = 2\n")
    run.set(runtime={"resume": "same-code"})
    run.train()
    assert run.resumed_at() == []
    assert same(run.result(), whole)
    assert list(run.path.glob(".runs/old-train-*/checkpoints/step_00000012"))


def test_a_second_process_on_the_same_run_is_refused(begin: Begin) -> None:
    run = begin()
    first = run.start("hold@5")
    while not (run.path / "held").exists():
        assert first.poll() is None
        time.sleep(0.02)
    assert str(first.pid) in run.train(ok=False).output
    (run.path / "go").touch()
    output, _ = first.communicate(timeout=60)
    assert first.returncode == 0, output


def test_damaged_shards_are_named_with_file_and_offset(begin: Begin) -> None:
    run = begin()
    file = corrupted_copy(run, "train_000001.npy")
    content = bytearray(file.read_bytes())
    content[900:902] = b"\xff\xff"  # an id outside the vocabulary
    file.write_bytes(content)
    output = run.train(ok=False).output
    assert "train_000001.npy: offset 900" in output
    assert "Traceback" not in output
    assert not (run.path / "data/model").exists()
