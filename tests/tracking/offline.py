"""Reads offline W&B runs with wandb's own command."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def of_kind(part: Path, kind: str) -> list[dict[str, Any]]:
    """The records of one kind (run, history, summary, exit, ...) in the directory of an offline run."""
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(part)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    records = [json.loads(line) for line in output.splitlines()]
    return [record[kind] for record in records if record["type"] == kind]
