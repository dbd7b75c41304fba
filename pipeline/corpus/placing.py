"""Moves finished files from a working directory to a stage's outputs without writing them a second time."""

import os
import shutil
from pathlib import Path


def link_or_copy(source: Path, target: Path) -> None:
    """Gives a file a second name, by a hard link where the file system can; makes the target's directory."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def sweep(out: Path) -> None:
    """Removes what a killed run left beside `out` (see pipeline.files.atomic_directory)."""
    for stale in out.parent.glob(f".{out.name}.*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)
