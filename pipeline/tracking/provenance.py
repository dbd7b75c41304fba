"""Where a run comes from: the Git commit of its code, and the DVC experiment that it is."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.config import PARAMS_FILE


@dataclass(frozen=True)
class Revision:
    """The Git commit that the code was run from."""

    revision: str | None
    """40 hexadecimal digits; None outside a repository, or before the first commit."""
    dirty: bool
    """Whether tracked files differed from it."""


@dataclass(frozen=True)
class Experiment:
    """What DVC tells a stage of the experiment that it runs for."""

    experiment: str | None
    """Its name; None for a plain `dvc repro`."""
    baseline: str | None
    """The commit that it starts from; HEAD for a plain `dvc repro`."""


def git_revision() -> Revision:
    """The revision of the current directory's repository."""
    revision = _git("rev-parse", "HEAD")
    return Revision(revision or None, dirty=bool(_git("status", "--porcelain", "--untracked-files=no")))


def experiment() -> Experiment:
    """The experiment that DVC's environment variables name."""
    baseline = os.environ.get("DVC_EXP_BASELINE_REV") or _git("rev-parse", "HEAD")
    return Experiment(os.environ.get("DVC_EXP_NAME") or None, baseline or None)


def params_at(revision: str | None) -> Mapping[str, Any]:
    """params.yaml as committed at a revision; empty where there is none, or none that can be read."""
    try:
        values = YAML(typ="safe", pure=True).load(_git("show", f"{revision}:./{PARAMS_FILE}"))
    except YAMLError:
        return {}
    return values if isinstance(values, dict) else {}


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
