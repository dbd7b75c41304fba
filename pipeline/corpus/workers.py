"""A process pool whose workers end with this process, and one clear error when a worker dies."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, Self, TypeVar

from pipeline.log import UserError

T = TypeVar("T")
R = TypeVar("R")


class Workers:
    """Worker processes, each initialized by the same call of `set_up`.

    with Workers(4, set_up, (directory,)) as workers:
        for result in workers.run(function, tasks):
            ...

    A count of 1 runs everything in this process. Processes are spawned, so they share no state by accident, and they
    end when this process does, even by SIGKILL.
    """

    def __init__(self, count: int, set_up: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self._pool: ProcessPoolExecutor | None = None
        if count == 1:
            set_up(*arguments)
        else:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(count, context, _start, (set_up, arguments))

    def run(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """The results of `function` for all tasks, in their order. Tasks and results must be small: many are waiting.

        Raises the first error of `function`, and UserError when a process died.
        """
        try:
            yield from self._pool.map(function, tasks) if self._pool else map(function, tasks)
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, possibly out of memory (runtime.workers sets their number): run again to "
                "resume"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _start(set_up: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Runs first in each worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    set_up(*arguments)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
