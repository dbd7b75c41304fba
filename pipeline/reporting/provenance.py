"""Where a run comes from, what differs from the last committed run, and the commands that reproduce it."""

import re
import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import PurePosixPath
from typing import Any

from pipeline import markdown as md
from pipeline.dvc_lock import differing
from pipeline.formatting import exact
from pipeline.recipes import hydra_value
from pipeline.reporting.run import Run

NAMED = 8
"""Most files to name in a sentence."""


def commands(run: Run) -> list[str]:
    """The shell commands that reproduce the run: clone, check out, run with what differs from the committed params."""
    revision = run.revision
    lines = []
    if revision.remote:
        directory = re.sub(r"\.git$", "", revision.remote.rstrip("/")).rpartition("/")[2]
        lines.append(f"git clone {shlex.quote(revision.remote)} && cd {shlex.quote(directory)}")
    if revision.commit:
        lines.append(f"git checkout {revision.commit}")
    lines.append("make setup && . .venv/bin/activate")
    settings = [shlex.quote(f"{key}={hydra_value(value)}") for key, _, value in changed_params(run)]
    lines.append(
        " \\\n  ".join(["dvc exp run", *(f"-S {setting}" for setting in settings)] if settings else ["dvc repro"])
    )
    return lines


def changed_params(run: Run) -> list[tuple[str, Any, Any]]:
    """(key, committed, this run's) of the params that differ from the committed params.yaml and change a result."""
    if run.lock is None or run.committed_params is None:
        return []
    differences = differing(run.committed_params, run.lock.params)
    return [part for part in differences if part[0] in run.lock.params and not part[0].startswith("report.")]


def differences(run: Run) -> dict[str, list[Any]] | None:
    """What differs from the committed dvc.lock: `settings` as (key, was, now), `code` as paths; None without one."""
    if run.lock is None or run.committed is None:
        return None
    settings = differing(run.committed.params, run.lock.params)
    return {
        "settings": [part for part in settings if not part[0].startswith("report.")],
        "code": [path for path, _, _ in differing(run.committed.inputs, run.lock.inputs)],
    }


def uncommitted(run: Run) -> tuple[list[str], list[str]]:
    """Changed or new files: (those that the run was made from, those that no stage reads).

    Without dvc.lock any file may be an input. Git names a new directory by its `/`.
    """
    inputs = [*run.lock.inputs, "params.yaml", "dvc.yaml"] if run.lock else None
    read = [path for path in run.revision.changed if inputs is None or any(_overlap(path, part) for part in inputs)]
    return read, [path for path in run.revision.changed if path not in read]


def commit_link(run: Run, commit: str) -> str:
    """A commit in markdown, as a link where the repository is on GitHub."""
    if match := re.search(r"github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?$", run.revision.remote or ""):
        return f"[`{commit[:10]}`](https://github.com/{match[1]}/commit/{commit})"
    return md.code(commit)


def versions(run: Run) -> str:
    """What computed the run, and what tracked it."""
    hardware = run.train.hardware
    packages = [("Python", hardware.python), ("torch", hardware.torch)]
    packages += [(package, version(package)) for package in ("numpy", "dvc")]
    return ", ".join(f"{name} {number}" for name, number in packages)


def file_list(paths: Sequence[str]) -> str:
    """Files in a sentence, the first few by name: `a`, `b` and 3 more."""
    words = [md.code(path) for path in paths[:NAMED]]
    if len(paths) > NAMED:
        words.append(f"{exact(len(paths) - NAMED)} more")
    return md.listing(words)


def _overlap(path: str, other: str) -> bool:
    """Whether they are the same, or one is a directory that holds the other."""
    first, second = PurePosixPath(path), PurePosixPath(other)
    return first.is_relative_to(second) or second.is_relative_to(first)
