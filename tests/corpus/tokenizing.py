"""What the tests of the tokenization share: a corpus, its runs in processes of their own, and what they leave."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.corpus import tokenization
from pipeline.corpus.encoder import UnitTask, encode_unit
from pipeline.corpus.pieces import Piece

from .conftest import DOCUMENTS

CORPUS = [f"{text} {number}" if text else "" for number in range(12) for text in DOCUMENTS]


def contents(directory: Path) -> dict[str, bytes]:
    """Every file in a directory of shards."""
    files = {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert files
    return files


def count_encoded_units(work: Any) -> int:
    """How many units `work` encodes, in this process."""
    encoded: list[UnitTask] = []

    def counting(task: UnitTask) -> tuple[UnitTask, Piece]:
        encoded.append(task)
        return encode_unit(task)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenization, "encode_unit", counting)
        work()
    return len(encoded)


TOKENIZE = """
import json, sys
from pathlib import Path
from pipeline.corpus.encodings import TokenizerParams
from pipeline.corpus.tokenization import tokenize
from pipeline.log import clear_errors
if __name__ == "__main__":
    params, raw, out, runs = sys.argv[1:]
    with clear_errors("tokenize"):
        tokenize(TokenizerParams(**json.loads(params)), Path(raw), Path(out), Path(runs), 2)
"""


def start_tokenizing(params: str, raw: Path, out: Path, runs: Path) -> subprocess.Popen[str]:
    """Two workers, in a process of their own."""
    script = raw.parent / "run_tokenize.py"
    script.write_text(TOKENIZE)
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, str(script), params, str(raw), str(out), str(runs)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)


def wait_until(condition: Any, timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)
