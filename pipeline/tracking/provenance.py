"""Where a run's code came from, and what to call it."""

import os
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class Revision:
    """The Git commit that the code was run from."""

    revision: str | None
    """40 hexadecimal digits; None outside a repository, or before the first commit."""
    dirty: bool
    """Whether tracked files differed from it."""


def git_revision() -> Revision:
    """The revision of the current directory's repository."""
    revision = _git("rev-parse", "HEAD")
    return Revision(revision or None, dirty=bool(_git("status", "--porcelain", "--untracked-files=no")))


def run_name(fingerprint: str) -> str:
    """DVC's name of the experiment; else the Git revision and the run's fingerprint, both cut short."""
    if name := os.environ.get("DVC_EXP_NAME"):
        return name
    revision = git_revision().revision
    return f"{revision[:7] if revision else 'nogit'}-{fingerprint[:6]}"


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
