"""The logger of the pipeline, which prints on rank 0 only, and how a program ends on an error.

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
    """This process's rank as torchrun sets it; 0 outside torchrun."""
    return int(os.environ.get("RANK", "0"))


class StandardOutput(logging.Handler):
    """Prints to the current sys.stdout, which a notebook or a test may have replaced."""

    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Context in which a line is printed: a progress bar is cleared and redrawn."""

    def emit(self, record: logging.LogRecord) -> None:
        with self.around():
            print(self.format(record), file=sys.stdout, flush=True)


_handler = StandardOutput()
# Warnings and errors are printed on the rank that raises them, information on rank 0 only.
_handler.addFilter(lambda record: record.levelno >= logging.WARNING or rank() == 0)
logger.addHandler(_handler)
logger.setLevel(logging.INFO)
logger.propagate = False


class UserError(ValueError):
    """Something that the user can fix: bad input, a damaged file. Its message is printed without a traceback."""

    def __init__(self, message: str, exit_code: int = 1, all_ranks: bool = False) -> None:
        """`all_ranks`: every rank raises it, so only rank 0 prints it."""
        super().__init__(message)
        self.exit_code, self.all_ranks = exit_code, all_ranks


@contextmanager
def cli_errors(name: str) -> Iterator[None]:
    """Ends the program with one line and an exit code on UserError and OSError. Everything else is a bug of ours and
    keeps its traceback; PIPELINE_TRACEBACK=1 shows it for user errors too."""
    try:
        yield
    except KeyboardInterrupt:
        print(file=sys.stderr)  # the shell's prompt starts on a new line
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output, `head` for example, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's last flush
        sys.exit(141)  # 128 + SIGPIPE, as a shell reports it
    except (UserError, OSError) as error:  # OSError: a missing file, a full disk, no permission
        if os.environ.get("PIPELINE_TRACEBACK"):
            raise
        if rank() == 0 or not getattr(error, "all_ranks", False):
            print(f"{name}: {error}", file=sys.stderr, flush=True)
        sys.exit(getattr(error, "exit_code", 1))
