"""Working directories: one process at a time, and finished files put in a stage's outputs without a second copy."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.log import logger


@contextmanager
def alone(work: Path) -> Iterator[None]:
    """Waits until no other process is in this block for the same working directory.

    Two queued experiments may want the same documents at the same time; a killed process gives its place up.
    """
    with _locked(work, fcntl.LOCK_EX) as path:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def together(work: Path) -> Iterator[None]:
    """Waits until no process is `alone` with the same working directory; any number may be in this block at a time."""
    with _locked(work, fcntl.LOCK_SH):
        yield


@contextmanager
def _locked(work: Path, kind: int) -> Iterator[Path]:
    """Holds a lock of fcntl's kind on a file beside `work`, and yields the file."""
    work.parent.mkdir(parents=True, exist_ok=True)
    path = work.with_name(f"{work.name}.lock")
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another run that prepares the same data (%s)", path)
            fcntl.flock(descriptor, kind)
        if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
            break
        os.close(descriptor)  # the one that we waited for has removed the file: others may have made a new one
    try:
        yield path
    finally:
        os.close(descriptor)


def link_or_copy(source: Path, target: Path) -> None:
    """Gives a file a second name, by a hard link where the file system can; makes the target's directory."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def sweep(out: Path) -> None:
    """Removes what a killed run left beside `out` (see pipeline.files.atomic_directory)."""
    for stale in out.parent.glob(f".{out.name}.*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)
