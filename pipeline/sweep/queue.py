"""DVC's experiment queue as a sweep needs it: what it holds, what becomes of it. The one module that imports dvc.

Everything here can be seen and done with DVC's own commands too: `dvc exp show`, `dvc queue status`, `dvc queue logs`.
"""

import logging
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.config import PARAMS_FILE
from pipeline.log import Stop

State = Literal["done", "failed", "queued", "running"]
CODE = ("pipeline", "stages", "dvc.yaml")  # what an experiment's results depend on, beside its params


@dataclass(frozen=True)
class Entry:
    """An experiment that starts from HEAD."""

    name: str
    rev: str
    """A commit with its params and code; of a finished one, with its results too."""
    state: State


class ExperimentQueue:
    """The queue of the repository in the current directory. Its methods raise Stop with what DVC says."""

    def __init__(self) -> None:
        logging.getLogger().addHandler(logging.NullHandler())  # what DVC warns of is handled here
        with _dvc_errors():
            from dvc.repo import Repo

            self._repo = Repo()
            self._queue = self._repo.experiments.celery_queue
            self.baseline: str = self._repo.scm.get_rev()

    def entries(self) -> list[Entry]:
        """The experiments from HEAD. One whose process is gone without a word has failed."""
        from dvc.repo.experiments.utils import exp_refs_by_baseline

        with _dvc_errors():  # an experiment moves on while this reads: what is read in this order misses none
            found = [self._entry(entry, "queued") for entry in self._queue.iter_queued()]
            found += [self._entry(entry, "running") for entry in self._queue.iter_active()]
            found += [self._entry(entry, "failed") for entry, _ in self._queue.iter_failed()]
            refs = exp_refs_by_baseline(self._repo.scm, {self.baseline})[self.baseline]
            done = [Entry(ref.name, self._repo.scm.get_ref(str(ref)), "done") for ref in refs]
        return [entry for entry in found if entry is not None] + done

    def add(self, name: str, overrides: Sequence[str]) -> str:
        """Queues an experiment, as `dvc exp run --queue -n NAME -S ...` does; returns the revision of its entry."""
        with _dvc_errors():
            self._repo.experiments.run(queue=True, name=name, params=overrides)
            revs = [entry.stash_rev for entry in self._queue.iter_queued() if entry.name == name]
        return str(revs[-1])

    def forget(self, entry: Entry) -> None:
        """Takes a failed experiment off the queue."""
        with _dvc_errors():
            if any(active.stash_rev == entry.rev for active in self._queue.iter_active()):
                self._queue.kill([entry.rev])
            self._queue.remove([entry.rev])

    def start(self, jobs: int) -> None:
        """Starts workers in the background, which end when the queue is empty; those that run already are counted."""
        with _dvc_errors():
            self._queue.start_workers(jobs)

    def log(self, rev: str) -> str:
        """What the experiment has printed so far; empty where it has not begun."""
        process = self._queue.proc.get(rev)
        return Path(process.stdout).read_text(encoding="utf-8", errors="replace") if process else ""

    def _entry(self, entry: Any, state: State) -> Entry | None:
        if entry.baseline_rev != self.baseline:
            return None
        lost = state == "running" and self._is_lost(entry.stash_rev)
        return Entry(entry.name or entry.stash_rev[:7], entry.stash_rev, "failed" if lost else state)

    def _is_lost(self, rev: str) -> bool:
        """Whether a running experiment's process has gone, as after a restart of the machine."""
        process = self._queue.proc.get(rev)
        if process is None or process.returncode is not None:
            return False  # it begins, or its results are being collected
        try:
            os.kill(process.pid, 0)
        except ProcessLookupError:
            return True
        return False


def combinations(settings: Sequence[str]) -> list[dict[str, tuple[Any, str]]]:
    """Every combination of settings such as `train.seed=1,2`, as DVC makes them of `-S`: key to value and override.

    Raises Stop where one cannot be read.
    """
    from dvc.utils.hydra import get_hydra_sweeps, to_hydra_overrides

    with _dvc_errors():
        sweeps = [sweep[str(PARAMS_FILE)] for sweep in get_hydra_sweeps({str(PARAMS_FILE): list(settings)})]
        parsed = [to_hydra_overrides(overrides) for overrides in sweeps]
    for override in parsed[0]:
        if override.is_add() or override.is_delete():
            raise Stop(f"{override.input_line}: a sweep sets keys that there are, as KEY=VALUE,VALUE")
    return [{one.key_or_group: (one.value(), one.input_line) for one in overrides} for overrides in parsed]


def same_code(rev: str) -> bool:
    """Whether the code of a commit is that of the working tree."""
    return subprocess.run(["git", "diff", "--quiet", rev, "--", *CODE], check=False).returncode == 0


@contextmanager
def _dvc_errors() -> Iterator[None]:
    from dvc.exceptions import DvcException
    from hydra.errors import HydraException

    try:
        yield
    except (DvcException, HydraException) as error:
        raise Stop(str(error)) from None
