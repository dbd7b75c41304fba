"""Runs Git, as the only module that does: revisions, uncommitted changes, files at a revision, and DVC's experiment.

No function raises: without Git or outside a repository there is no commit.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts import CodeRevision
from pipeline.config import PARAMS_FILE, ConfigError, parse_yaml

GENERATED = ("reports", "dvc.lock")
"""Written by the pipeline itself, so their changes are not changes of a run's inputs."""

_EXCLUDED = [f":(exclude){path}" for path in GENERATED]


@dataclass(frozen=True)
class Revision:
    """The checked-out commit, and how the working tree differs from it."""

    commit: str | None
    """40 hexadecimal digits; None outside a repository, or before the first commit."""
    changed: tuple[str, ...]
    """Changed and untracked files, without GENERATED."""
    remote: str | None
    """URL of the remote `origin` without a password; None for a local path."""


@dataclass(frozen=True)
class Experiment:
    """The DVC experiment that a stage runs for."""

    name: str | None
    """None for a plain `dvc repro`."""
    baseline: str | None
    """The commit that it starts from; HEAD for a plain `dvc repro`."""


def revision(root: Path) -> Revision:
    """The state of the repository at `root`."""
    status = _git(root, "status", "--porcelain", "--no-renames", "-z", "--", ".", *_EXCLUDED) or ""
    changed = sorted(entry[3:] for entry in status.split("\0") if entry)
    remote = _git(root, "config", "--get", "remote.origin.url")
    return Revision(_head(root), tuple(changed), _public_url(remote.strip()) if remote else None)


def code_revision() -> CodeRevision:
    """The commit that the current directory's code is run from."""
    changed = _git(Path.cwd(), "status", "--porcelain", "--untracked-files=no", "--", ".", *_EXCLUDED)
    return CodeRevision(revision=_head(Path.cwd()), dirty=bool(changed and changed.strip()))


def current_experiment() -> Experiment:
    """The experiment named by the environment variables that DVC sets for stages."""
    baseline = os.environ.get("DVC_EXP_BASELINE_REV") or _head(Path.cwd())
    return Experiment(os.environ.get("DVC_EXP_NAME") or None, baseline)


def show(root: Path, rev: str, path: str) -> str | None:
    """The text of a file at a revision; None where either does not exist."""
    return _git(root, "show", f"{rev}:{path}")


def revisions_with(root: Path, path: str, text: str) -> list[str]:
    """The commits whose version of a file contains a text: HEAD first, then branches and DVC's experiments."""
    refs = _git(root, "for-each-ref", "--format=%(objectname)", "refs/heads", "refs/exps/*/*/*") or ""
    if (head := _head(root)) is None:
        return []
    found = _git(root, "grep", "-lFe", text, head, *refs.split(), "--", path) or ""
    return [line.partition(":")[0] for line in found.splitlines()]


def first_commit_with(root: Path, path: str, text: str) -> str | None:
    """The oldest commit, of any branch or DVC experiment, that brought a text into a file; None where there is none."""
    commits = _git(root, "log", "--all", "--reverse", "--format=%H", f"-S{text}", "--", path) or ""
    return next(iter(commits.split()), None)


def params_at(rev: str | None, root: Path | None = None) -> Mapping[str, Any]:
    """params.yaml in `root` (the current directory) at a revision; empty where it is missing or not valid YAML."""
    try:
        values = parse_yaml(show(root or Path.cwd(), str(rev), f"./{PARAMS_FILE}") or "", str(PARAMS_FILE))
    except ConfigError:
        return {}
    return values if isinstance(values, dict) else {}


def same_files(rev: str, *paths: str) -> bool:
    """Whether the tracked files under `paths` in the working tree are those of a revision."""
    return _git(Path.cwd(), "diff", "--quiet", rev, "--", *paths) is not None


def commit_workspace(root: Path) -> str | None:
    """A commit of the tracked files as they are in the working tree, on HEAD; on no branch. None if Git fails."""
    changed = _git(root, "stash", "create")
    if changed is None:
        return None
    commit = _git(root, "commit-tree", f"{changed.strip() or 'HEAD'}^{{tree}}", "-p", "HEAD", "-m", "workspace")
    return commit and commit.strip()


def set_ref(root: Path, name: str, commit: str) -> None:
    """Makes a ref name a commit, which keeps it from Git's garbage collection."""
    _git(root, "update-ref", name, commit)


def object_ids(root: Path, rev: str, paths: Sequence[str]) -> list[str]:
    """The ids of the content that files or directories have at a revision."""
    return (_git(root, "rev-parse", *(f"{rev}:./{path}" for path in paths)) or "").split()


def _head(root: Path) -> str | None:
    commit = _git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    return commit.strip() if commit else None


def _public_url(remote: str) -> str | None:
    scheme, separator, rest = remote.partition("://")
    if not separator:
        return remote if "@" in remote and ":" in remote else None  # git@host:path, or a local path
    if scheme in ("http", "https"):
        return f"{scheme}://{rest.rpartition('@')[2]}"
    return None if scheme == "file" else remote


def _git(root: Path, *arguments: str) -> str | None:
    """What a Git command prints; None where it fails or Git is not installed."""
    command = ["git", "-c", "core.quotepath=off", *arguments]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, encoding="utf-8", errors="replace", check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None
