"""Token files, and the functions that worker processes run to write them.

A token file holds the tokens of a row group or of a shard:

    train-000042.npy        1-D tokens
    train-000042.mask.npy   1-D uint8, of conversations: the bits of pipeline.artifacts for each token
    train-000042.json       TokenFile, written last: without it, the others are ignored

The files are not flushed to disk one by one, which would take up to a tenth of the stage's time: damage by a power
loss is found by the hash before the file is used.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import tiktoken

from pipeline.artifacts import COUNTS, STARTS, Record
from pipeline.corpus.chat import Chat, Mask, load_chat
from pipeline.corpus.documents import read_row_group
from pipeline.corpus.shards import Tokens, mask_file
from pipeline.corpus.tokenizer import encode_text, load_tokenizer, token_byte_lengths
from pipeline.files import atomic_path, sha256_of
from pipeline.log import UserError

CHUNK_TOKENS = 2**16  # a chunk stays in the CPU cache while it is written, hashed and counted


class TokenFile(Record):
    """The .json beside a token file."""

    stage = "tokenize"
    version = 1

    format_version: int
    tokens: int
    documents: int
    """Documents that start in it."""
    utf8_bytes: int
    """Bytes of text that the tokens decode to."""
    sha256: str
    """Of the .npy file."""
    counted: int | None = None
    """Tokens that count in the loss; None without a mask."""
    mask_sha256: str | None = None

    def is_intact(self, path: Path) -> bool:
        """Whether the token file `path` and its mask have the recorded hashes."""
        return sha256_of(path) == self.sha256 and (
            self.mask_sha256 is None or sha256_of(mask_file(path)) == self.mask_sha256
        )


def read_token_file(path: Path) -> TokenFile | None:
    """The record of the token file `path` if the file is complete, else None."""
    record = path.with_suffix(".json")
    if not (path.exists() and record.exists()):
        return None
    try:
        file = TokenFile.read(record)
    except (UserError, ValueError):  # damaged: the token file is written again
        return None
    return file if file.mask_sha256 is None or mask_file(path).exists() else None


class RowGroupTask(NamedTuple):
    """Encode a row group of `raw` into the token file `target`."""

    raw: Path
    row_group: int
    target: Path


class Span(NamedTuple):
    """Tokens [begin, end) of the token file `source`."""

    source: Path
    begin: int
    end: int


class ShardTask(NamedTuple):
    """Copy spans of row groups' token files into the shard `target`."""

    spans: list[Span]
    target: Path


_tokenizer: tiktoken.Encoding
_chat: Chat | None  # of conversations
_byte_lengths: npt.NDArray[np.unsignedinteger]


def load_worker_tokenizer(directory: Path) -> None:
    """Loads the tokenizer, once in each worker process, for the functions below."""
    global _tokenizer, _chat, _byte_lengths
    _tokenizer = load_tokenizer(directory)
    _chat = load_chat(directory, _tokenizer)
    lengths = token_byte_lengths(_tokenizer)
    _byte_lengths = lengths.astype(np.min_scalar_type(lengths.max()))  # a smaller table is faster to look up


def encode_row_group(task: RowGroupTask) -> tuple[RowGroupTask, TokenFile]:
    """Encodes the documents of a row group. Raises UserError that names a bad row."""
    documents = read_row_group(task.raw, task.row_group)
    if _chat is None:
        tokens = encode(_tokenizer, [document for document in documents if isinstance(document, str)])
        return task, _write_token_file(task.target, len(tokens), [tokens])
    pairs = [_chat.encode(document) for document in documents if not isinstance(document, str)]
    tokens = np.array([id for ids, _ in pairs for id in ids], token_dtype(_tokenizer))
    return task, _write_token_file(task.target, len(tokens), [tokens], [np.concatenate([mask for _, mask in pairs])])


def write_shard(task: ShardTask) -> tuple[ShardTask, TokenFile]:
    """Copies spans into a shard. Each token file is checked against its hash by the shard that contains its start."""
    count = sum(span.end - span.begin for span in task.spans)
    masks = None if _chat is None else (np.load(mask_file(s.source), "r")[s.begin : s.end] for s in task.spans)
    return task, _write_token_file(task.target, count, map(_read_span, task.spans), masks)


