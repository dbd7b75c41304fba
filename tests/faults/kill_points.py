"""Kills each stage before each of its changes of the file system, runs it again, and compares with a run never killed.

    python -m tests.faults.kill_points [STAGE ...] [--points N]

A point is an event of Python's audit hooks: opening a file for writing, creating, renaming, linking or removing below
the project. Between the kill and the second run the stage's outputs are removed, except those of train, as DVC does.
Then all files in data/, reports/ and .runs/ must be the same, except for times, and none may be left over. The stages
are tiny and run in forked children of a process that has imported everything. Exits with 1 where files differ.
"""

import argparse
import csv
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline.config import load_yaml
from tests.faults.small import ROOT, TIMES
from tests.pipeline_runs.project import SMALL, Project

OUTPUTS = {
    "download": [],  # persist: true
    "tokenize": ["data/shards"],
    "train": [],  # persist: true
    "evaluate": ["reports/evaluate/metrics.json"],
    "sample": ["reports/sample"],
    "report": ["reports/report.md", "reports/report.html", "reports/figures"],
}
"""Stage -> what DVC removes before it runs the stage."""

CHANGES = {
    "train.max_steps": 12,
    "train.eval_interval": 6,
    "train.benchmark_interval": 12,
    "train.sample_interval": 0,
    "sample.max_new_tokens": 4,
    "runtime.checkpoint_interval": 4,
    "runtime.milestone_interval": 8,
    "tracking.mode": "disabled",
}
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
IMPORTS = ("pandas", "pyarrow.parquet", "altair", "vl_convert", "markdown_it", "jinja2", "scipy.stats")
TIMES_AND_IDS = {
    "wall_time_s",
    "train_time_s",
    "tokens_per_sec",
    "mfu",
    "stats",
    "resumes",
    "md5",
    "sha256",
    "id",
    "name",
}
"""Keys of JSON files in reports/train and .runs that differ between equal runs."""


@dataclass
class Tally:
    """What the kills of a stage have shown."""

    points: int
    """Changes of the file system in an uninterrupted run."""
    kills: int = 0
    failures: list[str] = field(default_factory=list)


