"""Runs one case: a damaged file in a copy of the project, and whether the product behaves."""

import gc
import os
import random
import re
import resource
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import FrameType
from typing import Literal

from pipeline.config import OWNERS
from pipeline.log import UserError
from tests.fuzz.damage import damaged
from tests.fuzz.kinds import CHECKPOINT, KINDS, make_project, reseal

LIMIT_BYTES = 2**30  # that a case may allocate


class Failure(AssertionError):
    """The product did not behave: neither worked nor refused the file with one line that names it.

    The message: cause and line of code, a colon, details.
    """


class TooLong(KeyboardInterrupt):
    """Time is up. Of this type, because nothing in the product catches it."""


@contextmanager
def workspace() -> Iterator[Path]:
    """A directory in memory with the valid project in `project/`."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        with silence():
            make_project(Path(folder, "project"))
        gc.freeze()  # training collects garbage, which takes long with all that is imported
        yield Path(folder)
        gc.unfreeze()


def run_case(space: Path, file: str, rng: random.Random | None) -> Literal["worked", "refused"]:
    """Uses a damaged file, a valid one if `rng` is None. Its content is kept in `space / "damaged"`. Raises Failure."""
    root = space / "case"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(space / "project", root, copy_function=os.link)
    if rng is not None:
        path = root / file
        content = damaged(rng, path.read_bytes(), path.name)
        path.unlink()  # it is a link to the valid one
        path.write_bytes(content)
        (space / "damaged").write_bytes(content)
        if file.startswith(str(CHECKPOINT)) and rng.random() < 0.7:
            with chdir(root), suppress(Exception):
                reseal()
    return check(root, file, KINDS[file])


def check(root: Path, file: str, use: Callable[[], object], limit_s: float = 5.0) -> Literal["worked", "refused"]:
    """Uses the file in the project `root`. Raises Failure with the cause and where in the product it came from."""
    with chdir(root), silence():
        try:
            with _limits(limit_s):
                use()
        except TooLong as error:
            raise Failure(f"longer than {limit_s} s{_where(error)}: {error!r}") from error
        except KeyboardInterrupt:
            raise
        except (UserError, OSError) as error:
            if wrong := _wrong_message(str(error), Path(file)):
                raise Failure(f"{wrong}{_where(error)}: {str(error)[:200]!r}") from error
            return "refused"
        except BaseException as error:
            raise Failure(f"{type(error).__name__}{_where(error)}: {str(error)[:200]!r}") from error
    return "worked"


def _wrong_message(message: str, file: Path) -> str | None:
    """What is wrong with an error: its first line names the file, its directory or `key (value)`; others are a list."""
    names = [file.name, *(str(parent) for parent in file.parents if len(parent.parts) > 1)]
    first, *others = message.splitlines() or [""]
    if not any(name in first for name in names) and not re.search(rf"\b({'|'.join(OWNERS)})\.\w+ \(", first):
        return "does not name the file"
    return None if all(line.startswith("  ") for line in others) else "more than one line"


def _where(error: BaseException) -> str:
    """The deepest line of the product in the traceback."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/pipeline/" in frame.filename]
    return f" at pipeline/{frames[-1].filename.rpartition('/pipeline/')[2]}:{frames[-1].lineno}" if frames else ""


@contextmanager
def silence() -> Iterator[None]:
    """Standard output and error go nowhere, but must be UTF-8."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


@contextmanager
def _limits(seconds: float) -> Iterator[None]:
    """Raises TooLong in the block after `seconds`; allocations beyond LIMIT_BYTES more than now fail."""

    def stop(signal_number: int, frame: FrameType | None) -> None:
        raise TooLong

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + LIMIT_BYTES, hard))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)
