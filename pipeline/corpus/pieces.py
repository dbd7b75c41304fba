"""Pieces: .npy files of tokens with a record beside each. Units and shards alike are written as pieces.

    000042.npy    the tokens
    000042.json   what they are, written last: a piece without its record is not there

So a killed process leaves pieces that are whole or absent, and a rerun can tell which are left to do. They are not
flushed to the disk one by one, which would take as long as a tenth of the encoding: what a loss of power damages is
found by its hash before it is used, and written anew.
"""

import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.corpus.records import Record, read_record
from pipeline.corpus.shards import Tokens
from pipeline.files import sha256_of

FORMAT_VERSION = 1
CHUNK_TOKENS = 2**16  # at a time, so that all that is done with them is done in the cache


class Piece(Record):
    """What a piece holds."""

    format_version: int
    tokens: int
    documents: int
    """Its end-of-text tokens."""

    utf8_bytes: int
    """Bytes of text that the tokens decode to."""

    sha256: str
    """Of the .npy file."""


def write_piece(
    path: Path,
    count: int,
    dtype: str,
    chunks: Iterable[Tokens],
    byte_lengths: npt.NDArray[np.unsignedinteger],
    eot_id: int,
) -> Piece:
    """Writes `count` tokens, which come in `chunks`, to `path`, and the record beside it. Both are whole or absent.

    `byte_lengths`: of every id's text.  # (n_vocab,)
    Raises OSError that names the file, when the disk is full for one.
    """
    header = _header(count, dtype)
    digest = hashlib.sha256(header)
    documents = utf8_bytes = written = 0
    try:
        with _appearing(path) as temporary, temporary.open("wb") as file:
            file.write(header)
            for tokens in chunks:
                for begin in range(0, len(tokens), CHUNK_TOKENS):
                    chunk = np.ascontiguousarray(tokens[begin : begin + CHUNK_TOKENS], dtype)
                    file.write(chunk.data)
                    digest.update(chunk.data)
                    documents += int(np.count_nonzero(chunk == eot_id))
                    utf8_bytes += int(np.take(byte_lengths, chunk).sum(dtype=np.int64))
                    written += len(chunk)
            assert written == count, f"{path}: {written} tokens came for a piece of {count}"
        piece = Piece(
            format_version=FORMAT_VERSION,
            tokens=count,
            documents=documents,
            utf8_bytes=utf8_bytes,
            sha256=digest.hexdigest(),
        )
        with _appearing(path.with_suffix(".json")) as temporary:
            temporary.write_text(piece.model_dump_json(), encoding="utf-8")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    return piece


def read_piece(path: Path) -> Piece | None:
    """The record of a piece that is there, else None."""
    record = path.with_suffix(".json")
    if not (path.exists() and record.exists()):
        return None
    try:
        return read_record(record, Piece, FORMAT_VERSION, "tokenize")
    except ValueError:  # damaged: the piece is written anew
        return None


def check_piece(path: Path, piece: Piece) -> None:
    """Raises ValueError when the file is not the one that the record speaks of."""
    if sha256_of(path) != piece.sha256:
        path.with_suffix(".json").unlink()  # so that the next run writes it again
        raise ValueError(f"{path} is damaged (sha256 differs from its record): run again, and it is written anew")


@contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which is renamed to `path` when the block ends well, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _header(count: int, dtype: str) -> bytes:
    """The .npy header of a 1-D little-endian array."""
    buffer = io.BytesIO()
    descr = np.dtype(dtype).newbyteorder("<").str
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": (count,)})
    return buffer.getvalue()
