"""Which unfinished run this is: the directory that a training run can be resumed from, the lock on it, and its end.

DVC writes dvc.lock some time after a stage has ended: it hashes and caches the outputs first. Killed in between, it
runs the stage again. So a finished run leaves its directory, with the last checkpoint and `finished.json`, and is done
at once when it is started again; what dvc.lock records is removed, so that a forced run trains anew.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.config import load_yaml
from pipeline.files import read_json, sha256_of, write_json
from pipeline.log import Stop, logger

FINISHED_FILE = "finished.json"


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


def finish(directory: Path, output: Path) -> None:
    """Ends a run whose outputs are complete; `output` is one of them that no other run writes alike.

    Under DVC the directory stays until dvc.lock holds that output's hash. Without DVC it is removed at once.
    """
    if "DVC_STAGE" in os.environ:
        md5 = hashlib.md5(output.read_bytes(), usedforsecurity=False).hexdigest()
        write_json(directory / FINISHED_FILE, {"output": output.as_posix(), "md5": md5})
    else:
        _remove(directory)


def remove_recorded(runs: Path) -> None:
    """Removes the finished runs that dvc.lock records from `runs`, and what a kill left of runs being removed."""
    lock = Path("dvc.lock")
    recorded = lock.read_text(encoding="utf-8") if lock.exists() else ""
    for file in runs.glob(f"*/{FINISHED_FILE}"):
        try:
            if read_json(file)["md5"] in recorded:
                _remove(file.parent)
        except OSError as error:
            logger.warning("cannot remove the finished run %s: %s", file.parent, error)
    for leftover in runs.glob(".train-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def _remove(directory: Path) -> None:
    """Renames the directory first: half of a run must not be taken for one that can be resumed."""
    doomed = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(doomed, ignore_errors=True)
    directory.replace(doomed)
    shutil.rmtree(doomed)
