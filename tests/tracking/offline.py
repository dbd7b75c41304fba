"""Offline W&B runs, read by the tool that wandb ships."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def records(part: Path) -> list[dict[str, Any]]:
    """All that is in the file of an offline run, or of a part of one: `wandb leet inspect`."""
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(part)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in printed.splitlines()]


def of_kind(part: Path, kind: str) -> list[dict[str, Any]]:
    """The records of one kind: run, history, summary, exit, ..."""
    return [record[kind] for record in records(part) if record["type"] == kind]
