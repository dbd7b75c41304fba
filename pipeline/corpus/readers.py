"""Documents from local files: .txt (a document a file), .jsonl (.gz, .zst; a document a line), .parquet (a row)."""

import glob
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")


def match(patterns: tuple[str, ...], root: Path) -> list[Path]:
    """The files that globs match, relative ones seen from `root`: in the globs' order, sorted by name within each.

    Raises FileNotFoundError for a glob that matches nothing, and ValueError for a file of another kind.
    """
    files: dict[Path, None] = {}
    for pattern in patterns:
        matches = glob.glob(str(root / pattern), recursive=True)  # noqa: PTH207 - Path.glob refuses absolute patterns
        found = sorted(Path(path) for path in matches if Path(path).is_file())
        if not found:
            raise FileNotFoundError(f"data.files ({pattern}) matches no file under {root}")
        files |= dict.fromkeys(found)
    for path in files:
        if not path.name.endswith(SUFFIXES):
            raise ValueError(f"data.files: {path} must end in {', '.join(SUFFIXES)}")
    return list(files)


def read(path: Path, column: str) -> Iterator[str]:
    """The documents of one file; `column` is the field of .jsonl and the column of .parquet that holds the text.

    Raises ValueError that names the file and the line, row or byte that is not a document.
    """
    if path.name.endswith(".txt"):
        yield _text(path)
    elif path.name.endswith(".parquet"):
        yield from _parquet(path, column)
    else:
        yield from _jsonl(path, column)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: offset {error.start}: not UTF-8 ({error.reason})") from None


def _jsonl(path: Path, column: str) -> Iterator[str]:
    with _open(path) as lines:
        number = 1
        try:
            for line in lines:
                yield _field(line, column)
                number += 1
        except (ValueError, EOFError, OSError, pa.ArrowException) as error:  # not UTF-8 or JSON; a damaged archive
            raise ValueError(f"{path}:{number}: {error}") from None


def _field(line: bytes, column: str) -> str:
    record = json.loads(line)
    if not isinstance(record, dict) or column not in record:
        raise ValueError(f"no field {column!r} (data.text_column)")
    if not isinstance(record[column], str):
        raise ValueError(f"field {column!r} ({record[column]!r}) is not text")
    text: str = record[column]
    text.encode("utf-8")  # JSON can spell half a surrogate pair, which is no text
    return text


def _open(path: Path) -> BinaryIO:
    if path.name.endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    if path.name.endswith(".zst"):
        return cast(BinaryIO, io.BufferedReader(pa.input_stream(str(path), compression="zstd"), 2**20))
    return path.open("rb")


def _parquet(path: Path, column: str) -> Iterator[str]:
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise ValueError(f"{path} is no parquet file: {error}") from None
    if column not in file.schema_arrow.names:
        raise ValueError(f"{path}: no column {column!r} (data.text_column), only {', '.join(file.schema_arrow.names)}")
    row = 0
    for batch in file.iter_batches(batch_size=1024, columns=[column]):
        for value in batch.column(0):
            text = value.as_py()
            if not isinstance(text, str):
                raise ValueError(f"{path}: row {row}: {text!r} is not text")
            yield text
            row += 1
