"""A SLURM cluster of two nodes on this machine (cluster.sh), and projects on it."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.pipeline_runs.project import Project

SCRIPT = Path(__file__).with_name("cluster.sh")
NAMESPACES = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
MACHINE = """
all: {time: 10, cpus-per-task: 1}
train: {nodes: 2}
"""


@dataclass(frozen=True)
class Cluster:
    configuration: Path
    process: int
    """In the namespaces of the login node."""

    def run(self, project: Project, *command: str, ok: bool = True) -> str:
        """Runs a command on the login node, in a project; returns all that it printed."""
        project.environment["SLURM_CONF"] = str(self.configuration)
        enter = ["nsenter", f"--target={self.process}", "--net", "--uts", "--mount", "--pid", f"--wd={project.path}"]
        return project.run(*enter, *command, ok=ok)

    def slurm(self, project: Project, *arguments: str, ok: bool = True) -> str:
        return self.run(project, "python", "-m", "pipeline", "slurm", *arguments, ok=ok)

    def states(self, project: Project) -> dict[str, str]:
        """The jobs in the queue."""
        lines = self.run(project, "squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)  # type: ignore[misc]

    def wait(self, project: Project, condition: Callable[[], bool], timeout_s: float = 240) -> None:
        """Until a condition holds; fails with the jobs' logs if it takes too long."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            logs = sorted((project.path / ".runs/slurm").glob("*.out"))
            printed = "\n".join(f"{log.name}:\n{log.read_text(errors='replace')}" for log in logs)
            assert time.monotonic() < deadline, f"waited too long; {self.states(project)}\n{printed}"
            time.sleep(0.1)

    def wait_for_end(self, project: Project, timeout_s: float = 240) -> None:
        self.wait(project, lambda: not self.states(project), timeout_s)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    programs = ("slurmctld", "slurmd", "sbatch", "munged", "unshare", "nsenter", "ip")
    if missing := [name for name in programs if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]:
        pytest.skip(f"{', '.join(missing)} not installed")
    if subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("namespaces are not permitted here")
    directory = tmp_path_factory.mktemp("slurm")
    with (directory / "output").open("w") as output:
        process = subprocess.Popen(
            [*NAMESPACES, "bash", str(SCRIPT), str(directory)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin"},
        )
    try:
        deadline = time.monotonic() + 30
        while not (directory / "ready").exists():
            ended = process.poll() is not None or time.monotonic() > deadline
            assert not ended, (directory / "output").read_text()
            time.sleep(0.1)
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        yield Cluster(directory / "slurm.conf", int(child))
    finally:
        process.kill()  # and, with --kill-child, all that runs in the namespaces
        process.wait()


@pytest.fixture
def project(cluster: Cluster, finished: Project, tmp_path: Path) -> Iterator[Project]:
    """A finished project with a slurm.yaml. Its jobs end with the test."""
    project = finished.copy(tmp_path / "project")
    (project.path / "slurm.yaml").write_text(MACHINE)
    project.commit("on a cluster")
    yield project
    cluster.run(project, "scancel", "--user=root")
    cluster.wait_for_end(project)
