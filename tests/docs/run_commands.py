"""Runs what the docs tell people to type and what takes too long for a test: python -m tests.docs.run_commands

In a small project, as it stands in the page: every experiment and sweep, and the commands of checks.LONG; then a run on
two machines and one that goes on elsewhere, with a folder for each machine. About half an hour. Words given as
arguments choose the commands that hold one of them.
"""

import os
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.docs.checks import is_experiment, is_long
from tests.docs.commands import all_commands
from tests.pipeline_runs.project import Project, stages_run

MACHINES = "two machines"
ELSEWHERE = "going on elsewhere"


def small_project(path: Path) -> Project:
    """A project that has run once; its batch can be cut in the contexts that the cookbook tries."""
    project = Project.copy_of_this(path)
    probes = {f"train.{probe}_interval": 0 for probe in ("eval", "hellaswag", "sample")}
    project.set(**{"train.total_batch_size": 2048, **probes})
    project.dvc("repro")
    project.commit("first run")
    return project


def run(project: Project, command: str) -> str:
    """Runs a command, and the experiments that it queues; returns in a word what came of it."""
    if not is_experiment(command):
        project.set(**{"train.seed": 13})  # else nothing would run
        return f"ran {', '.join(stages_run(project.run('bash', '-c', command)))}"
    project.run("bash", "-c", command, timeout=1800)
    if "--queue" in command:
        project.run("bash", "-c", "dvc queue start > started.txt 2>&1")
        while re.search(r"\b(Queued|Running)\b", status := project.dvc("queue", "status")):
            time.sleep(1)
        assert "Failed" not in status, status
        outcome = f"{status.count('Success')} experiments"
        project.dvc("queue", "remove", "--all")
    else:
        outcome = "done"
    project.dvc("exp", "apply", "HEAD")
    if project.dvc("exp", "list").strip():
        project.dvc("exp", "remove", "--all-commits")
    return outcome


def on_two_machines(project: Project) -> str:
    """docs/scaling.md: rank 0, and so the model, is on the machine where DVC runs."""
    second = project.copy(project.path.with_name("second"))
    for one in (project, second):
        one.set(**{"train.seed": 11})
        one.environment |= {"NNODES": "2", "NPROC_PER_NODE": "1", "RDZV_ENDPOINT": "127.0.0.1:29517"}
    project.environment["NODE_RANK"], second.environment["NODE_RANK"] = "0", "1"
    first = project.start("dvc", "repro", "train")
    time.sleep(
        10
    )  # torchrun numbers machines by name, and processes of one machine by process id: begin with the first
    second.run("python", "-m", "pipeline.launch", "stages.train")
    output, _ = first.communicate(timeout=240)
    assert first.returncode == 0, output
    assert "on each of 2 rank(s)" in output
    assert (project.path / "data/model/model.safetensors").is_file()
    return "trained together"


def going_on_elsewhere(project: Project) -> str:
    """docs/cookbook.md: a copy of the folder goes on, with another number of processes."""
    project.set(**{"train.seed": 12})
    process = project.start("dvc", "repro")
    project.wait_for_step(process, 12)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    copy = project.copy(project.path.with_name("elsewhere"))
    copy.environment["NPROC_PER_NODE"] = "2"
    output = copy.dvc("repro")
    assert "resuming after step" in output, output
    assert "the run goes on with 2 ranks after 1" in output, output
    assert "train" in stages_run(output)
    return "went on"


def main(words: list[str]) -> None:
    commands = list(dict.fromkeys(command.text for command in all_commands() if is_long(command.text)))
    chosen = [one for one in (*commands, MACHINES, ELSEWHERE) if not words or any(word in one for word in words)]
    with tempfile.TemporaryDirectory() as folder:
        finished = small_project(Path(folder) / "finished")
        for number, command in enumerate(chosen, start=1):
            project, began = finished.copy(Path(folder) / str(number) / "project"), time.monotonic()
            print(f"{number}/{len(chosen)} {command}", flush=True)
            special = {MACHINES: on_two_machines, ELSEWHERE: going_on_elsewhere}.get(command)
            outcome = special(project) if special else run(project, command)
            print(f"    {outcome}, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
