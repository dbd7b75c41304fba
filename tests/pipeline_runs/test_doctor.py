"""DVC killed while it writes its own files: after `python -m pipeline doctor` no training is repeated."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.pipeline_runs.project import Project, stages_run

pytestmark = pytest.mark.slow


def doctor(project: Project) -> str:
    return project.run(sys.executable, "-m", "pipeline", "doctor")


def test_after_a_kill_while_dvc_writes_its_files_no_training_is_repeated(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "copy")
    project.set(**{"train.seed": 2})
    project.dvc("repro")
    trained = project.hash_of("data/model")
    for name in ("dvc.lock", ".dvc/tmp/rwlock"):  # DVC opens both for writing, and is killed
        (project.path / name).write_bytes(b"")
    assert stages_run(project.dvc("repro", ok=False)) == []
    assert len(doctor(project).splitlines()) >= 2
    assert set(stages_run(project.dvc("repro"))) == {"train", "sample", "report"}  # the rest is in the run cache
    (resume,) = project.json("reports/train/summary.json")["resumes"]
    assert resume["step"] == 30
    assert project.hash_of("data/model") == trained
    project.commit("second run")
    (project.path / "dvc.lock").write_bytes(b"")
    assert "damaged" in doctor(project)
    assert stages_run(project.dvc("repro")) == []
    assert list(project.path.glob(".runs/train-*/")) == []  # committed, so no longer needed


def test_a_killed_experiment_leaves_a_copy_that_is_removed(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "copy")
    dvc = project.start("dvc", "exp", "run", "--temp", "-S", "train.seed=7")
    project.wait_for_step(dvc, 11)
    os.killpg(dvc.pid, signal.SIGKILL)
    dvc.communicate(timeout=60)
    assert list(project.path.glob(".dvc/tmp/exps/standalone/tmp*"))
    deadline = time.monotonic() + 60
    while "is using it" in doctor(project):  # W&B's own process outlives training for some seconds
        assert time.monotonic() < deadline
    assert list(project.path.glob(".dvc/tmp/exps/standalone/tmp*")) == []
    assert project.unfinished_runs() != []
