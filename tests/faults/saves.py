"""Kills the saving of a checkpoint at every point in turn: `python -m tests.faults.saves DIRECTORY`.

A point is each call that changes the disk: opening a file for writing, the middle of writing it, flushing, renaming,
removing. For each point a child process starts with the checkpoints of steps 2 and 4, saves that of step 6 (which
removes that of step 2) and kills itself there. Prints one line of JSON: for each kill the point, and the step of the
newest valid checkpoint afterwards.
"""

import io
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pipeline.training.checkpoint import CheckpointStore
from pipeline.training.metrics import MetricsState, RunStats

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "shutil.rmtree"}
SHAPE = (64, 64)
METRICS = MetricsState(stats=RunStats(), recent_losses=[])


def parts(step: int) -> dict[str, Any]:
    """A state that knows its step in every part."""
    return {
        name: {"tensor": torch.full(SHAPE, float(step)), "other": torch.tensor(step)}
        for name in ("weights", "optimizer", "rng")
    }


class Killer:
    """Kills this process at the n-th point."""

    def __init__(self, count: int, directory: Path, log: Path) -> None:
        self.left, self.directory, self.log = count, directory, log

    def point(self, name: str) -> None:
        self.left -= 1
        if self.left == 0:
            self.log.write_text(name)
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Sees what Python does to files below the directory."""
        if event not in EVENTS:
            return
        path = Path(str(arguments[0]))
        if path.is_absolute() and not path.is_relative_to(self.directory):
            return  # rmtree's calls are relative to a directory that it has open
        writes = event != "open" or (isinstance(arguments[1], str) and arguments[1][0] in "wax")
        if writes and self.left > 0:
            self.point(f"{event} {path.name}")

    def fsync(self, descriptor: int) -> None:
        self.point("os.fsync")
        os.fdatasync(descriptor)

    def save(self, tree: Any, file: BinaryIO) -> None:
        """torch.save in two halves."""
        content = io.BytesIO()
        SAVE(tree, content)
        half = len(content.getvalue()) // 2
        file.write(content.getvalue()[:half])
        file.flush()
        self.point(f"half of {Path(file.name).name}")
        file.write(content.getvalue()[half:])


SAVE = torch.save


def save_and_die(store: CheckpointStore, killer: Killer) -> None:
    """In a child process: the save of step 6, killed at its point, if it has so many."""
    torch.save, os.fsync = killer.save, killer.fsync  # type: ignore[assignment]
    sys.addaudithook(killer.audit)
    store.save(6, parts(6), METRICS)
    store.wait()
    os._exit(0)


def found_after(directory: Path) -> int:
    """The step of the checkpoint that a new process would go on from, after a look at all that it holds."""
    newest = CheckpointStore(directory, kept=2).newest()
    assert newest is not None
    for name in parts(0):
        content = newest.load(name)
        assert torch.equal(content["tensor"], torch.full(SHAPE, float(newest.step)))
        assert content["other"] == newest.step
    return newest.step


def main(folder: Path) -> None:
    """Kills one child after the other, until one of them lives to the end."""
    torch.set_num_threads(1)
    begin = folder / "begin"
    store = CheckpointStore(begin, kept=2)
    for step in (2, 4):
        store.save(step, parts(step), METRICS)
    store.wait()
    store._writer.shutdown()  # no thread of the parent's may be forked
    kills: list[tuple[str, int]] = []
    while True:
        directory, log = folder / f"kill{len(kills)}", folder / "log"
        shutil.copytree(begin, directory)
        child = os.fork()
        if child == 0:
            milestones = directory / "milestones"
            save_and_die(
                CheckpointStore(directory, 2, milestones=milestones, milestone_interval=6),
                Killer(len(kills) + 1, directory, log),
            )
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            break
        kills.append((log.read_text(), found_after(directory)))
    print(json.dumps({"kills": kills, "exit": os.WEXITSTATUS(status), "at the end": found_after(directory)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
