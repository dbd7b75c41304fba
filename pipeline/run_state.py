"""The state of a training run between processes, `.runs/train-<key>/`: its key, when it is finished, and its removal.

DVC writes dvc.lock some time after a stage has ended, again after each later stage, and not atomically: if it is killed
meanwhile, it runs the stage again. So a finished run leaves its directory, with the last checkpoint and
`finished.json`, and ends at once when it is started again. The directory is removed only when the record cannot be lost
any more, or is no longer of use: never by the pipeline that trained it.
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pipeline.artifacts import Record
from pipeline.config import load_yaml
from pipeline.dvc_lock import recorded_md5s
from pipeline.files import exclusive_lock, main_root, remove_directory, remove_leftovers, sha256_of
from pipeline.git import revisions_with
from pipeline.log import UserError, logger

FINISHED_FILE = "finished.json"


class FinishedRun(Record):
    """finished.json: an output by which dvc.lock shows that the run is recorded."""

    stage = "train"

    output: str
    md5: str


def run_key(params: Mapping[str, Any], manifest: Path, initial_weights: str, checkpoint_format: int) -> str:
    """Everything that defines a run: 16 hexadecimal digits of a hash, and train.max_steps: `0123456789abcdef-600`.

    Runs that differ only in their length have the same hash, so that a longer one can continue a shorter one
    (pipeline.training.continuation). The code is not part of it: a fix must not cost a long run.

    `params`: the sections model and train. `manifest`: of the shards, with the hashes of the data. `initial_weights`:
    the hash of what `model.init_from` names.
    """
    train = {key: value for key, value in params["train"].items() if key != "max_steps"}
    parts = [{**params, "train": train}, sha256_of(manifest), initial_weights, checkpoint_format]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    return f"{digest}-{params['train']['max_steps']}"


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

    Under DVC the directory stays for the case that DVC starts the run again, and the finished runs before this one are
    removed. Without DVC it is removed at once.
    """
    if "DVC_STAGE" in os.environ:
        md5 = hashlib.md5(output.read_bytes(), usedforsecurity=False).hexdigest()
        FinishedRun(output=output.as_posix(), md5=md5).write(directory / FINISHED_FILE)
        # dvc.lock records the training whose outputs this one has just replaced.
        remove_finished(
            directory.parent, recorded_md5s(Path("dvc.lock")) if main_root() == Path.cwd() else (), directory
        )
    else:
        remove_directory(directory)


def remove_recorded(directory: Path) -> bool:
    """Removes a finished run that dvc.lock records: DVC starts it again only with --force, to train from the start.

    Returns whether it did.
    """
    recorded = _finished_md5(directory) in recorded_md5s(Path("dvc.lock"))
    if recorded:
        remove_directory(directory)
    return recorded


def remove_finished(runs: Path, superseded: Collection[str] = (), kept: Path | None = None) -> list[Path]:
    """Removes and returns the finished runs in `runs` whose md5 is in `superseded` or in a commit's dvc.lock.

    `kept` stays. DVC's experiments are commits too. A run that only the dvc.lock of a working directory records is not
    removed: DVC may be killed while it writes that file, and deletes the copies in which it runs experiments.
    """
    remove_leftovers(runs)
    removed = []
    for state in sorted(runs.glob("train-*/")):
        md5 = None if state == kept else _finished_md5(state)
        if md5 and (md5 in superseded or revisions_with(main_root(), "dvc.lock", md5)):
            try:
                with exclusive_lock(state, wait=False):
                    remove_directory(state)
                removed.append(state)
            except (OSError, UserError) as error:
                logger.warning("cannot remove the finished run %s: %s", state, error)
    return removed


def _finished_md5(directory: Path) -> str | None:
    """The md5 in the finished.json of a run; None where there is none, or it is damaged."""
    try:
        return FinishedRun.read(directory / FINISHED_FILE).md5
    except FileNotFoundError:
        return None
    except (OSError, UserError) as error:
        logger.warning("%s: %s", directory, error)
        return None
