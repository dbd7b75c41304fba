"""Which unfinished run this is: the directory that a training run can be resumed from, and the lock on it."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.config import load_yaml
from pipeline.files import sha256_of
from pipeline.log import Stop


def fingerprint(stage: str, params: dict[str, Any]) -> str:
    """16 hexadecimal digits that change with whatever DVC would rerun the stage for: its deps and its params.

    `params`: the sections that the stage computes from. The deps are those that dvc.yaml lists for the stage, by
    content; a directory with a manifest.json counts by its manifest, which holds the hashes of the rest.
    """
    digest = hashlib.sha256(json.dumps(params, sort_keys=True).encode())
    for dep in load_yaml(Path("dvc.yaml"))["stages"][stage]["deps"]:
        for file in _files_that_stand_for(Path(dep)):
            digest.update(f"{file.as_posix()} {sha256_of(file)}\n".encode())
    return digest.hexdigest()[:16]


def _files_that_stand_for(dep: Path) -> list[Path]:
    if dep.is_file():
        return [dep]
    manifest = dep / "manifest.json"
    return [manifest] if manifest.is_file() else sorted(file for file in dep.rglob("*") if file.is_file())


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds a run directory for this process alone; Stop where another one holds it. Freed however the process ends."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Stop(
                f"{directory} is in use by process {file.read().strip() or 'unknown'}: "
                "the same configuration is being trained already"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
