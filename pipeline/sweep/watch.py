"""Watches queued experiments until all have ended: progress, results, and the log of those that fail."""

import re
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline import git
from pipeline.artifacts import EvaluationMetrics
from pipeline.progress import Progress
from pipeline.sweep.queue import ExperimentQueue

POLL_S = 2.0
LOG_LINES = 12  # of a failed experiment
TRAIN_PROGRESS = re.compile(r"^train (\d+)/(\d+) tok", re.MULTILINE)  # as pipeline.progress prints it
EVALUATION = "reports/evaluate/metrics.json"


@dataclass(frozen=True)
class Job:
    """A queued or running experiment."""

    name: str
    gflop: int
    """10^9 FLOPs of its training."""


def watch(queue: ExperimentQueue, jobs: Mapping[str, Job], workers: int) -> list[str]:
    """Starts workers and waits until all jobs, by the revision of their entries, have ended. Returns who failed."""
    left, failed = dict(jobs), []
    with Progress("sweep", sum(job.gflop for job in jobs.values()), "GFLOP") as progress:
        while left:
            entries = queue.entries()
            states = {entry.rev: entry.state for entry in entries}
            done = {entry.name: entry.rev for entry in entries if entry.state == "done"}
            for rev in [rev for rev in left if states.get(rev, "failed") == "failed"]:
                name = left.pop(rev).name
                if rev not in states and name in done:  # results have a commit of their own
                    progress.write(f"{name}: {result(done[name])}")
                else:
                    failed.append(name)
                    progress.write(failure(name, queue.log(rev)))
            running = {rev: job for rev, job in left.items() if states[rev] == "running"}
            if left and not running:
                queue.start(workers)
            gflop = sum(job.gflop for rev, job in jobs.items() if rev not in left)
            gflop += sum(int(job.gflop * train_progress(queue.log(rev))) for rev, job in running.items())
            progress.advance(
                max(gflop - progress.done, 0),
                ended=f"{len(jobs) - len(left)}/{len(jobs)}",
                running=" ".join(job.name for job in running.values()) or "none",
            )
            if left:
                time.sleep(POLL_S)
    return failed


def train_progress(log: str) -> float:
    """The trained share, 0 to 1, by the last progress line in a log."""
    lines = TRAIN_PROGRESS.findall(log)
    return int(lines[-1][0]) / int(lines[-1][1]) if lines else 0.0


def result(rev: str) -> str:
    """The validation metrics of a finished experiment."""
    text = git.show(Path.cwd(), rev, EVALUATION)
    if text is None:
        return "done"
    val = EvaluationMetrics.parse(text, EVALUATION).val
    return f"validation loss {val.loss:.4f}, {val.bpb:.4f} bits per byte"


def failure(name: str, log: str) -> str:
    """The last lines of the log of a failed experiment."""
    tail = textwrap.indent("\n".join(log.splitlines()[-LOG_LINES:]), "  | ")
    return f"{name} failed; full log: dvc queue logs {name}\n{tail}"
