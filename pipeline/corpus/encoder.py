"""What the workers of the tokenization do: encode a unit, write a shard. `set_up` runs first in each process."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import tiktoken

from pipeline.corpus import encodings
from pipeline.corpus.cutting import Span
from pipeline.corpus.pieces import Piece, check_piece, read_piece, write_piece
from pipeline.corpus.raw import read_group
from pipeline.corpus.shards import Tokens

_encoding: tiktoken.Encoding
_byte_lengths: npt.NDArray[np.unsignedinteger]


class UnitTask(NamedTuple):
    """Encode a row group of `raw` into `target`."""

    raw: Path
    row_group: int
    target: Path


class ShardTask(NamedTuple):
    """Write spans of units to `target`; `Span.unit` is an index of `units`."""

    units: list[Path]
    spans: list[Span]
    target: Path


def set_up(encoding_directory: Path) -> None:
    """Loads the encoding, once for each process."""
    global _encoding, _byte_lengths
    _encoding = encodings.load(encoding_directory)
    lengths = encodings.token_byte_lengths(_encoding)
    _byte_lengths = lengths.astype(np.min_scalar_type(lengths.max()))  # a small table is looked up faster


def encode_unit(task: UnitTask) -> tuple[UnitTask, Piece]:
    """Encodes the documents of a row group, each after an end-of-text token. Raises ValueError that names a bad row."""
    tokens = encode(_encoding, read_group(task.raw, task.row_group))
    return task, _write(task.target, len(tokens), [tokens])


def write_shard(task: ShardTask) -> tuple[ShardTask, Piece]:
    """Copies spans of units into a shard. A unit is checked against its hash by the shard that its start falls into."""
    count = sum(span.end - span.begin for span in task.spans)
    return task, _write(task.target, count, _chunks(task))


def encode(encoding: tiktoken.Encoding, documents: Sequence[str]) -> Tokens:
    """The tokens of documents, each after an end-of-text token.  # (tokens,) uint16 or uint32

    Special tokens spelled out in a document are ordinary text.

    >>> encode(encodings.bytes_encoding(), ["hi", "", "you"]).tolist()
    [256, 104, 105, 256, 256, 121, 111, 117]
    """
    # Room for a token per byte, of which only what is written becomes memory: gathering the documents' arrays first and
    # joining them then would cost a twentieth of the speed.
    out = np.empty(sum(4 * len(text) + 1 for text in documents), token_dtype(encoding))
    end = 0
    for text in documents:
        ids = _encode_text(encoding, text)
        assert not len(ids) or ids.max() < encoding.n_vocab  # a cast to uint16 would wrap without a word
        out[end] = encoding.eot_token
        out[end + 1 : end + 1 + len(ids)] = ids
        end += 1 + len(ids)
    return out[:end]


def token_dtype(encoding: tiktoken.Encoding) -> Literal["uint16", "uint32"]:
    """The smallest type of tokens that holds every id."""
    return "uint16" if encoding.n_vocab <= 2**16 else "uint32"


def _encode_text(encoding: tiktoken.Encoding, text: str) -> npt.NDArray[np.uint32]:
    try:
        return encoding.encode_to_numpy(text, disallowed_special=())
    except ValueError:
        # About a million white-space characters in a row overflow the stack of tiktoken's regular expression. Such a
        # text has no ids of tiktoken's own; its halves have, and decode to the same text.
        if len(text) < 2:
            raise
        halves = text[: len(text) // 2], text[len(text) // 2 :]
        return np.concatenate([_encode_text(encoding, half) for half in halves])


def _chunks(task: ShardTask) -> Iterator[Tokens]:
    for span in task.spans:
        path = task.units[span.unit]
        if span.begin == 0:
            piece = read_piece(path)
            assert piece is not None
            check_piece(path, piece)
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
        yield tokens[span.begin : span.end]


def _write(target: Path, count: int, chunks: Iterator[Tokens] | Sequence[Tokens]) -> Piece:
    return write_piece(target, count, token_dtype(_encoding), chunks, _byte_lengths, _encoding.eot_token)
