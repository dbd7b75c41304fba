"""Readers of document sources: local .txt, .jsonl and .parquet files, and datasets of the Hugging Face hub.

Documents are texts or conversations (pipeline.corpus.conversations). Hub datasets are streamed
(https://huggingface.co/docs/datasets/stream): only the columns with documents are read, and no code of the dataset
runs. A local directory of data files is read in the same way.
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

from pipeline.corpus.conversations import Content, content_columns, read_content
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


def read_documents(path: Path, column: str) -> Iterator[Content]:
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


def _read_jsonl(path: Path, column: str) -> Iterator[Content]:
    with parsing(path):
        lines = _open(path)
    with lines:
        for number in itertools.count(1):
            with parsing(f"{path}:{number}"):  # not UTF-8 or JSON; a damaged archive
                line = next(lines, None)
                if line is None:
                    return
                content = read_content(json.loads(line), column) if line.strip() else None
            if content is not None:
                yield content


def _open(path: Path) -> BinaryIO:
    if path.name.endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    if path.name.endswith(".zst"):
        return cast(BinaryIO, io.BufferedReader(pa.input_stream(str(path), compression="zstd"), 2**20))
    return path.open("rb")


def _read_parquet(path: Path, column: str) -> Iterator[Content]:
    with parsing(f"{path} is not a parquet file"):
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
    with parsing(path):
        batches = file.iter_batches(batch_size=1024, columns=content_columns(names, column))
    row = 0
    while True:
        with parsing(f"{path}: rows from {row} on cannot be read"):
            batch = next(batches, None)
            records = [] if batch is None else batch.to_pylist()
        if batch is None:
            return
        for record in records:
            with parsing(f"{path}: row {row}"):
                content = read_content(record, column)
            yield content
            row += 1


class HubStream:
    """The rows of one split of a dataset at one commit, in the order of its files. Reading can resume at any row.

    stream = HubStream("HuggingFaceFW/fineweb-edu", "sample-10BT", "train", "main")
    for document in stream.documents("text", state=None): ...
    stream.state()  # the position after the last document; pass it to `documents` to resume there
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

    def documents(self, column: str, state: dict[str, Any] | None) -> Iterator[Content]:
        """The documents from the start or from a `state`; `column`: of texts. Raises UserError that names the row."""
        if (columns := self._rows.column_names) is not None:
            with parsing(self.path):
                self._rows = self._rows.select_columns(content_columns(columns, column))
        if state is not None:
            self._rows.load_state_dict(state)
        for number, row in enumerate(self.rows()):
            with parsing(f"{self.path}: row {number} of this run"):
                content = read_content(row, column)
            yield content

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