def encode(tokenizer: tiktoken.Encoding, documents: Sequence[str]) -> Tokens:
    """The tokens of documents, each after an end-of-text token.  # (tokens,) uint16 or uint32

    Special tokens in a document's text are encoded as ordinary text.

    >>> from pipeline.corpus.tokenizer import bytes_tokenizer
    >>> encode(bytes_tokenizer(), ["hi", "", "you"]).tolist()
    [256, 104, 105, 256, 256, 121, 111, 117]
    """
    # Allocated for a token per byte, of which only what is written occupies memory. Collecting an array per document
    # and concatenating them would cost a twentieth of the speed.
    out = np.empty(sum(4 * len(text) + 1 for text in documents), token_dtype(tokenizer))
    end = 0
    for text in documents:
        ids = encode_text(tokenizer, text)
        assert not len(ids) or ids.max() < tokenizer.n_vocab  # a cast to uint16 would wrap silently
        out[end] = tokenizer.eot_token
        out[end + 1 : end + 1 + len(ids)] = ids
        end += 1 + len(ids)
    return out[:end]


def token_dtype(tokenizer: tiktoken.Encoding) -> Literal["uint16", "uint32"]:
    """The smallest dtype that holds every id."""
    return "uint16" if tokenizer.n_vocab <= 2**16 else "uint32"


def _read_span(span: Span) -> Tokens:
    if span.begin == 0:
        record = read_token_file(span.source)
        assert record is not None
        if not record.is_intact(span.source):
            span.source.with_suffix(".json").unlink()  # so that the next run writes the file again
            raise UserError(f"{span.source} is damaged (sha256 differs from its record): run again to rewrite it")
    tokens: Tokens = np.load(span.source, mmap_mode="r", allow_pickle=False)
    return tokens[span.begin : span.end]


def _write_token_file(
    path: Path, count: int, parts: Iterable[Tokens], masks: Iterable[Mask] | None = None
) -> TokenFile:
    """Writes `count` tokens, which come in `parts`, their masks, and the record. Raises OSError that names the file."""
    documents = utf8_bytes = counted = 0

    def tokens() -> Iterator[Tokens]:
        nonlocal documents, utf8_bytes
        for chunk in _chunks(parts):
            documents += int(np.count_nonzero(chunk == _tokenizer.eot_token))
            utf8_bytes += int(np.take(_byte_lengths, chunk).sum(dtype=np.int64))
            yield chunk

    def mask(masks: Iterable[Mask]) -> Iterator[Mask]:
        nonlocal documents, counted
        documents = 0  # where the template ends turns by an end-of-text token, those are no documents
        for chunk in masks:
            documents += int(np.count_nonzero(chunk & STARTS))
            counted += int(np.count_nonzero(chunk & COUNTS))
            yield chunk

    sha256 = _write_npy(path, token_dtype(_tokenizer), count, tokens())
    mask_sha256 = None if masks is None else _write_npy(mask_file(path), "uint8", count, mask(masks))
    record = TokenFile(
        format_version=TokenFile.version,
        tokens=count,
        documents=documents,
        utf8_bytes=utf8_bytes,
        sha256=sha256,
        counted=None if masks is None else counted,
        mask_sha256=mask_sha256,
    )
    with atomic_path(path.with_suffix(".json"), flush=False) as temporary:
        temporary.write_text(record.model_dump_json(), encoding="utf-8")
    return record


def _write_npy(path: Path, dtype: str, count: int, chunks: Iterable[npt.NDArray[Any]]) -> str:
    """Writes `count` numbers that come in chunks; returns the file's sha256."""
    little_endian = np.dtype(dtype).newbyteorder("<")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": little_endian.str, "fortran_order": False, "shape": (count,)}
    )
    digest, written = hashlib.sha256(header.getvalue()), 0
    with atomic_path(path, flush=False) as temporary, temporary.open("wb") as file:
        file.write(header.getvalue())
        for chunk in chunks:
            data = np.ascontiguousarray(chunk, little_endian)
            file.write(data.data)
            digest.update(data.data)
            written += len(data)
        assert written == count, f"{path}: {written} tokens, expected {count}"
    return digest.hexdigest()


def _chunks(parts: Iterable[Tokens]) -> Iterator[Tokens]:
    for tokens in parts:
        for begin in range(0, len(tokens), CHUNK_TOKENS):
            yield tokens[begin : begin + CHUNK_TOKENS]
