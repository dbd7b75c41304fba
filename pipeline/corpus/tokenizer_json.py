"""tokenizer.json, the format of Hugging Face's tokenizers library, read and written with the same ids.

tiktoken stores the tokens of a byte-pair encoding by rank, tokenizers stores the pairs that were merged. The pair of a
token is recovered by applying the merges of lower rank to its bytes. If a file lists the same pairs, in the order of
ids, both libraries give the same ids.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str  # type: ignore[import-untyped]

from pipeline.corpus.tokenizer import END_OF_TEXT
from pipeline.files import parsing
from pipeline.log import UserError


def _byte_characters() -> list[str]:
    others = iter(range(256, 512))
    return [chr(byte if chr(byte).isprintable() and byte != ord(" ") else next(others)) for byte in range(256)]


# The character that GPT-2's files write for each byte: itself if printable, else one from U+0100 on (space: Ġ).
BYTE_CHARACTERS = _byte_characters()
BYTE_OF = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}


def token_bytes(token: str) -> bytes:
    """The bytes of a token as GPT-2's files write it. Raises KeyError for a character that is not in BYTE_OF."""
    return bytes(BYTE_OF[character] for character in token)


def parse_tokenizer_json(values: Any, source: Path) -> tiktoken.Encoding:
    """The tokenizer with the ids that the content of a tokenizer.json gives to any text without special tokens.

    Raises UserError that names `source` and everything that tiktoken cannot represent.
    """
    with parsing(f"{source} is not a valid tokenizer.json"):
        if obstacles := list(_obstacles(values)):
            raise UserError(f"{source}: tiktoken cannot represent {'; '.join(obstacles)}")
        model, end_of_text = values["model"], values["added_tokens"][0]["id"]
        ranks = {token_bytes(token): id for token, id in model["vocab"].items() if token != END_OF_TEXT}
        if sorted([*ranks.values(), end_of_text]) != list(range(len(ranks) + 1)):
            raise UserError(f"{source}: the {len(ranks) + 1} ids must be 0 to {len(ranks)}")
        if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
            raise UserError(f"{source}: no token for the byte {missing[0]}")
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        if [(token_bytes(left), token_bytes(right)) for left, right in pairs] != merges(ranks):
            raise UserError(f"{source}: the merges must give each token of several bytes once, in the order of ids")
        tokenizer = tiktoken.Encoding(
            f"bpe-{len(ranks) + 1}",
            pat_str=_pattern(values["pre_tokenizer"]) or "",
            mergeable_ranks=ranks,
            special_tokens={END_OF_TEXT: end_of_text},
        )
        text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
        if tokenizer.decode(tokenizer.encode_ordinary(text)) != text:  # tiktoken drops what the pattern does not match
            raise UserError(f"{source}: the pattern of pre_tokenizer must match every character")
    return tokenizer


def _obstacles(values: Any) -> Iterator[str]:
    model = values["model"]
    if (kind := model.get("type", "BPE")) != "BPE":  # old files have no type
        yield f"model.type {kind}"
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            yield f"model.{key} {model[key]}"
    if normalizer := values.get("normalizer"):
        yield f"normalizer {normalizer.get('type')}"
    if _pattern(pre_tokenizer := values.get("pre_tokenizer")) is None:
        steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer or {}])
        yield f"pre_tokenizer {' + '.join(str(step.get('type')) for step in steps)} (only byte-level, as GPT-2's)"
    added = [token["content"] for token in values.get("added_tokens", [])]
    if added != [END_OF_TEXT]:
        yield f"added_tokens other than {END_OF_TEXT} alone ({', '.join(map(str, added[:5])) or 'none'})"


def _pattern(pre_tokenizer: Any) -> str | None:
    """The regular expression that splits text; None if it is not split by one alone, and then into bytes."""
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False, **rest} if rest.get("use_regex", True):
            return str(r50k_pat_str)
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": behavior, "invert": invert},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        } if (behavior, invert) in (("Isolated", False), ("Removed", True)):
            return pattern
    return None


def tokenizer_json(tokenizer: tiktoken.Encoding) -> dict[str, Any]:
    """The content of tokenizer.json."""
    ranks = tokenizer._mergeable_ranks

    def text(token: bytes) -> str:
        return "".join(BYTE_CHARACTERS[byte] for byte in token)

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
    vocabulary = {text(token): rank for token, rank in ranks.items()} | tokenizer._special_tokens
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
            "vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1])),
            "merges": [[text(left), text(right)] for left, right in merges(ranks)],
        },
    }


def tokenizer_config(context: int, chat_template: str | None = None) -> dict[str, Any]:
    """The content of tokenizer_config.json; `context`: the model's context in tokens; `chat_template`: ours, or None.

    transformers applies it to the text of a conversation. So a message that spells a special token becomes that token,
    and text of the template right before {content} may be merged with it.
    """
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    return values if chat_template is None else values | {"chat_template": _jinja(chat_template)}


def _jinja(chat_template: str) -> str:
    """The same template in the language of transformers."""
    start, middle, end = map(repr, re.split(r"\{role\}|\{content\}", chat_template))  # as literals
    return (
        f"{{{{ bos_token }}}}{{% for message in messages %}}"
        f"{{{{ {start} + message.role + {middle} + message.content + {end} }}}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {start} + 'assistant' + {middle} }}}}{{% endif %}}"
    )


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
