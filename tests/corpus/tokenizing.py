"""Runs of the tokenization in this process and in others, and what they leave."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import SOURCE_FILE, RawCorpus
from pipeline.corpus import tokenization
from pipeline.corpus.token_files import RowGroupTask, TokenFile, encode_row_group, read_token_file

from .conftest import DOCUMENTS

CORPUS = [f"{text} {number}" if text else "" for number in range(12) for text in DOCUMENTS]


def contents(directory: Path) -> dict[str, bytes]:
    """Every file in a directory of shards."""
    files = {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert files
    return files


def count_row_groups(raw: Path) -> int:
    return sum(file.row_groups for files in RawCorpus.read(raw / SOURCE_FILE).splits.values() for file in files)


def count_encoded(runs: Path) -> int:
    """Complete token files of row groups in the work in progress."""
    return sum(read_token_file(path) is not None for path in runs.glob("tokenize-*/row_groups/*.npy"))


def count_encodings(work: Callable[[], Any]) -> int:
    """How many row groups `work` encodes, in this process."""
    encoded: list[RowGroupTask] = []

    def counting(task: RowGroupTask) -> tuple[RowGroupTask, TokenFile]:
        encoded.append(task)
        return encode_row_group(task)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenization, "encode_row_group", counting)
        work()
    return len(encoded)


TOKENIZE = """
import json, sys
from pathlib import Path
from pipeline.corpus.params import TokenizerParams
from pipeline.corpus.tokenization import tokenize
from pipeline.log import cli_errors
if __name__ == "__main__":
    params, raw, out, runs = sys.argv[1:]
    with cli_errors("tokenize"):
        tokenize(TokenizerParams(**json.loads(params)), Path(raw), Path(out), Path(runs), 2)
"""


def start_tokenizing(params: str, raw: Path, out: Path, runs: Path) -> subprocess.Popen[str]:
    """Two workers, in a process of their own."""
    script = raw.parent / "run_tokenize.py"
    script.write_text(TOKENIZE)
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, str(script), params, str(raw), str(out), str(runs)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)


PART = """
import json, sys, time
from pathlib import Path
from pipeline.corpus import tokenization
from pipeline.corpus.params import TokenizerParams
from pipeline.log import logger
params, raw, runs, part, parts, seconds = sys.argv[1:]
logger.disabled = True
encode_row_group, encoded = tokenization.encode_row_group, []
def slow(task):
    encoded.append(task)
    time.sleep(float(seconds))
    return encode_row_group(task)
tokenization.encode_row_group = slow
tokenization.tokenize_part(TokenizerParams(**json.loads(params)), Path(raw), Path(runs), 1, int(part), int(parts))
print(len(encoded))
"""


def start_part(params: str, raw: Path, runs: Path, part: int, parts: int, seconds: float = 0) -> subprocess.Popen[str]:
    """A machine that encodes one part, with `seconds` more per row group. It prints how many it has encoded."""
    arguments = [params, str(raw), str(runs), str(part), str(parts), str(seconds)]
    return subprocess.Popen([sys.executable, "-c", PART, *arguments], stdout=subprocess.PIPE, text=True)


def wait_until(condition: Callable[[], Any], timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.002)
