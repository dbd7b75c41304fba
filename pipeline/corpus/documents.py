"""Documents on disk: the download stage writes them, the tokenize stage reads them.

    data/raw/source.json            RawCorpus: the files and where the documents came from
    data/raw/train/000000.parquet   one column, one document per row: `text`, or `messages` of conversations
    data/raw/val/000000.parquet     validation documents, where whole documents are held out

The order of the documents is that of the file names, then of the rows. A row group holds about ROW_GROUP_BYTES of text,
however many documents that is. Row groups are the units of work of the tokenize stage.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts import RawFile, SplitName
from pipeline.corpus.conversations import Content, Message, content_bytes, texts
from pipeline.files import parsing, sha256_of
from pipeline.log import UserError

ROW_GROUP_BYTES = 4 * 2**20
TEXT, MESSAGES = "text", "messages"
MESSAGE_TYPE = pa.struct([("role", pa.string()), ("content", pa.large_string())])
TYPES = {TEXT: pa.large_string(), MESSAGES: pa.list_(MESSAGE_TYPE)}
_ROW_COST = 64  # bytes per row beside its text, so that empty documents fill a row group too


class Document(NamedTuple):
    """A document of a source. Documents with the same `group`, such as a play's scenes, go to the same split."""

    group: int
    content: Content


@dataclass
class _Writer:
    """Appends documents to a parquet file, one row group at a time."""

    path: Path
    row_group_bytes: int
    documents: int = 0
    utf8_bytes: int = 0
    row_groups: int = 0
    _pending: list[Content] = field(default_factory=list)
    _pending_cost: int = 0
    _file: pq.ParquetWriter | None = None

    def add(self, content: Content) -> None:
        size = content_bytes(content)
        if self._pending and isinstance(content, str) != isinstance(self._pending[0], str):
            raise UserError("data.source: has both texts and conversations, must have one of them")
        if self._pending and self._pending_cost + size > self.row_group_bytes:
            self._write_row_group()
        self._pending.append(content)
        self._pending_cost += size + _ROW_COST
        self.documents += 1
        self.utf8_bytes += size

    def close(self) -> None:
        if self._pending:
            self._write_row_group()
        if self._file is not None:
            self._file.close()

    def _write_row_group(self) -> None:
        rows = [c if isinstance(c, str) else [message._asdict() for message in c] for c in self._pending]
        name = TEXT if isinstance(rows[0], str) else MESSAGES
        table = pa.table({name: pa.array(rows, TYPES[name])})
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = pq.ParquetWriter(self.path, table.schema, compression="zstd", use_dictionary=False)
        self._file.write_table(table, row_group_size=len(table))
        self.row_groups += 1
        self._pending, self._pending_cost = [], 0


def write_documents(
    directory: Path,
    number: int,
    documents: Iterable[Document],
    val_every: int | None,
    row_group_bytes: int = ROW_GROUP_BYTES,
) -> dict[SplitName, RawFile]:
    """Writes documents as `train/<number>.parquet` and `val/<number>.parquet` into `directory`.

    Groups 0, val_every, 2 val_every, ... are for validation. A split without documents gets no file.
    """
    splits: tuple[SplitName, ...] = ("train", "val")
    writers = {split: _Writer(directory / split / f"{number:06d}.parquet", row_group_bytes) for split in splits}
    for group, content in documents:
        writers["val" if val_every is not None and group % val_every == 0 else "train"].add(content)
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


def split_text(text: str, val_every: int) -> tuple[str, str]:
    """A text without its last part, and that part: at least 1/val_every of the characters, from the start of a line.

    Where no line starts near there, it begins with a word; without spaces, at the exact character.

    >>> split_text("one\\ntwo\\nthree\\nfour\\n", 4)
    ('one\\ntwo\\nthree\\n', 'four\\n')
    """
    size = len(text) // val_every
    cut = len(text) - size
    starts = (text.rfind(separator, cut - size, cut) + len(separator) for separator in ("\n", " "))
    cut = next((start for start in starts if start > cut - size), cut)
    return text[:cut], text[cut:]


def holds_conversations(path: Path) -> bool:
    """Whether the documents of a file are conversations."""
    with parsing(f"{path} is not a parquet file"):
        return bool(pq.read_schema(path).names == [MESSAGES])


def read_row_group(path: Path, row_group: int) -> list[Content]:
    """The documents of one row group. Raises UserError that names the file and the row group if they are not text."""
    with parsing(f"{path}: row group {row_group} cannot be read"):
        file = pq.ParquetFile(path)
        name = MESSAGES if file.schema_arrow.names == [MESSAGES] else TEXT
        column = file.read_row_group(row_group, columns=[name], use_threads=False).column(name)
        rows = column.to_pylist()
        if name == MESSAGES:
            return [tuple(Message(**message) for message in messages) for messages in rows]
    for row, text in enumerate(rows):
        if not isinstance(text, str):
            raise UserError(f"{path}: row group {row_group}, row {row} ({text!r}) must be text")
    return rows


def read_texts(directory: Path, files: Iterable[RawFile]) -> Iterator[str]:
    """The texts of `files` in order, of conversations those of their messages. One row group at a time is in memory."""
    for file in files:
        for row_group in range(file.row_groups):
            for content in read_row_group(directory / file.file, row_group):
                yield from texts(content)
