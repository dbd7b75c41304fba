"""Work spread over processes: bounded, in no particular order, and with one clear error when a process dies."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from typing import Any, TypeVar

from pipeline.log import Stop

T = TypeVar("T")
R = TypeVar("R")

TASKS_IN_FLIGHT = 2  # per worker: one at work, one to go on with


class Workers:
    """Processes that have all been set up by the same call.

    with Workers(4, set_up, (directory,)) as workers:
        for result in workers.run(function, tasks):
            ...

    One worker is this process itself. Processes are spawned, so nothing is shared with them by accident; they end when
    this process does, however it ends.
    """

    def __init__(self, count: int, set_up: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None
        if count == 1:
            set_up(*arguments)
        else:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(count, context, _start, (set_up, arguments))

    def run(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """The results of `function` for all tasks, as they come. The first error ends it; finished work stays done.

        Raises what `function` raised, and Stop when a process died.
        """
        if self._pool is None:
            yield from map(function, tasks)
            return
        waiting, running = iter(tasks), set[Future[R]]()
        try:
            while True:
                while len(running) < self.count * TASKS_IN_FLIGHT and (task := next(waiting, None)) is not None:
                    running.add(self._pool.submit(function, task))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BrokenProcessPool:
            raise Stop(
                "a worker process died, killed from outside or for want of memory (runtime.workers sets their number); "
                "what is finished is kept: run again to go on"
            ) from None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _start(set_up: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Runs first in each process. Ctrl-C is the parent's to handle; a killed parent takes the process along."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    set_up(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(1)