class Killer:
    """Counts the points of this process, and kills it at one of them."""

    def __init__(self, directory: Path, point: int | None, log: Path) -> None:
        self.directory, self.point, self.log, self.count = directory, point, log, 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if event == "open" and not (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")):
            return
        path = Path(os.fsdecode(arguments[0]))
        if path.is_absolute() and not path.is_relative_to(self.directory):
            return  # relative: to the project, or to a directory in it that rmtree has open
        self.count += 1
        if self.count == self.point:
            self.log.write_text(f"{event} {path.name}")
            os.kill(os.getpid(), signal.SIGKILL)


def in_child(function: Callable[[], None], output: Path) -> int:
    """Runs a function in a forked child; returns its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        with output.open("wb", buffering=0) as file:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_stage(stage: str, project: Path, point: int | None = None) -> int:
    """Runs a stage in a project, killed at a point; returns the number of points, or 0 if it was killed."""
    log, output = project.with_name("log"), project.with_name("output")

    def body() -> None:
        os.chdir(project)
        sys.argv = [stage]
        killer = Killer(project, point, log)
        sys.addaudithook(killer)
        importlib.import_module(f"stages.{stage}").main()
        killer.point = None
        log.write_text(str(killer.count))

    code = in_child(body, output)
    if code == -signal.SIGKILL and point is not None:
        return 0
    if code != 0:
        raise AssertionError(f"{stage} ended with {code}:\n{output.read_text()}")
    return int(log.read_text())


def contents(project: Path) -> dict[str, Any]:
    """Path -> what must be equal in equal runs, of all files and directories that stages write."""
    found: dict[str, Any] = {}
    for name in ("data", "reports", ".runs"):
        for path in sorted((project / name).rglob("*")):
            if path.suffix != ".lock":  # contains a process id
                found[path.relative_to(project).as_posix()] = comparable(path) if path.is_file() else None
    return found


def comparable(path: Path) -> Any:
    if path.name == "curves.csv":
        with path.open(newline="") as file:
            return [{name: cell for name, cell in row.items() if name not in TIMES} for row in csv.DictReader(file)]
    if path.suffix == ".json" and {"train", "checkpoints", ".runs"} & set(path.parts):
        return without_times(json.loads(path.read_text()))
    return path.read_bytes()


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(entry) for key, entry in value.items() if key not in TIMES_AND_IDS}
    return value


def kill_everywhere(stage: str, before: Path, after: Path, points: int, limit: int | None) -> Tally:
    """Kills a stage at all its points, or at `limit` of them evenly spread; `after`: how the project must end."""
    tally, expected = Tally(points), contents(after)
    project = before.with_name("project")
    chosen = range(1, points + 1)
    if limit is not None and limit < points:
        chosen = [1 + number * (points - 1) // max(limit - 1, 1) for number in range(limit)]
    for point in chosen:
        shutil.rmtree(project, ignore_errors=True)
        shutil.copytree(before, project)
        if run_stage(stage, project, point) != 0:
            continue  # threads have made the points fewer this time
        tally.kills += 1
        at = f"{stage}, point {point} ({project.with_name('log').read_text()})"
        for output in OUTPUTS[stage]:
            remove(project / output)
        try:
            run_stage(stage, project)
        except AssertionError as error:
            tally.failures.append(f"{at}: {error}")
            continue
        found = contents(project)
        differing = sorted(
            name for name in expected.keys() | found.keys() if expected.get(name, 0) != found.get(name, 0)
        )
        if differing:
            tally.failures.append(f"{at}: {', '.join(differing)}")
    return tally


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_project(path: Path) -> None:
    """A project without Git, DVC and code, that the stages can run in."""
    values = load_yaml(ROOT / "params.yaml")
    for key, value in {**SMALL, **CHANGES}.items():
        section, _, name = key.partition(".")
        values[section][name] = value
    (path / "models").mkdir(parents=True)
    (path / "models/scratch").write_text("random weights\n")
    (path / "params.yaml").write_text(json.dumps(values), encoding="utf-8")
    (path / "dvc.yaml").write_text('{"stages": {"train": {"deps": []}}}')
    Project(path).write_texts()


def kill_points(folder: Path, stages: list[str], limit: int | None) -> dict[str, Tally]:
    """Runs the pipeline stage by stage, with kills in the chosen stages."""
    torch.set_num_threads(1)
    os.environ["DVC_STAGE"] = "kill_points"  # so that a finished run keeps its state, as under DVC
    for name in (*IMPORTS, *(f"stages.{stage}" for stage in OUTPUTS)):
        importlib.import_module(name)
    before = folder / "before"
    make_project(before)
    tallies: dict[str, Tally] = {}
    for stage in OUTPUTS:
        if tallies.keys() >= set(stages):
            break
        after = folder / "after"
        shutil.copytree(before, after)
        points = run_stage(stage, after)
        if stage in stages:
            began = time.monotonic()
            tally = tallies[stage] = kill_everywhere(stage, before, after, points, limit)
            took = time.monotonic() - began
            print(f"| {stage} | {points} | {tally.kills} | {len(tally.failures)} | {took:.0f} s |", flush=True)
            for failure in tally.failures:
                print(failure, file=sys.stderr, flush=True)
        shutil.rmtree(before)
        after.rename(before)
    return tallies


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(OUTPUTS)} (default: all)")
    parser.add_argument("--points", type=int, help="kill at this many points of each stage, evenly spread")
    args = parser.parse_args(arguments)
    print("| stage | points | kills | ends that differ | time |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        tallies = kill_points(Path(folder).resolve(), args.stages or list(OUTPUTS), args.points)
    return int(any(tally.failures for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
