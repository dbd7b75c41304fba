"""Readers of document sources: local .txt, .jsonl and .parquet files, and datasets of the Hugging Face hub.

Hub datasets are streamed (https://huggingface.co/docs/datasets/stream): only the text column is read, and no code of
the dataset runs. A local directory of data files is read in the same way.
"""

import glob
import gzip
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.files import parsing
from pipeline.log import UserError

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")


def match_files(patterns: tuple[str, ...], root: Path) -> list[Path]:
    """The files that globs match, relative to `root`: in the globs' order, sorted by name within each, none twice.

    Raises UserError for a glob that matches nothing and for a file of another kind.
    """
    files: dict[Path, None] = {}
    for pattern in patterns:
        matches = glob.glob(str(root / pattern), recursive=True)  # noqa: PTH207 - Path.glob refuses absolute patterns
        paths = sorted(Path(path) for path in matches if Path(path).is_file())
        if not paths:
            raise UserError(f"data.files ({pattern}) matches no file under {root}")
        files |= dict.fromkeys(paths)
    for path in files:
        if not path.name.endswith(SUFFIXES):
            raise UserError(f"data.files: {path} must end in {', '.join(SUFFIXES)}")
    return list(files)


def read_documents(path: Path, column: str) -> Iterator[str]:
    """The documents of one file. `column`: the field of .jsonl or the column of .parquet that holds the text.

    Raises UserError that names the file and the line, row or byte offset of what is not a document.
    """
    if path.name.endswith(".txt"):
        yield _read_txt(path)
    elif path.name.endswith(".parquet"):
        yield from _read_parquet(path, column)
    else:
        yield from _read_jsonl(path, column)


def _read_txt(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: offset {error.start}: not UTF-8 ({error.reason})") from None


def _read_jsonl(path: Path, column: str) -> Iterator[str]:
    with parsing(path):
        lines = _open(path)
    with lines:
        for number in itertools.count(1):
            with parsing(f"{path}:{number}"):  # not UTF-8 or JSON; a damaged archive
                line = next(lines, None)
                if line is None:
                    return
                text = _field(line, column) if line.strip() else None
            if text is not None:
                yield text


def _open(path: Path) -> BinaryIO:
    if path.name.endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    if path.name.endswith(".zst"):
        return cast(BinaryIO, io.BufferedReader(pa.input_stream(str(path), compression="zstd"), 2**20))
    return path.open("rb")


def _field(line: bytes, column: str) -> str:
    record = json.loads(line)
    if not isinstance(record, dict) or column not in record:
        raise ValueError(f"no field {column!r} (data.text_column)")
    text = record[column]
    if not isinstance(text, str):
        raise ValueError(f"field {column!r} ({text!r}) must be text")
    text.encode("utf-8")  # raises for half of a surrogate pair, which JSON can spell
    return text


def _read_parquet(path: Path, column: str) -> Iterator[str]:
    with parsing(f"{path} is not a parquet file"):
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        if column not in names:
            raise UserError(f"{path}: no column {column!r} (data.text_column), only {', '.join(names)}")
        batches = file.iter_batches(batch_size=1024, columns=[column])
    row = 0
    while True:
        with parsing(f"{path}: rows from {row} on cannot be read"):
            batch = next(batches, None)
            texts = [] if batch is None else batch.column(0).to_pylist()
        if batch is None:
            return
        for text in texts:
            if not isinstance(text, str):
                raise UserError(f"{path}: row {row} ({text!r}) must be text")
            yield text
            row += 1


class HubStream:
    """The rows of one split of a dataset at one commit, in the order of its files. Reading can resume at any row.

    stream = HubStream("HuggingFaceFW/fineweb-edu", "sample-10BT", "train", "main")
    for text in stream.texts("text", state=None): ...
    stream.state()  # the position after the last text; pass it to `texts` to resume there
    """

    def __init__(self, path: str, name: str | None, split: str, revision: str) -> None:
        """Finds the dataset and pins `revision` to a commit. Raises UserError that names the dataset and the cause."""
        import datasets  # slow to import, and only needed here

        self.path = path
        with parsing(f"hub dataset {path} (configuration {name}, split {split}, revision {revision})"):
            self.commit = None if Path(path).is_dir() else _commit(path, revision)
            self._rows = datasets.load_dataset(path, name, split=split, revision=self.commit, streaming=True)

    @property
    def expected(self) -> int | None:
        """The number of rows according to the dataset's own metadata, if known."""
        split = (self._rows.info.splits or {}).get(str(self._rows.split))
        return split.num_examples or None if split else None

    def texts(self, column: str, state: dict[str, Any] | None) -> Iterator[str]:
        """The texts of `column`, from the start or from a `state`. Raises UserError that names the row."""
        if (columns := self._rows.column_names) is not None:
            if column not in columns:
                raise UserError(f"{self.path}: no column {column!r} (data.text_column), only {', '.join(columns)}")
            self._rows = self._rows.select_columns([column])
        if state is not None:
            self._rows.load_state_dict(state)
        for number, row in enumerate(self.rows()):
            if not isinstance(text := row.get(column), str):
                raise UserError(f"{self.path}: row {number} of this run: {column} ({text!r}) must be text")
            yield text

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows with all their columns. Raises UserError when `datasets` gives up after its retries."""
        rows = iter(self._rows)
        for number in itertools.count():
            with parsing(f"{self.path}: row {number} of this run (run again to resume)"):
                row = next(rows, None)
            if row is None:
                return
            yield row

    def state(self) -> dict[str, Any]:
        """The position of the stream, after the last row that was read."""
        state: dict[str, Any] = self._rows.state_dict()
        return state


def _commit(path: str, revision: str) -> str:
    from huggingface_hub import HfApi

    commit: str | None = HfApi().dataset_info(path, revision=revision, timeout=20).sha
    assert commit is not None  # the hub always returns it
    return commit
