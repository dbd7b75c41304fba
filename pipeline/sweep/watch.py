"""Watches queued experiments until the last has ended: progress over all of them, results, and why one failed."""

import json
import re
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.progress import Progress
from pipeline.reporting import git
from pipeline.sweep.queue import ExperimentQueue

POLL_S = 2.0
LOG_LINES = 12  # of a failed experiment
TRAINED = re.compile(r"^train (\d+)/(\d+) tok", re.MULTILINE)  # a line of Progress in a log


@dataclass(frozen=True)
class Job:
    """An experiment on its way."""

    name: str
    work: int
    """FLOPs of its training, in units of 10^9."""


def watch(queue: ExperimentQueue, jobs: Mapping[str, Job], workers: int) -> list[str]:
    """Starts workers and returns when all `jobs` (by the revision of their entries) have ended: who failed."""
    left, failed = dict(jobs), []
    with Progress("sweep", sum(job.work for job in jobs.values()), "GFLOP") as progress:
        while left:
            entries = queue.entries()
            states = {entry.rev: entry.state for entry in entries}
            done = {entry.name: entry.rev for entry in entries if entry.state == "done"}
            for rev in [rev for rev in left if states.get(rev, "failed") == "failed"]:
                name = left.pop(rev).name
                if rev not in states and name in done:
                    progress.write(f"{name}: {result(done[name])}")
                else:
                    failed.append(name)
                    progress.write(failure(name, queue.log(rev)))
            running = {rev: job for rev, job in left.items() if states[rev] == "running"}
            if left and not running:
                queue.start(workers)
            worked = sum(job.work for rev, job in jobs.items() if rev not in left)
            worked += sum(int(job.work * share_trained(queue.log(rev))) for rev, job in running.items())
            names = " ".join(job.name for job in running.values())
            progress.advance(
                max(worked - progress.done, 0), ended=f"{len(jobs) - len(left)}/{len(jobs)}", running=names or "none"
            )
            if left:
                time.sleep(POLL_S)
    return failed


def share_trained(log: str) -> float:
    """How far training is, 0 to 1, by the last line of progress in a log."""
    lines = TRAINED.findall(log)
    return int(lines[-1][0]) / int(lines[-1][1]) if lines else 0.0


def result(rev: str) -> str:
    """What a finished experiment measured."""
    text = git.show(Path.cwd(), rev, "reports/evaluate/metrics.json")
    val = json.loads(text)["val"] if text else None
    return f"validation loss {val['loss']:.4f}, {val['bpb']:.4f} bits per byte" if val else "done"


def failure(name: str, log: str) -> str:
    """That an experiment failed, and the last lines of its log, which say why."""
    last = textwrap.indent("\n".join(log.splitlines()[-LOG_LINES:]), "  | ")
    return f"{name} failed; all that it printed: dvc queue logs {name}\n{last}"
