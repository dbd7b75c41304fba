"""DVC's experiment queue: its entries, adding, removing, starting workers. The only module that imports dvc.

The same from a shell: `dvc exp show`, `dvc queue status`, `dvc queue logs`.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.config import PARAMS_FILE
from pipeline.git import same_files
from pipeline.log import UserError

State = Literal["done", "failed", "queued", "running"]
CODE = ("pipeline", "stages", "dvc.yaml")  # with the params, what the results of an experiment depend on


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
    return same_files(rev, *CODE)


@contextmanager
def _dvc_errors() -> Iterator[None]:
    from dvc.exceptions import DvcException
    from hydra.errors import HydraException

    try:
        yield
    except (DvcException, HydraException) as error:
        raise UserError(str(error)) from None
