"""Documents on disk, between the download stage that writes them and the tokenize stage that reads them.

    data/raw/source.json            what is here and where it came from: see `RawCorpus`
    data/raw/train/000000.parquet   one column, `text`: a document a row
    data/raw/val/000000.parquet     validation documents, where whole documents are held out

The order of the documents is that of the file names, then of the rows. Row groups hold about GROUP_BYTES of text,
whatever their number of documents: they are the units that tokenization works in.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.records import Record, SplitName, read_record
from pipeline.files import sha256_of

FORMAT_VERSION = 1
SOURCE_FILE = "source.json"
GROUP_BYTES = 4 * 2**20
COLUMN = "text"
_ROW_COST = 64  # bytes that a row costs beside its text, so that empty documents fill a group too


class Document(NamedTuple):
    """A document of a source. All documents of a group (a play's scenes) fall in the same split."""

    group: int
    text: str


class RawFile(Record):
    """One parquet file of documents."""

    file: str
    """Its path in data/raw, `train/000000.parquet`."""

    documents: int
    utf8_bytes: int
    row_groups: int
    sha256: str


class RawCorpus(Record):
    """What data/raw holds."""

    format_version: int
    origin: dict[str, Any]
    """Where the documents came from: the source, and for the hub the commit."""

    splits: dict[SplitName, list[RawFile]]

    @classmethod
    def read(cls, directory: Path) -> "RawCorpus":
        """Reads `directory/source.json`. Raises FileNotFoundError or ValueError."""
        return read_record(directory / SOURCE_FILE, cls, FORMAT_VERSION, "download")

    def utf8_bytes(self, split: SplitName) -> int:
        return sum(file.utf8_bytes for file in self.splits.get(split, []))

    def documents(self, split: SplitName) -> int:
        return sum(file.documents for file in self.splits.get(split, []))


@dataclass
class _GroupWriter:
    """Appends documents to a parquet file, a row group at a time."""

    path: Path
    documents: int = 0
    utf8_bytes: int = 0
    row_groups: int = 0
    _pending: list[str] = field(default_factory=list)
    _pending_cost: int = 0
    _file: pq.ParquetWriter | None = None

    def add(self, text: str, size: int, group_bytes: int) -> None:
        if self._pending and self._pending_cost + size > group_bytes:
            self.flush()
        self._pending.append(text)
        self._pending_cost += size + _ROW_COST
        self.documents += 1
        self.utf8_bytes += size

    def flush(self) -> None:
        if not self._pending:
            return
        table = pa.table({COLUMN: pa.array(self._pending, pa.large_string())})
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = pq.ParquetWriter(self.path, table.schema, compression="zstd", use_dictionary=False)
        self._file.write_table(table, row_group_size=len(table))
        self.row_groups += 1
        self._pending, self._pending_cost = [], 0

    def close(self) -> None:
        self.flush()
        if self._file is not None:
            self._file.close()


def write_files(
    directory: Path, number: int, documents: Iterable[Document], val_every: int | None, group_bytes: int = GROUP_BYTES
) -> dict[SplitName, RawFile]:
    """Writes documents as `train/<number>.parquet` and `val/<number>.parquet` into `directory`.

    Groups 0, val_every, 2 val_every ... are for validation. A split that gets no document gets no file.
    """
    splits: tuple[SplitName, ...] = ("train", "val")
    writers = {split: _GroupWriter(directory / split / f"{number:06d}.parquet") for split in splits}
    for group, text in documents:
        split: SplitName = "val" if val_every is not None and group % val_every == 0 else "train"
        writers[split].add(text, len(text.encode("utf-8")), group_bytes)
    for writer in writers.values():
        writer.close()
    return {
        split: RawFile(
            file=writer.path.relative_to(directory).as_posix(),
            documents=writer.documents,
            utf8_bytes=writer.utf8_bytes,
            row_groups=writer.row_groups,
            sha256=sha256_of(writer.path),
        )
        for split, writer in writers.items()
        if writer.documents
    }


def read_group(path: Path, row_group: int) -> list[str]:
    """The documents of one row group. Raises ValueError that names file, row group and row of what is not text."""
    try:
        column = pq.ParquetFile(path).read_row_group(row_group, columns=[COLUMN], use_threads=False).column(COLUMN)
    except (pa.ArrowException, KeyError, OSError) as error:
        raise ValueError(f"{path}: row group {row_group} cannot be read: {error}") from None
    texts = []
    for row, value in enumerate(column):
        try:
            text = value.as_py()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: row group {row_group}, row {row}: not UTF-8: {error}") from None
        if not isinstance(text, str):
            raise ValueError(f"{path}: row group {row_group}, row {row}: {text!r} is not text")
        texts.append(text)
    return texts


def texts(directory: Path, files: Iterable[RawFile]) -> Iterator[str]:
    """The documents of `files` in order, with one row group in memory at a time."""
    for file in files:
        for group in range(file.row_groups):
            yield from read_group(directory / file.file, group)
