"""An experiment that one person trains, another one sees, applies and need not train: over a directory, and over S3."""

import logging
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from moto.server import ThreadedMotoServer

from tests.dag.imports import STAGES
from tests.pipeline_runs.project import Project, stages_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3 server on this machine, with one bucket, `shared`, that takes any key."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # else a line for each request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with urlopen(Request(f"http://{host}:{port}/shared", method="PUT")):
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["a directory", "S3"])
def author(request: pytest.FixtureRequest, finished: Project, tmp_path: Path) -> Project:
    """A project with a Git remote, `origin`, and a DVC remote, both committed and pushed to."""
    project = finished.copy(tmp_path / "author")
    if request.param == "S3":
        project.environment |= {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
        project.dvc("remote", "add", "-d", "store", "s3://shared/gpt")
        project.dvc("remote", "modify", "store", "endpointurl", request.getfixturevalue("s3"))
    else:
        project.dvc("remote", "add", "-d", "store", str(tmp_path / "store"))
    project.commit("a remote for data")
    project.git("init", "-q", "--bare", "-b", "main", str(tmp_path / "origin.git"))
    project.git("remote", "add", "origin", str(tmp_path / "origin.git"))
    project.git("push", "-q", "-u", "origin", "main")
    project.dvc("push")
    return project


@pytest.fixture
def colleague(author: Project, tmp_path: Path) -> Project:
    """A fresh clone, with the author's credentials and nothing computed or fetched."""
    author.git("clone", "-q", str(tmp_path / "origin.git"), str(tmp_path / "colleague"))
    project = Project(tmp_path / "colleague")
    project.environment = author.environment
    return project


def test_a_colleague_applies_an_experiment_that_was_pushed_and_trains_nothing(
    author: Project, colleague: Project
) -> None:
    trained = author.dvc("exp", "run", "--name", "seed-2", "-S", "train.seed=2")
    assert stages_run(trained) == list(STAGES[2:])
    author.dvc("exp", "push", "origin", "seed-2")

    assert "seed-2" in colleague.dvc("exp", "list", "origin")
    colleague.dvc("exp", "pull", "origin", "seed-2")
    (row,) = [line for line in colleague.dvc("exp", "show", "--csv").splitlines() if line.startswith("seed-2,")]
    assert str(author.json("reports/evaluate/metrics.json")["val"]["loss"]) in row
    colleague.run("python", "-m", "pipeline.reporting.compare")
    assert "`seed-2`" in (colleague.path / "reports/compare.md").read_text(encoding="utf-8")
    colleague.dvc("exp", "apply", "seed-2")
    output = colleague.dvc("repro")
    assert stages_run(output) == []
    assert "up to date" in output

    for path in ("data/model/model.safetensors", "reports/report.md", "reports/report.html"):
        assert (colleague.path / path).read_bytes() == (author.path / path).read_bytes(), path
    assert "train.seed" in colleague.dvc("params", "diff")


def test_a_clone_fetches_what_was_computed_and_runs_nothing(author: Project, colleague: Project) -> None:
    assert stages_run(colleague.dvc("repro", "--pull")) == []
    model = "data/model/model.safetensors"
    assert (colleague.path / model).read_bytes() == (author.path / model).read_bytes()


def test_a_clone_can_fetch_the_model_alone(colleague: Project) -> None:
    colleague.dvc("pull", "train")
    assert (colleague.path / "data/model/model.safetensors").is_file()
    assert not (colleague.path / "data/shards").exists()


def test_an_experiment_older_than_the_remote_is_shared_with_the_remote_in_local_settings(
    finished: Project, tmp_path: Path
) -> None:
    """DVC reads the remotes from the commit that an experiment starts from, and above them from .dvc/config.local."""
    author, store = finished.copy(tmp_path / "author"), str(tmp_path / "store")
    author.dvc("exp", "run", "--name", "old", "-S", "report.title=old")
    author.git("clone", "-q", "--bare", ".", str(tmp_path / "origin.git"))
    author.git("remote", "add", "origin", str(tmp_path / "origin.git"))
    author.dvc("remote", "add", "--local", "-d", "store", store)
    author.dvc("exp", "push", "origin", "old")

    author.git("clone", "-q", str(tmp_path / "origin.git"), str(tmp_path / "colleague"))
    colleague = Project(tmp_path / "colleague")
    colleague.dvc("remote", "add", "--local", "-d", "store", store)
    colleague.dvc("exp", "pull", "origin", "old")
    colleague.dvc("exp", "apply", "old")
    assert stages_run(colleague.dvc("repro")) == []
