"""The logger, which prints on rank 0 only; how programs end on errors; how OpenMP threads wait.

from pipeline.log import logger
logger.info("%d documents", count)
"""

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import TracebackType
from typing import Any

logger = logging.getLogger("pipeline")


class StandardOutput(logging.Handler):
    """Prints to the current sys.stdout, which a notebook or a test may have replaced."""

    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Context in which a line is printed: a progress bar is cleared and redrawn."""

    def emit(self, record: logging.LogRecord) -> None:
        # The terminal, or `tee`, may end before training, which has a checkpoint to write.
        with suppress(OSError), self.around():
            print(self.format(record), file=sys.stdout, flush=True)


_handler = StandardOutput()
# Warnings and errors are printed on the rank that raises them, information on rank 0 only.
_handler.addFilter(lambda record: record.levelno >= logging.WARNING or rank() == 0)
logger.addHandler(_handler)
logger.setLevel(logging.INFO)
logger.propagate = False


def _escaped(match: re.Match[str]) -> str:
    return match[0] if match[0].isprintable() else repr(match[0])[1:-1]


class UserError(ValueError):
    """Something that the user can fix: bad input, a damaged file. Its message is printed without a traceback."""

    def __init__(self, message: str, exit_code: int = 1, all_ranks: bool = False) -> None:
        """`message`: one line, or a list whose other lines are indented by two spaces or more.

        Other characters that are not printable come from a value and are escaped: newlines, a terminal's commands.
        `all_ranks`: every rank raises it, so only rank 0 prints it.
        """
        super().__init__(re.sub(r"\n(?!  )|[^\n]", _escaped, message))
        self.exit_code, self.all_ranks = exit_code, all_ranks


def environment_int(name: str, default: int, minimum: int) -> int:
    """The integer in an environment variable; `default` if it is unset or empty. Raises UserError below `minimum`."""
    text = os.environ.get(name) or str(default)
    try:
        if (number := int(text)) >= minimum:
            return number
    except ValueError:
        pass
    raise UserError(f"{name} ({text}): the environment variable must be an integer of at least {minimum}")


def rank() -> int:
    """This process's rank as torchrun sets it; 0 outside torchrun."""
    return environment_int("RANK", default=0, minimum=0)


def _excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Ends a program quietly on Ctrl-C before `cli_errors`: the imports of a stage take seconds."""
    if issubclass(kind, KeyboardInterrupt):
        print(file=sys.stderr)  # the shell's prompt starts on a new line; Python ends with SIGINT, in a shell 130
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _excepthook

# Here because every program imports this module before torch, which loads OpenMP. Threads that wait for each other spin
# before they sleep, by libgomp's default for milliseconds, on cores that other programs may need. Measurements:
# docs/troubleshooting.md.
if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
    os.environ["GOMP_SPINCOUNT"] = "10000"


@contextmanager
def cli_errors(name: str, description: str | None = None) -> Iterator[None]:
    """Ends the program with one line and an exit code on UserError and OSError. Everything else is a bug of ours and
    keeps its traceback; PIPELINE_TRACEBACK=1 shows it for user errors too.

    `description`: of a stage that takes no arguments. It is printed for --help; arguments are refused.
    """
    if description is not None:
        parser = argparse.ArgumentParser(f"python -m stages.{name}", description=description)
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.parse_args()
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
        if not getattr(error, "all_ranks", False) or rank() == 0:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
        sys.exit(getattr(error, "exit_code", 1))
