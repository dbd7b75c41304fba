"""What training writes while it runs: curves.csv, one row per step, and samples.json, in reports/train.

The columns of curves.csv are the metrics' names; a cell is empty where nothing was measured. DVC and pandas read the
file as it is.
"""

import csv
import io
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline.artifacts import TrainingSample, TrainingSamples
from pipeline.files import atomic_path, flush_to_disk, naming, parsing, write_text
from pipeline.log import UserError, logger

if TYPE_CHECKING:
    import pandas as pd

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
    """A CSV file that survives a kill, and its copy among the outputs."""

    def __init__(self, path: Path, published: Path, extra_columns: tuple[str, ...] = ()) -> None:
        """`path`: the file that grows, in the run's directory. `published`: its copy among the stage's outputs."""
        self.path, self.published = path, published
        self.columns = (*COLUMNS[:-1], *extra_columns, COLUMNS[-1])

    def rewind(self, step: int) -> None:
        """Drops the rows after `step`, which a resumed run writes again; creates the file if there is none.

        Rows up to `step` that are missing, because someone has changed the file, cannot be written again: a warning.
        """
        rows = [row for row in self.rows() if int(row["step"]) <= step] if step > 0 else []
        if missing := sorted(set(range(1, step + 1)) - {int(row["step"]) for row in rows}):
            logger.warning(
                "%s lacks %d rows, the first of step %d: the curves of this run are incomplete",
                self.path,
                len(missing),
                missing[0],
            )
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())
        self.flush()  # a run killed after its last step records no more rows, and DVC may have removed the copy

    def record(self, rows: list[dict[str, Any]]) -> None:
        """Appends rows: column -> value. A sample is not a column."""
        with naming(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, extrasaction="ignore", lineterminator="\n").writerows(rows)

    def rows(self) -> list[dict[str, str]]:
        """The rows on the disk, without those that a kill cut short or that are damaged."""
        if not self.path.exists():
            return []
        # Split by hand: the csv module stops at some damage. None of our cells needs quotes.
        header, *lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] or [""]
        rows = []
        for line in lines:
            with suppress(ValueError, KeyError):  # a cell too few or too many, text for a number, no step
                row = dict(zip(header.split(","), line.split(","), strict=True))
                int(row["step"])
                typed(row)
                rows.append(row)
        return rows

    def flush(self) -> None:
        """Flushes the rows to the disk and updates the copy."""
        flush_to_disk(self.path)
        with atomic_path(self.published) as temporary:
            shutil.copyfile(self.path, temporary)


class SampleLog:
    """A JSON file with the samples of a training run, which survives a kill, and its copy among the outputs."""

    def __init__(self, path: Path, published: Path) -> None:
        """`path`: in the run's directory. `published`: its copy among the stage's outputs."""
        self.path, self.published = path, published
        self.samples: list[TrainingSample] = []

    def rewind(self, step: int) -> None:
        """Drops the samples after `step`, which a resumed run draws again. A damaged file costs a warning."""
        try:
            kept = TrainingSamples.read(self.path).samples if step > 0 and self.path.exists() else []
        except (OSError, UserError) as error:
            logger.warning("%s; the samples up to step %d are lost", error, step)
            kept = []
        self.samples = [sample for sample in kept if sample.step <= step]
        self._write()

    def record(self, rows: list[dict[str, Any]]) -> None:
        """Adds the sample of each row that has one."""
        new = [
            TrainingSample(step=row["step"], tokens=row["tokens"], text=row["sample"])
            for row in rows
            if "sample" in row
        ]
        if new:
            self.samples += new
            self._write()

    def flush(self) -> None:
        """Does nothing: samples are written immediately."""

    def _write(self) -> None:
        for path in (self.path, self.published):
            TrainingSamples(samples=self.samples).write(path)


def typed(row: Mapping[str, str]) -> dict[str, Any]:
    """A row of the file with the types it was recorded with; empty cells are None."""

    def value(name: str, cell: str) -> Any:
        if cell == "":
            return None
        if name == "event":
            return cell
        return int(cell) if name in ("step", "tokens") else float(cell)

    return {name: value(name, cell) for name, cell in row.items()}


def read_curves(path: Path) -> "pd.DataFrame":
    """curves.csv as a frame in the order of steps: `event` is text, everything else float64, empty cells are NaN.

    Raises FileNotFoundError, or UserError that names the file.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} not found: run the train stage (dvc repro train)")
    with path.open(encoding="utf-8") as file:
        return parse_curves(file, str(path))


def parse_curves(source: IO[str], name: str) -> "pd.DataFrame":
    """The same from an open file; `name` is what errors call it."""
    import numpy as np
    import pandas as pd

    with parsing(f"{name} is not a table of curves"):
        frame = pd.read_csv(source, dtype={"event": str})
        if absent := {"step", "tokens"} - set(frame.columns):
            raise ValueError(f"no column {', '.join(sorted(absent))}")
        frame["event"] = frame["event"].fillna("") if "event" in frame else ""
        for column in frame.columns.drop("event"):
            frame[column] = pd.to_numeric(frame[column]).astype("float64")
        if not np.isfinite(frame[["step", "tokens"]]).all(axis=None):
            raise ValueError("a row without step or tokens")
    return frame.sort_values("step", kind="stable").reset_index(drop=True)
