"""One logger for the whole pipeline, which speaks on rank 0 only, and the way that a stage ends on an error.

from pipeline.log import logger
logger.info("%d documents", count)
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

logger = logging.getLogger("pipeline")


def rank() -> int:
    """This process's rank as torchrun tells it; 0 outside torchrun."""
    return int(os.environ.get("RANK", "0"))


class StandardOutput(logging.Handler):
    """Prints to what sys.stdout is at that moment, which a notebook or a test may have replaced."""

    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    """What a line is printed in: a progress bar steps aside."""

    def emit(self, record: logging.LogRecord) -> None:
        with self.around():
            print(self.format(record), file=sys.stdout, flush=True)


def _configure() -> None:
    handler = StandardOutput()
    handler.setFormatter(logging.Formatter("%(message)s"))
    # Warnings and errors concern the rank that raises them; news is told once.
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or rank() == 0)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


_configure()


class Stop(Exception):
    """Ends a program with one clear message and the given exit code: for what the user can mend, not for bugs."""

    def __init__(self, message: str, exit_code: int = 1, agreed: bool = False) -> None:
        """`agreed`: every rank stops with it, so rank 0 alone says it."""
        super().__init__(message)
        self.exit_code, self.agreed = exit_code, agreed


@contextmanager
def clear_errors(name: str) -> Iterator[None]:
    """Turns the errors that a user can mend into one line and exit code 1; everything else keeps its traceback."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except (Stop, ValueError, OSError) as error:  # OSError: a missing file, a full disk, no permission
        if os.environ.get("PIPELINE_TRACEBACK"):
            raise
        if rank() == 0 or not getattr(error, "agreed", False):
            print(f"{name}: {error}", file=sys.stderr, flush=True)
        sys.exit(getattr(error, "exit_code", 1))
