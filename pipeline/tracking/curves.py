"""curves.csv: one row per training step, on the disk as training goes on.

Columns carry the metrics' names. A cell is empty where nothing was measured. DVC and pandas read the file as it is.
"""

import csv
import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.files import atomic_path, flush_to_disk, naming, write_text

COLUMNS = (
    "step",
    "tokens",
    "time_s",
    "train/loss",
    "train/lr",
    "train/grad_norm",
    "train/tokens_per_sec",
    "train/mfu",
    "val/loss",
    "val/bpb",
    "event",
)


class Curves:
    """Appends rows to a CSV file that survives a kill, and copies it to where people look."""

    def __init__(self, path: Path, published: Path, extra_columns: tuple[str, ...] = ()) -> None:
        """`path`: the file that grows. `published`: its copy among the stage's outputs."""
        self.path, self.published = path, published
        self.columns = (*COLUMNS[:-1], *extra_columns, COLUMNS[-1])

    def rewind(self, step: int) -> None:
        """Drops the rows of later steps, which a resumed run will write again; begins the file if there is none."""
        kept = [row for row in self.rows() if int(row["step"]) <= step] if step > 0 else []
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        write_text(self.path, text.getvalue())
        self.flush()  # DVC has removed the copy, and a run that was killed behind its last step writes no more rows

    def record(self, rows: list[dict[str, Any]]) -> None:
        """Appends rows; keys are columns."""
        with naming(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerows(rows)

    def rows(self) -> list[dict[str, str]]:
        """The whole rows on the disk: one that a kill cut short has no last cell."""
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if row[self.columns[-1]] is not None]

    def flush(self) -> None:
        """Brings the rows to the disk and the copy up to date."""
        flush_to_disk(self.path)
        with atomic_path(self.published) as temporary:
            shutil.copyfile(self.path, temporary)


def typed(row: Mapping[str, str]) -> dict[str, Any]:
    """A row of the file as it was recorded; empty cells are None."""
    return {
        name: None
        if cell == ""
        else cell
        if name == "event"
        else int(cell)
        if name in ("step", "tokens")
        else float(cell)
        for name, cell in row.items()
    }
