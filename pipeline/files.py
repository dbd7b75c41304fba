"""Files that are whole or absent: everything is written beside its place, flushed to the disk, then renamed."""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write a file to; renames it to `path` when the block ends well.

    After a crash, `path` holds its old content or its new content, never a part. On an error the temporary is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            yield temporary
            flush_to_disk(temporary)
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_to_disk(path.parent)


@contextmanager
def atomic_directory(path: Path, contents: Collection[str]) -> Iterator[Path]:
    """Yields an empty temporary directory beside `path` to fill; it replaces `path` when the block ends well.

    `contents`: glob patterns of all that the writer may have put there before. A directory with anything else in it
    was not written by us: it is never removed, and FileExistsError names what was found. The old directory is renamed
    before it is deleted, so a kill never leaves a part of it under its name.
    """
    check_replaceable(path, contents)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
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


def check_replaceable(path: Path, contents: Collection[str] = ()) -> None:
    """Raises FileExistsError unless `path` is absent, an empty directory, or one with nothing but `contents` in it.

    A path without a name of its own (`..`, `/`) and a symbolic link are refused too: what they lead to is not ours.
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
                f"{path} exists and holds {foreign[0]}, which was not written here: it is kept as it is"
            )


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives an OSError that names no file, as those of writing do, the name of `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def flush_to_disk(path: Path) -> None:
    """fsync of a file or a directory, so that a rename is never on the disk before the data it names."""
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
    """The value in a JSON file. Raises FileNotFoundError, or ValueError that names the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None


def sha256_of(path: Path) -> str:
    """The sha256 of a file as 64 hexadecimal digits, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
