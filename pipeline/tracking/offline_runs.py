"""What a killed process of a run has left of it in offline W&B files: the steps, and an end that `wandb sync` reads.

A file is a log of records in blocks, as LevelDB keeps them (https://github.com/google/leveldb/blob/main/doc/log_format.md).
"""

import json
import struct
import subprocess
import sys
from pathlib import Path

FILE_HEADER = b":W&B\xe1\xbe\x00"
BLOCK = 32 * 1024  # bytes
RECORD_HEADER = struct.Struct("<IHB")  # checksum, length, kind
WHOLE, LAST = 1, 4  # kinds of pieces that end a record


def taken_up(folder: Path, run_id: str) -> set[int]:
    """The steps in the files of a run under `folder`, as wandb's own reader finds them; mends the files' ends."""
    steps: set[int] = set()
    for file in folder.glob(f"offline-run-*-{run_id}/*.wandb"):
        mend(file)
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
        printed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        records = (json.loads(line) for line in printed.splitlines() if '"history"' in line)
        steps |= {record["history"]["item"]["_step"] for record in records if record["type"] == "history"}
    return steps


def mend(file: Path) -> None:
    """Cuts off a record that a kill left incomplete: `wandb sync` would stop there, and never come to the next part."""
    content = file.read_bytes()
    if not content.startswith(FILE_HEADER):
        return
    place = whole = len(FILE_HEADER)
    while place + RECORD_HEADER.size <= len(content):
        if (rest := BLOCK - place % BLOCK) < RECORD_HEADER.size:
            place += rest  # a header is never split: the block ends with zeros
            continue
        _, length, kind = RECORD_HEADER.unpack_from(content, place)
        place += RECORD_HEADER.size + length
        if place > len(content):
            break
        if kind in (WHOLE, LAST):
            whole = place
    if whole < len(content):
        with file.open("r+b") as opened:
            opened.truncate(whole)
