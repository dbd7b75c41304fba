"""The state of a training run between processes, `.runs/train-<key>/`: its key, when it is finished, and its removal.

DVC writes dvc.lock some time after a stage has ended: it hashes and caches the outputs first, and if it is killed
meanwhile it runs the stage again. So a finished run leaves its directory, with the last checkpoint and `finished.json`,
and ends at once when it is started again. A run that dvc.lock records is removed, so that a forced run trains from the
start.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.artifacts import Record
from pipeline.config import load_yaml
from pipeline.dvc_lock import recorded_md5s
from pipeline.files import remove_directory, sha256_of
from pipeline.log import UserError, logger

FINISHED_FILE = "finished.json"


class FinishedRun(Record):
    """finished.json: an output by which dvc.lock shows that the run is recorded."""

    stage = "train"

    output: str
    md5: str


def run_key(params: Mapping[str, Any], manifest: Path, initial_weights: str, checkpoint_format: int) -> str:
    """16 hexadecimal digits of a hash of everything that defines a run.

    The code is not part of it: a fix must not cost a long run.

    `params`: the sections model and train. `manifest`: of the shards, with the hashes of the data. `initial_weights`:
    the hash of what `model.init_from` names.
    """
    parts = [params, sha256_of(manifest), initial_weights, checkpoint_format]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def code_hashes(stage: str) -> dict[str, str]:
    """The code that a stage depends on in dvc.yaml: path of each Python file -> sha256."""
    deps = [Path(dep) for dep in load_yaml(Path("dvc.yaml"))["stages"][stage]["deps"]]
    code = [dep for dep in deps if dep.parts[0] in ("stages", "pipeline")]
    files = [file for dep in code for file in (sorted(dep.rglob("*.py")) if dep.is_dir() else [dep])]
    return {file.as_posix(): sha256_of(file) for file in files}


def changed_files(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The files whose hashes differ, or that are in one of the two only."""
    return sorted(path for path in before.keys() | now.keys() if before.get(path) != now.get(path))


def finish(directory: Path, output: Path) -> None:
    """Ends a run whose outputs are complete; `output`: one of them whose content is unique to this run.

    Under DVC the directory stays until dvc.lock holds that output's hash. Without DVC it is removed at once.
    """
    if "DVC_STAGE" in os.environ:
        md5 = hashlib.md5(output.read_bytes(), usedforsecurity=False).hexdigest()
        FinishedRun(output=output.as_posix(), md5=md5).write(directory / FINISHED_FILE)
    else:
        remove_directory(directory)


def remove_recorded(runs: Path) -> None:
    """Removes the finished runs in `runs` that dvc.lock records, and what killed removals have left."""
    recorded = recorded_md5s(Path("dvc.lock"))
    for file in runs.glob(f"[!.]*/{FINISHED_FILE}"):
        try:
            if FinishedRun.read(file).md5 in recorded:
                remove_directory(file.parent)
        except (OSError, UserError) as error:
            logger.warning("cannot remove the finished run %s: %s", file.parent, error)
    for leftover in runs.glob(".train-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
