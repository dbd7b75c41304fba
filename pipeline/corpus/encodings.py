"""Encodings: text to token ids and back, as files that go with shards and models.

An encoding is a `tiktoken.Encoding` with one special token, `<|endoftext|>`, whose id is `encoding.eot_token`; ids are
0 to `encoding.n_vocab - 1`. Its files, in `data/shards/encoding/` and `data/model/encoding/`:

    encoding.json    name, split pattern, special tokens, n_vocab, sha256 (see `identity`)
    ranks.tiktoken   one token a line in tiktoken's format: base64 of its bytes, a space, its rank

Where encodings come from: pipeline.corpus.vocabularies.
"""

import base64
import binascii
import hashlib
import json
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import tiktoken
from pydantic import Field

from pipeline.config import Section
from pipeline.files import read_json, write_json, write_text

FORMAT_VERSION = 1
END_OF_TEXT = "<|endoftext|>"
ENCODING_FILE = "encoding.json"
RANKS_FILE = "ranks.tiktoken"
FILES = (ENCODING_FILE, RANKS_FILE)


class TokenizerParams(Section):
    """How text becomes shards of token ids."""

    section: ClassVar[str] = "tokenizer"

    encoding: Literal["bpe", "gpt2", "bytes"]
    """bpe: a byte-pair encoding trained on the training documents; gpt2: GPT-2's own, 50,257 ids; bytes: one id per
    byte of UTF-8."""

    vocab_size: int = Field(ge=257, le=2**31)
    """Ids of a bpe encoding: 256 bytes, the merges, and the end-of-text token. Others have their own number."""

    training_bytes: int | None = Field(ge=1)
    """Bytes of UTF-8 text that a bpe encoding is trained on: the first so many of the training documents; null: all."""

    shard_tokens: int = Field(ge=1)
    """Tokens per shard. Where no documents are held out (data.val_every null), the first shard is the validation
    split."""


def bytes_encoding() -> tiktoken.Encoding:
    """One id per byte of UTF-8, and the end-of-text token, 256."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    # One piece per byte-sized match: no merges exist, so how the text is split changes nothing but the speed.
    return tiktoken.Encoding(
        "bytes", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 256}, explicit_n_vocab=257
    )


def save(encoding: tiktoken.Encoding, directory: Path) -> None:
    """Writes the encoding's two files into `directory`, which is made if it is not there."""
    directory.mkdir(parents=True, exist_ok=True)
    ranks = _ranks_text(encoding)
    write_text(directory / RANKS_FILE, ranks)
    description = {
        "format_version": FORMAT_VERSION,
        "name": encoding.name,
        "n_vocab": encoding.n_vocab,
        "special_tokens": encoding._special_tokens,
        "pat_str": encoding._pat_str,
        "sha256": _hash(encoding, ranks),
    }
    write_json(directory / ENCODING_FILE, description)


def load(directory: Path) -> tiktoken.Encoding:
    """The encoding whose files `directory` holds, e.g. data/shards/encoding or data/model/encoding.

    Raises FileNotFoundError, or ValueError that names the file (and line) that is not what `save` wrote.
    """
    path = directory / ENCODING_FILE
    values = read_json(path)
    if (version := values.get("format_version")) != FORMAT_VERSION:
        raise ValueError(f"{path}: format_version ({version}) must be {FORMAT_VERSION}")
    encoding = tiktoken.Encoding(
        values["name"],
        pat_str=values["pat_str"],
        mergeable_ranks=_read_ranks(directory / RANKS_FILE),
        special_tokens=values["special_tokens"],
    )
    if identity(encoding) != values["sha256"]:
        raise ValueError(
            f"{directory}: {RANKS_FILE} and {ENCODING_FILE} are not those of one encoding (sha256 differs)"
        )
    return encoding


def identity(encoding: tiktoken.Encoding) -> str:
    """The sha256 of all that decides which ids a text gets: ranks, split pattern, special tokens. Not of the name."""
    return _hash(encoding, _ranks_text(encoding))


def token_byte_lengths(encoding: tiktoken.Encoding) -> npt.NDArray[np.int64]:
    """UTF-8 bytes of text that each id stands for; 0 for special tokens.  # (n_vocab,)

    `lengths[tokens].sum()` is the denominator of bits per byte, exact for any range of a stream.
    """
    lengths = np.zeros(encoding.n_vocab, np.int64)
    for token, rank in encoding._mergeable_ranks.items():
        lengths[rank] = len(token)
    return lengths


def _hash(encoding: tiktoken.Encoding, ranks: str) -> str:
    rules = json.dumps([encoding._pat_str, sorted(encoding._special_tokens.items())])
    return hashlib.sha256(f"{rules}\n{ranks}".encode()).hexdigest()


def _ranks_text(encoding: tiktoken.Encoding) -> str:
    ranks = sorted(encoding._mergeable_ranks.items(), key=lambda item: item[1])
    return "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks)


def _read_ranks(path: Path) -> dict[bytes, int]:
    """tiktoken's own reader would keep a copy under the temporary folder, found again by path and not by content."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_text(encoding="ascii").splitlines(), start=1):
        try:
            token, rank = line.split(" ")
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(f"{path}:{number}: must be a token in base64, a space and its rank") from None
    return ranks
