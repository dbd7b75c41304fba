"""Tokenizers: from text to token ids and back, and the files that store one.

A tokenizer is a `tiktoken.Encoding` with the special token `<|endoftext|>`, whose id is `tokenizer.eot_token`, and
after all other ids those of a chat template (pipeline.corpus.chat). Ids are 0 to `tokenizer.n_vocab - 1`. Its files, in
`data/shards/tokenizer/` and `data/model/tokenizer/`:

    config.json      TokenizerConfig
    ranks.tiktoken   tiktoken's format, one token per line: base64 of its bytes, a space, its rank

pipeline.corpus.vocabularies trains or downloads tokenizers.
"""

import base64
import codecs
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tiktoken

from pipeline.artifacts import Record
from pipeline.files import parsing, write_json, write_text
from pipeline.log import UserError

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_DIRECTORY = "tokenizer"  # in data/shards and in a model directory
TOKENIZER_FILE = "config.json"
RANKS_FILE = "ranks.tiktoken"
TOKENIZER_FILES = (TOKENIZER_FILE, RANKS_FILE)


class TokenizerConfig(Record):
    """tokenizer/config.json: all of a tokenizer but its ranks."""

    stage = "tokenize"
    version = 1

    format_version: int
    name: str
    n_vocab: int
    special_tokens: dict[str, int]
    pat_str: str
    """The regular expression that splits text before tokens are merged."""
    sha256: str
    """fingerprint(tokenizer)."""
    chat_template: str | None = None
    """Of conversations; None: the tokenizer was not used for any."""
    extends: str | None = None
    """The fingerprint without the special tokens that were added for the template; None: there are none."""

    def write(self, path: Path) -> None:
        write_json(path, self.model_dump(mode="json", exclude_none=True))


def bytes_tokenizer() -> tiktoken.Encoding:
    """One id per byte of UTF-8, and the end-of-text token, 256."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    # There are no merges, so how the text is split changes nothing but the speed.
    return tiktoken.Encoding(
        "bytes", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 256}, explicit_n_vocab=257
    )


def save_tokenizer(
    tokenizer: tiktoken.Encoding, directory: Path, chat_template: str | None = None, extends: str | None = None
) -> None:
    """Writes the tokenizer's two files into `directory`, which is created if needed. The rest: see TokenizerConfig."""
    write_text(directory / RANKS_FILE, _ranks_text(tokenizer))
    config = TokenizerConfig(
        format_version=TokenizerConfig.version,
        name=tokenizer.name,
        n_vocab=tokenizer.n_vocab,
        special_tokens=tokenizer._special_tokens,
        pat_str=tokenizer._pat_str,
        sha256=fingerprint(tokenizer),
        chat_template=chat_template,
        extends=extends,
    )
    config.write(directory / TOKENIZER_FILE)


def load_tokenizer(directory: Path) -> tiktoken.Encoding:
    """The tokenizer stored in `directory`, e.g. data/shards/tokenizer or data/model/tokenizer.

    Raises FileNotFoundError, or UserError that names the damaged file and line.
    """
    path = directory / TOKENIZER_FILE
    config = TokenizerConfig.read(path)
    end_of_text = config.special_tokens.get(END_OF_TEXT, config.n_vocab)
    ranks = _read_ranks(directory / RANKS_FILE, end_of_text)
    others = sorted(id for token, id in config.special_tokens.items() if token != END_OF_TEXT)
    expected = [len(ranks) + 1 + number for number in range(len(others))]
    if not 0 <= end_of_text <= len(ranks) or others != expected or config.n_vocab != len(ranks) + 1 + len(others):
        raise UserError(
            f"{path}: with {len(ranks)} ranks, special_tokens must be {END_OF_TEXT} and those of the ids from "
            f"{len(ranks) + 1} to n_vocab ({config.n_vocab}) - 1"
        )
    with parsing(f"{path}: pat_str"):
        tokenizer = tiktoken.Encoding(
            config.name, pat_str=config.pat_str, mergeable_ranks=ranks, special_tokens=config.special_tokens
        )
    if fingerprint(tokenizer) != config.sha256:
        raise UserError(f"{directory}: {RANKS_FILE} does not match the sha256 in {TOKENIZER_FILE}")
    return tokenizer


def fingerprint(tokenizer: tiktoken.Encoding) -> str:
    """The sha256 of everything that decides a text's ids: ranks, split pattern and special tokens, but not the name."""
    rules = json.dumps([tokenizer._pat_str, sorted(tokenizer._special_tokens.items())])
    return hashlib.sha256(f"{rules}\n{_ranks_text(tokenizer)}".encode()).hexdigest()


def encode_text(tokenizer: tiktoken.Encoding, text: str) -> npt.NDArray[np.uint32]:
    """The ids of a text in which special tokens are ordinary text: (ids,).

    About a million white-space characters in a row overflow the stack of tiktoken's regular expression. The two halves
    of such a text are encoded separately; together they decode to the same text. Raises UserError where that fails too.
    """
    with parsing(f"{tokenizer.name} cannot encode {text[:40]!r}"):  # encode_ordinary would panic, and print that
        try:
            return tokenizer.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:  # half of a surrogate pair
            raise
        except ValueError:
            if len(text) < 2:
                raise
    halves = text[: len(text) // 2], text[len(text) // 2 :]
    return np.concatenate([encode_text(tokenizer, half) for half in halves])


def token_texts(tokenizer: tiktoken.Encoding, tokens: Iterable[int]) -> Iterator[str]:
    """The text that each token adds, and finally any remaining text (or "").

    Where a character takes several tokens, the last one adds it and the others add "". Invalid UTF-8 becomes U+FFFD.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        yield decoder.decode(tokenizer.decode_single_token_bytes(token))
    yield decoder.decode(b"", final=True)


def token_byte_lengths(tokenizer: tiktoken.Encoding) -> npt.NDArray[np.int64]:
    """UTF-8 bytes that each id decodes to; 0 for special tokens.  # (n_vocab,)

    `lengths[tokens].sum()` is the denominator of bits per byte, exact for any range of tokens.
    """
    lengths = np.zeros(tokenizer.n_vocab, np.int64)
    for token, rank in tokenizer._mergeable_ranks.items():
        lengths[rank] = len(token)
    return lengths


def _ranks_text(tokenizer: tiktoken.Encoding) -> str:
    ranks = sorted(tokenizer._mergeable_ranks.items(), key=lambda item: item[1])
    return "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks)


def _read_ranks(path: Path, end_of_text: int) -> dict[bytes, int]:
    # Not tiktoken's load_tiktoken_bpe: it keeps a copy in the temporary folder and looks it up by path, not by content.
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_text(encoding="ascii", errors="replace").splitlines()):
        rank = number + (number >= end_of_text)
        try:
            encoded, _, written = line.partition(" ")
            token = base64.b64decode(encoded, validate=True)
        except ValueError:  # binascii.Error is one
            token = b""
        if not token or token in ranks or written != str(rank):
            raise UserError(f"{path}:{number + 1}: must be a new token in base64, a space and its rank, {rank}")
        ranks[token] = rank
    for byte in range(256):
        if bytes([byte]) not in ranks:
            raise UserError(f"{path}: no token for the byte {byte}")
    return ranks
