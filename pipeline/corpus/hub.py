"""Datasets of the Hugging Face hub, streamed: https://huggingface.co/docs/datasets/stream

Nothing is kept of a dataset but its text column, and nothing of it is run: `datasets` no longer loads scripts. A local
directory of data files is read the same way.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.log import Stop


class HubStream:
    """The rows of one split of a dataset, in the order of its files, at one commit; can be continued where it stopped.

    stream = HubStream("HuggingFaceFW/fineweb-edu", "sample-10BT", "train", "main")
    for text in stream.texts("text", stream.commit, state=None): ...
    stream.state()  # after the last text: give it to `texts` to go on there
    """

    def __init__(self, path: str, name: str | None, split: str, revision: str) -> None:
        """Finds the dataset and pins `revision` to its commit. Raises Stop that names the dataset and what is wrong."""
        import datasets  # heavy, and needed by this source alone

        self.path = path
        try:
            self.commit = None if Path(path).is_dir() else _commit(path, revision)
            self._rows = datasets.load_dataset(path, name, split=split, revision=self.commit, streaming=True)
        except Exception as error:  # of datasets, huggingface_hub, fsspec, httpx: they share no base class
            where = f"hub dataset {path} (configuration {name}, split {split}, revision {revision})"
            raise Stop(f"{where}: {_first_line(error)}") from error

    @property
    def expected(self) -> int | None:
        """How many rows the dataset says that it has."""
        split = (self._rows.info.splits or {}).get(str(self._rows.split))
        return split.num_examples or None if split else None

    def texts(self, column: str, state: dict[str, Any] | None) -> Iterator[str]:
        """The texts of `column`, from the start or from a `state`. Raises ValueError or Stop that names the row."""
        if (columns := self._rows.column_names) is not None:
            if column not in columns:
                raise ValueError(f"{self.path}: no column {column!r} (data.text_column), only {', '.join(columns)}")
            self._rows = self._rows.select_columns([column])
        if state is not None:
            self._rows.load_state_dict(state)
        for number, row in enumerate(self.rows()):
            if not isinstance(text := row.get(column), str):
                raise ValueError(f"{self.path}: row {number} of this run: {column} ({text!r}) is not text")
            yield text

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows with all their columns. Raises Stop, after the retries of `datasets`, when no more can be had."""
        number = 0
        rows = iter(self._rows)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:
                where = f"{self.path}: row {number} of this run"
                raise Stop(f"{where}: {_first_line(error)}; run again to go on from there") from error
            yield row
            number += 1

    def state(self) -> dict[str, Any]:
        """Where the stream stands: after the last text that was taken."""
        state: dict[str, Any] = self._rows.state_dict()
        return state


def _commit(path: str, revision: str) -> str:
    from huggingface_hub import HfApi

    commit: str | None = HfApi().dataset_info(path, revision=revision, timeout=20).sha
    assert commit is not None  # the hub always tells
    return commit


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
