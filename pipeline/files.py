"""Files that are complete or absent, locks, and the directory for work in progress.

Every file and directory is written under a temporary name beside its target, flushed to disk, then renamed. A
directory is renamed before it is removed. Temporary names are `.<name>.<host>-<pid>.tmp`; those that a killed process
has left are removed by the next one that writes or removes the same target.

Work in progress is kept in `.runs/` under the root of the main repository. DVC removes a stage's outputs before it runs
the stage, and `dvc exp run --temp` and `--queue` run in a copy of the repository that is deleted afterwards. What must
survive a killed run is therefore stored outside of both.
"""

import fcntl
import glob
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any

from pipeline.log import UserError, logger


@contextmanager
def atomic_path(path: Path, flush: bool = True) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write a file to; renames it to `path` when the block succeeds.

    After a crash, `path` holds its old content or its new content, never a mixture. On an error the temporary file is
    removed. `flush=False` leaves out the fsync, for files whose content is checked by a hash before it is used, and the
    search for leftovers, which would read a directory of thousands of files again for each.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} exists and is not a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    if flush:
        remove_leftovers(path.parent, path.name)
    temporary = _temporary(path)
    try:
        with naming(path):
            yield temporary
            if flush:
                flush_to_disk(temporary)
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if flush:
        flush_to_disk(path.parent)


@contextmanager
def atomic_directory(path: Path, contents: Collection[str]) -> Iterator[Path]:
    """Yields an empty temporary directory beside `path` to fill; it replaces `path` when the block succeeds.

    `contents`: glob patterns of everything that the writer may have put there before. A directory that contains
    anything else was not written by this pipeline: it is never removed, and FileExistsError names the foreign entry.
    The old directory is renamed before it is deleted, so a kill never leaves a part of it under its name.
    """
    check_replaceable(path, contents)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    temporary, old = _temporary(path), _temporary(path, ".old")
    temporary.mkdir()
    try:
        with naming(path):
            yield temporary
            for file in temporary.rglob("*"):
                flush_to_disk(file)
            check_replaceable(path, contents)
            if path.exists():
                path.replace(old)
            temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    flush_to_disk(path.parent)


def remove_directory(path: Path) -> None:
    """Removes a directory, if it exists. It is renamed first, so a kill never leaves a part of it under its name."""
    remove_leftovers(path.parent, path.name)
    old = _temporary(path, ".old")
    if path.exists():
        path.replace(old)
        shutil.rmtree(old)


def _temporary(path: Path, suffix: str = "") -> Path:
    """A free temporary name beside `path`."""
    own = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}{suffix}.tmp")
    _remove(own)
    return own


def remove_leftovers(directory: Path, name: str | None = None) -> None:
    """Removes the temporaries in `directory` that killed processes of this machine have left, of one target or all."""
    target = glob.escape(name) if name else "*"
    for leftover in directory.glob(f".{target}.{glob.escape(socket.gethostname())}-*.tmp"):
        pid = leftover.name.rpartition("-")[2].partition(".")[0]
        if pid.isdecimal() and not is_running(int(pid)):
            _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    """Whether a process of this machine has the id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def check_replaceable(path: Path, contents: Collection[str] = ()) -> None:
    """Raises FileExistsError unless `path` is absent, an empty directory, or contains nothing but `contents`.

    A path without a name of its own (`..`, `/`) and a symbolic link are refused too.
    """
    if path.name in ("", ".."):
        raise FileExistsError(f"{path} cannot be written: name a new directory")
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise FileExistsError(f"{path} exists and is not a directory")
    if path.is_dir():
        foreign = sorted(
            entry.name for entry in path.iterdir() if not any(entry.match(pattern) for pattern in contents)
        )
        if foreign:
            raise FileExistsError(
                f"{path} contains {foreign[0]}, which this pipeline did not write: it is not replaced"
            )


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the name of `path` to an OSError that names no file, such as a full disk while writing."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def parsing(name: str | Path) -> Iterator[None]:
    """Turns whatever a parser raises on bad content into one UserError that begins with `name`, such as the path.

    The one boundary for content that other programs may have damaged or written. UserError passes, and so does an
    OSError of the system that names its file. Libraries written in Rust raise BaseException (PanicException), and a
    damaged size makes many a parser raise MemoryError.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        line = next((line for line in str(error).splitlines() if line.strip()), "")
        raise UserError(f"{name}: {line or type(error).__name__}") from error


def flush_to_disk(path: Path) -> None:
    """fsync of a file or a directory, so that a rename never reaches the disk before the data."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically, keys in the given order, a newline at the end. NaN is refused (ValueError)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises FileNotFoundError, or UserError that names the file."""
    with parsing(f"{path} is not valid JSON"):
        return json.loads(path.read_text(encoding="utf-8"))


def sha256_of(path: Path) -> str:
    """The sha256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def exclusive_lock(work: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds the lock of a working directory for this process alone, until the block or the process ends.

    The lock is on the file `<work>.lock` beside the directory, which need not exist. The file is never removed. While
    another process holds the lock, this one waits; with `wait=False` it raises UserError that names the other's process
    id.
    """
    with _lock(work, fcntl.LOCK_EX, wait):
        yield


@contextmanager
def shared_lock(work: Path) -> Iterator[None]:
    """Waits while a process holds the exclusive lock of `work`. Any number of processes can hold the shared lock."""
    with _lock(work, fcntl.LOCK_SH, wait=True):
        yield


@contextmanager
def _lock(work: Path, kind: int, wait: bool) -> Iterator[None]:
    """Holds an flock of the given kind on the lock file, which contains the process id of its last holder."""
    path = work.with_name(f"{work.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "unknown"
            if not wait:
                raise UserError(f"{work} is in use by process {holder}: wait for it to end, or stop it") from None
            logger.info("waiting for process %s, which is working on the same data (%s)", holder, path)
            fcntl.flock(file, kind)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def link_or_copy(source: Path, target: Path) -> None:
    """Creates `target` as a hard link to `source`, or as a copy where the file system has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def set_aside(path: Path, prefix: str) -> Path:
    """Renames a file or directory to `<prefix><name>`, with a number after it if that exists; returns the new path."""
    first = path.with_name(prefix + path.name)
    names = chain([first], (first.with_name(f"{first.name}-{number}") for number in count(2)))
    return path.rename(next(name for name in names if not os.path.lexists(name)))


RUNS = ".runs"


def main_root(here: Path | None = None) -> Path:
    """The root of the main repository, also from within DVC's temporary copies in `<root>/.dvc/tmp/exps/`."""
    here = (here or Path.cwd()).resolve()
    for parent in (here, *here.parents):
        if parent.parts[-3:] == (".dvc", "tmp", "exps"):
            return parent.parents[2]
    return here


def run_directory(name: str) -> Path:
    """The directory `.runs/<name>` for work in progress. It is not created."""
    return main_root() / RUNS / name
