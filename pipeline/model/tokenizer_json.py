"""An encoding as `tokenizer.json`, the file of Hugging Face's tokenizers: the same ids for every text.

tiktoken keeps the tokens of a byte-pair encoding in the order they were made; tokenizers keeps the pairs that were
merged. Each token's pair is found again by merging its bytes with the tokens before it.
"""

from typing import Any

import tiktoken

from pipeline.corpus.encodings import END_OF_TEXT

Ranks = dict[bytes, int]


def tokenizer_json(encoding: tiktoken.Encoding) -> dict[str, Any]:
    """The content of tokenizer.json."""
    ranks = encoding._mergeable_ranks
    names = byte_names()

    def name(token: bytes) -> str:
        return "".join(names[byte] for byte in token)

    special = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token, index in encoding._special_tokens.items()
    ]
    vocabulary = {name(token): rank for token, rank in sorted(ranks.items(), key=lambda item: item[1])}
    split = {"type": "Split", "pattern": {"Regex": encoding._pat_str}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [[name(left), name(right)] for left, right in merges(ranks)],
        },
    }


def tokenizer_config(context: int) -> dict[str, Any]:
    """The content of tokenizer_config.json; `context`: the model's, in tokens."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }


def byte_names() -> list[str]:
    """GPT-2's printable character for each byte: itself where printable, else one from U+0100 on (a space is Ġ)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def merges(ranks: Ranks) -> list[tuple[bytes, bytes]]:
    """The pair that was merged into each token of more than one byte, in the order of ranks.

    Raises ValueError where a token cannot be made of two that came before it.
    """
    found = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = parts_before(token, rank, ranks)
            if len(parts) != 2:
                raise ValueError(f"token {rank} ({token!r}) is no merge of two tokens before it: {parts}")
            found.append((parts[0], parts[1]))
    return found


def parts_before(token: bytes, rank: int, ranks: Ranks) -> list[bytes]:
    """What the bytes of a token become when only merges of lower rank are applied, lowest first."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 1:
        pairs = [ranks.get(parts[i] + parts[i + 1], rank) for i in range(len(parts) - 1)]
        lowest = min(pairs)
        if lowest >= rank:
            break
        i = pairs.index(lowest)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts
