"""Experiments in DVC's queue: adding, removing, starting workers, and watching them until all have ended.

The only module that imports dvc. The same from a shell: `dvc exp show`, `dvc queue status`, `dvc queue logs`.
"""

import logging
import os
import re
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline import git
from pipeline.artifacts import EvaluationMetrics
from pipeline.config import PARAMS_FILE
from pipeline.formatting import format_duration
from pipeline.log import UserError, logger
from pipeline.progress import Progress

State = Literal["done", "failed", "queued", "running"]
CODE = ("pipeline", "stages", "dvc.yaml")  # with the params, what the results of an experiment depend on
POLL_S = 5.0
LOG_LINES = 12  # of a failed experiment
TRAIN_PROGRESS = re.compile(r"^train (\d+)/(\d+) tok", re.MULTILINE)  # as pipeline.progress prints it
EVALUATION = "reports/evaluate/metrics.json"


@dataclass(frozen=True)
class Trial:
    """One combination of settings."""

    name: str
    overrides: tuple[str, ...]
    """For `dvc exp run -S`."""
    params: dict[str, Any]
    """All of params.yaml."""
    flops: int
    """Of training."""
    full_name: str = ""
    """With the settings that all trials share: for a trial whose name an experiment with other settings has."""


@dataclass(frozen=True)
class Entry:
    """An experiment that starts from HEAD."""

    name: str
    rev: str
    """A commit with its params and code, and with its results once it is done."""
    state: State


class ExperimentQueue:
    """The queue of the repository in the current directory. Its methods raise UserError with DVC's message."""

    def __init__(self) -> None:
        logging.getLogger().addHandler(logging.NullHandler())  # hides DVC's warnings: states are handled here
        with _dvc_errors():
            from dvc.repo import Repo

            self._repo = Repo()
            self._queue = self._repo.experiments.celery_queue
            self.baseline: str = self._repo.scm.get_rev()

    def entries(self) -> list[Entry]:
        """The experiments from HEAD. One whose process was killed counts as failed."""
        from dvc.repo.experiments.utils import exp_refs_by_baseline

        with _dvc_errors():  # in the order of an experiment's life: one that changes state meanwhile is not missed
            entries = [self._entry(entry, "queued") for entry in self._queue.iter_queued()]
            entries += [self._entry(entry, "running") for entry in self._queue.iter_active()]
            entries += [self._entry(entry, "failed") for entry, _ in self._queue.iter_failed()]
            refs = exp_refs_by_baseline(self._repo.scm, {self.baseline})[self.baseline]
            done = [Entry(ref.name, self._repo.scm.get_ref(str(ref)), "done") for ref in refs]
        return [entry for entry in entries if entry is not None] + done

    def add(self, name: str, overrides: Sequence[str]) -> str:
        """Queues an experiment like `dvc exp run --queue -n NAME -S ...`; returns the revision of its entry."""
        with _dvc_errors():
            self._repo.experiments.run(queue=True, name=name, params=overrides)
            revs = [entry.stash_rev for entry in self._queue.iter_queued() if entry.name == name]
        return str(revs[-1])

    def remove(self, entry: Entry) -> None:
        """Removes a failed experiment from the queue."""
        with _dvc_errors():
            if any(active.stash_rev == entry.rev for active in self._queue.iter_active()):
                self._queue.kill([entry.rev])
            self._queue.remove([entry.rev])

    def start(self, workers: int) -> None:
        """Starts background workers, up to this number in all. They end when the queue is empty."""
        with _dvc_errors():
            self._queue.start_workers(workers)

    def log(self, rev: str) -> str:
        """The output of an experiment so far; empty before it starts."""
        process = self._queue.proc.get(rev)
        return Path(process.stdout).read_text(encoding="utf-8", errors="replace") if process else ""

    def _entry(self, entry: Any, state: State) -> Entry | None:
        if entry.baseline_rev != self.baseline:
            return None
        killed = state == "running" and self._was_killed(entry.stash_rev)
        return Entry(entry.name or entry.stash_rev[:7], entry.stash_rev, "failed" if killed else state)

    def _was_killed(self, rev: str) -> bool:
        """Whether the process of a running experiment does not exist any more, as after a restart of the machine."""
        process = self._queue.proc.get(rev)
        if process is None or process.returncode is not None:
            return False  # it is starting, or its results are being collected
        try:
            os.kill(process.pid, 0)
        except ProcessLookupError:
            return True
        return False


def combinations(settings: Sequence[str]) -> list[dict[str, tuple[Any, str]]]:
    """Every combination of settings such as `train.seed=1,2`, expanded as by DVC: key to (value, override).

    Raises UserError for a setting that is not KEY=VALUE,VALUE.
    """
    from dvc.utils.hydra import get_hydra_sweeps, to_hydra_overrides

    with _dvc_errors():
        sweeps = [sweep[str(PARAMS_FILE)] for sweep in get_hydra_sweeps({str(PARAMS_FILE): list(settings)})]
        parsed = [to_hydra_overrides(overrides) for overrides in sweeps]
    for override in parsed[0]:
        if override.is_add() or override.is_delete():
            raise UserError(f"{override.input_line}: a setting must have the form KEY=VALUE,VALUE")
    return [{each.key_or_group: (each.value(), each.input_line) for each in overrides} for overrides in parsed]


def same_code(rev: str) -> bool:
    """Whether a commit has the code of the working tree."""
    return git.same_files(rev, *CODE)


def watch(queue: ExperimentQueue, trials: Mapping[str, Trial], workers: int) -> list[str]:
    """Starts workers and waits until all trials, by the revision of their entries, have ended. Returns who failed."""
    left, failed = dict(trials), []
    flops = max(sum(trial.flops for trial in trials.values()), 1)
    start: tuple[float, float] | None = None
    with Progress("sweep", 100) as progress:
        while left:
            entries = queue.entries()
            states = {entry.rev: entry.state for entry in entries}
            done = {entry.name: entry.rev for entry in entries if entry.state == "done"}
            for rev in [rev for rev in left if states.get(rev, "failed") == "failed"]:
                name = left.pop(rev).name
                if rev not in states and name in done:  # results have a commit of their own
                    logger.info("%s: %s", name, result(done[name]))
                else:
                    failed.append(name)
                    tail = "\n".join(queue.log(rev).splitlines()[-LOG_LINES:])
                    logger.info("%s failed; full log: dvc queue logs %s\n%s", name, name, textwrap.indent(tail, "  | "))
            running = {rev: trial.name for rev, trial in left.items() if states[rev] == "running"}
            if left and not running:
                queue.start(workers)
            flops_left = sum(trial.flops * (1 - train_progress(queue.log(rev))) for rev, trial in left.items())
            now, share = time.monotonic(), (flops - flops_left) / flops
            start = start or (now, share)  # what was trained before does not count in the speed
            seconds = (now - start[0]) * (1 - share) / (share - start[1]) if share > start[1] else None
            progress.advance(
                max(int(100 * share) - progress.done, 0),
                ended=f"{len(trials) - len(left)} of {len(trials)}",
                running=" ".join(running.values()) or "none",
                left="unknown" if seconds is None else f"about {format_duration(seconds)}" if left else "nothing",
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


@contextmanager
def _dvc_errors() -> Iterator[None]:
    from dvc.exceptions import DvcException
    from hydra.errors import HydraException
    from scmrepo.exceptions import SCMError

    try:
        yield
    except (DvcException, HydraException, SCMError) as error:
        raise UserError(str(error)) from None
