"""Writes a tokenizer as `tokenizer.json`, the format of Hugging Face's tokenizers library, with the same ids.

tiktoken stores the tokens of a byte-pair encoding by rank, tokenizers stores the pairs that were merged. The pair of a
token is recovered by applying the merges of lower rank to its bytes.
"""

from typing import Any

import tiktoken

from pipeline.corpus.tokenizer import END_OF_TEXT
from pipeline.corpus.vocabularies import byte_characters
from pipeline.log import UserError


def tokenizer_json(tokenizer: tiktoken.Encoding) -> dict[str, Any]:
    """The content of tokenizer.json."""
    ranks = tokenizer._mergeable_ranks
    characters = byte_characters()

    def text(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

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
        for token, index in tokenizer._special_tokens.items()
    ]
    vocabulary = {text(token): rank for token, rank in sorted(ranks.items(), key=lambda item: item[1])}
    split = {"type": "Split", "pattern": {"Regex": tokenizer._pat_str}, "behavior": "Isolated", "invert": False}
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
            "merges": [[text(left), text(right)] for left, right in merges(ranks)],
        },
    }


def tokenizer_config(context: int) -> dict[str, Any]:
    """The content of tokenizer_config.json; `context`: the model's context in tokens."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }


def merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair that was merged into each token of more than one byte, in the order of ranks.

    Raises UserError if a token is not a merge of two tokens of lower rank.
    """
    pairs = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = split_before(token, rank, ranks)
            if len(parts) != 2:
                raise UserError(f"token {rank} ({token!r}) is not a merge of two tokens of lower rank: {parts}")
            pairs.append((parts[0], parts[1]))
    return pairs


def split_before(token: bytes, rank: int, ranks: dict[bytes, int]) -> list[bytes]:
    """The parts of a token's bytes after all merges below `rank`, lowest rank first."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 1:
        pair_ranks = [ranks.get(parts[i] + parts[i + 1], rank) for i in range(len(parts) - 1)]
        lowest = min(pair_ranks)
        if lowest >= rank:
            break
        i = pair_ranks.index(lowest)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts
