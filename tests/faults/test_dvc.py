"""`dvc repro` and `dvc exp run --temp`, killed and repeated: what was trained is never trained again."""

import os
import signal
from pathlib import Path

import pytest

from tests.pipeline_runs.project import Project

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project with its shards made and nothing trained."""
    project = Project.copy_of_this(tmp_path / "project")
    project.set(**{"train.max_steps": 60})
    project.dvc("repro", "tokenize")
    project.commit("shards")
    return project


def test_a_run_that_ended_after_dvc_was_killed_is_taken_over_and_a_forced_one_trains_anew(project: Project) -> None:
    """DVC dies before it can record the outputs; what a kill between training's end and dvc.lock leaves is the same."""
    dvc = project.start("dvc", "repro")
    project.wait_for_step(dvc, 1)
    os.kill(dvc.pid, signal.SIGKILL)  # the training goes on
    dvc.communicate(timeout=60)  # until the last process that holds its output has ended
    assert "train" not in project.lock()
    assert (project.path / "data/model/model.safetensors").exists()
    assert "resuming after step 60 of 60" in project.dvc("repro", "train")
    taken_over = project.hash_of("data/model")
    assert len(project.unfinished_runs()) == 1  # the report stage would remove it, and so does a forced run
    assert "resuming" not in project.dvc("repro", "-f", "-s", "train")
    assert project.hash_of("data/model") == taken_over


def test_a_killed_experiment_in_a_copy_of_the_repository_goes_on_when_it_is_repeated(project: Project) -> None:
    command = ("exp", "run", "--temp", "-S", "train.seed=7")
    dvc = project.start("dvc", *command)
    project.wait_for_step(dvc, 11)
    os.killpg(dvc.pid, signal.SIGKILL)
    dvc.communicate(timeout=60)
    assert "resuming after step" in project.dvc(*command)
    assert project.unfinished_runs() == []
