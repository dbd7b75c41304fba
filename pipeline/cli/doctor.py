"""Repairs what killed processes have left behind, and says what it did.

- dvc.lock, .dvc/tmp/rwlock: DVC writes both in place, so a kill can leave them empty or cut off
- temporary files and directories of the pipeline, and copies of the repository in which DVC ran experiments
- finished runs in .runs/ that are committed

Only files that a kill can leave are removed; a damaged dvc.lock is kept in .runs/. Nothing is touched while DVC or the
pipeline is working in the repository. At the end params.yaml and dvc.yaml are checked.
"""

import argparse
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil

from pipeline import git
from pipeline.config import PARAMS_FILE, load_yaml, validate
from pipeline.dvc_lock import Lock, parse_lock
from pipeline.files import RUNS, exclusive_lock, write_text
from pipeline.log import UserError, logger
from pipeline.run_state import remove_finished

LOCK, DVC_TMP, RUN_STATE = Path("dvc.lock"), Path(".dvc/tmp"), Path(RUNS)
SUMMARY = Path("reports/train/summary.json")
TEMPORARY = re.compile(r"\..+-\d+(\.old)?\.tmp")
"""The names that pipeline.files gives."""


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(arguments)
    repairs = list(repair())
    for line in repairs or ["nothing to repair"]:
        logger.info("%s", line)
    load_yaml(Path("dvc.yaml"))
    validate(load_yaml(PARAMS_FILE))


def repair() -> Iterator[str]:
    """Repairs the repository in the current directory; yields what was done. Raises UserError if it is in use.

    Holds the locks of all runs, and the one that every DVC process needs before it starts a stage.
    """
    if not Path(".dvc").is_dir():
        raise UserError(f"{Path.cwd()} is not the root of a DVC repository")
    refuse_if_in_use(Path.cwd())
    with ExitStack() as locks:
        for lock in [DVC_TMP / "rwlock.lock", *RUN_STATE.glob("*.lock")]:
            locks.enter_context(exclusive_lock(lock.with_suffix(""), wait=False))
        yield from repair_dvc_lock()
        yield from remove_rwlocks()
        yield from remove_temporaries()
        yield from remove_copies()
    for state in remove_finished(RUN_STATE):
        yield f"{state}: removed, the finished run is committed"


def refuse_if_in_use(root: Path) -> None:
    """Raises UserError if another process of DVC or of the pipeline works below `root`."""
    own = {process.pid for process in (psutil.Process(), *psutil.Process().parents())}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            works = any(Path(word).name == "dvc" or re.match(r"stages\.|pipeline$", word) for word in words[:4])
            if process.pid not in own and works and Path(process.cwd()).is_relative_to(root):
                raise UserError(f"process {process.pid} ({' '.join(words)}) is working in {root}: wait for it to end")


def repair_dvc_lock() -> Iterator[str]:
    """Replaces a dvc.lock that a kill has cut short by a committed version.

    That version records the training in reports/ where any does; otherwise it is HEAD's. Stages whose records are lost
    come from DVC's run cache, and training from its finished run in .runs/.
    """
    if not LOCK.exists():
        return
    trained = hashlib.md5(SUMMARY.read_bytes(), usedforsecurity=False).hexdigest() if SUMMARY.exists() else None
    revisions = [*(git.revisions_with(Path.cwd(), LOCK.name, trained) if trained else ()), "HEAD"]
    committed = next(filter(parse_lock, (git.show(Path.cwd(), revision, f"./{LOCK}") for revision in revisions)), None)
    text = LOCK.read_bytes()
    lock = parse_lock(text.decode("utf-8", errors="replace"))
    if lock is None:
        reason = "empty" if not text.strip() else "not valid"
    elif missing := sorted(_stages(parse_lock(committed)) - _stages(lock)):
        reason = f"without {', '.join(missing)}"
    elif not text.endswith(b"\n"):
        reason = "cut off"
    else:
        return
    damaged = RUN_STATE / "damaged-dvc.lock"
    RUN_STATE.mkdir(exist_ok=True)
    shutil.copyfile(LOCK, damaged)
    if committed is not None:
        write_text(LOCK, committed)
        yield f"{LOCK}: {reason}, restored from Git; the damaged file is {damaged}"
    else:
        LOCK.unlink()
        yield f"{LOCK}: {reason} and not in Git, moved to {damaged}; DVC will write a new one"


def _stages(lock: Lock | None) -> set[str]:
    """The stages whose outputs are recorded."""
    return {output.stage for output in lock.outputs} if lock else set()


def remove_rwlocks() -> Iterator[str]:
    """Removes lists of the paths that running processes use, as no process is running."""
    for path in (DVC_TMP / "rwlock", DVC_TMP / "exps/rwlock"):
        with suppress(FileNotFoundError):
            text = path.read_text(encoding="utf-8", errors="replace")
            try:
                stale = any(json.loads(text).values())
            except (ValueError, AttributeError):
                stale = True
            if stale:
                path.unlink()
                yield f"{path}: removed, damaged or left by a killed process"


def remove_temporaries() -> Iterator[str]:
    for directory in (Path("data"), Path("reports"), RUN_STATE):
        for path in sorted(directory.rglob(".*.tmp")):
            if TEMPORARY.fullmatch(path.name) and path.exists():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                yield f"{path}: removed, left by a killed process"


def remove_copies() -> Iterator[str]:
    """Removes the copies of the repository in which killed experiments ran, unless a process is in one."""
    users: dict[Path, int] = {}  # path in use -> process id
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            paths = [process.cwd(), *(file.path for file in process.open_files())]
            users |= {Path(path): process.pid for path in paths}
    for parent in (DVC_TMP / "exps", DVC_TMP / "exps/standalone"):
        for copy in sorted(parent.glob("tmp*/")):
            pid = next((pid for path, pid in users.items() if path.is_relative_to(copy.resolve())), None)
            if pid is None:
                shutil.rmtree(copy)
                yield f"{copy}: removed, left by a killed experiment"
            else:
                yield f"{copy}: kept, process {pid} is using it"
