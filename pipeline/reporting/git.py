"""What Git knows about this run: the revision, what is changed beside it, and files of other revisions."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

GENERATED = ("reports", "dvc.lock")
"""What the pipeline itself writes: changes there do not make a run another one."""


@dataclass(frozen=True)
class Revision:
    """The commit that the working tree stands on. `commit` is None outside Git and before the first commit."""

    commit: str | None
    changed: tuple[str, ...]
    """Files that differ from it or are new, without what the pipeline writes itself."""
    remote: str | None
    """Where a clone comes from: the URL of `origin`, without a password."""

    @property
    def short(self) -> str:
        return self.commit[:10] if self.commit else "no commit"


def revision(root: Path) -> Revision:
    """The state of the repository at `root`. Never raises: without Git there is no commit."""
    commit = _git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    excluded = [f":(exclude){path}" for path in GENERATED]
    status = _git(root, "status", "--porcelain", "--no-renames", "-z", "--", ".", *excluded) or ""
    changed = sorted(entry[3:] for entry in status.split("\0") if entry)
    remote = _git(root, "config", "--get", "remote.origin.url")
    return Revision(commit.strip() if commit else None, tuple(changed), _without_password(remote))


def show(root: Path, rev: str, path: str) -> str | None:
    """The text of a file at a revision; None where either is not there."""
    return _git(root, "show", f"{rev}:{path}")


def _without_password(remote: str | None) -> str | None:
    """The URL without user and password; None for a folder on this machine, which tells nobody anything."""
    if remote is None or ("://" not in remote and not ("@" in remote and ":" in remote)):
        return None
    remote = remote.strip()
    scheme, separator, rest = remote.partition("://")
    if scheme == "file" or not separator:
        return None if scheme == "file" else remote
    return f"{scheme}://{rest.rpartition('@')[2]}" if scheme in ("http", "https") else remote


def _git(root: Path, *arguments: str) -> str | None:
    """What a git command prints; None where it fails or there is no git."""
    try:
        done = subprocess.run(
            ["git", "-c", "core.quotepath=off", *arguments],
            cwd=root,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None
