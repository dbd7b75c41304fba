"""The two ways in use of turning a HellaSwag item into tokens. Their numbers cannot be compared with each other.

`harness`     EleutherAI's lm-evaluation-harness (tasks/hellaswag, version 1.0): the activity label in front, ctx_b
              capitalised, WikiHow's brackets removed, and context and ending encoded as one text. Gives `acc` (the
              ending with the highest log-likelihood) and `acc_norm` (per character of the ending).
`token_mean`  build-nanogpt, llm.c, nanochat: the raw ctx, endings encoded by themselves. Gives `acc_norm_token` (the
              highest log-likelihood per token).

    item        activity_label "Roofing", ctx_a "A man is on a roof.", ctx_b "he", an ending "is up [substeps] there."
    harness     "Roofing: A man is on a roof. He"   " is up there."
    token_mean  "A man is on a roof. he"            " is up [substeps] there."
"""

import re
from dataclasses import dataclass

import tiktoken

from pipeline.corpus.hellaswag_items import Item

HARNESS, TOKEN_MEAN = "harness", "token_mean"
PROTOCOLS = (HARNESS, TOKEN_MEAN)


@dataclass(frozen=True)
class Question:
    """An item as one protocol asks it."""

    context: list[int]
    endings: list[list[int]]
    characters: list[int]
    """Length of each ending's text, without the space in front of it."""


def ask(item: Item, protocol: str, encoding: tiktoken.Encoding) -> Question:
    """The tokens that `protocol` (of PROTOCOLS) has for an item."""
    if protocol == HARNESS:
        context = without_brackets(f"{item.activity_label}: {item.ctx_a} {item.ctx_b.capitalize()}")
        endings = [without_brackets(ending) for ending in item.endings]
        pairs = [encode_pair(context, f" {ending}", encoding) for ending in endings]
        # The ending never changes the context's tokens here: every pair has the same.
        return Question(pairs[0][0], [continuation for _, continuation in pairs], [len(ending) for ending in endings])
    context_tokens = encoding.encode_ordinary(item.ctx)
    ending_tokens = [encoding.encode_ordinary(f" {ending}") for ending in item.endings]
    return Question(context_tokens, ending_tokens, [len(ending) for ending in item.endings])


def without_brackets(text: str) -> str:
    """The harness's cleaning of WikiHow's marks, step by step as it does them.

    >>> without_brackets("How to bake [title] Preheat. [step] Set the oven")
    'How to bake. Preheat. Set the oven'
    """
    text = text.strip()
    text = text.replace(" [title]", ". ")
    text = re.sub(r"\[.*?\]", "", text)
    return text.replace("  ", " ")


def encode_pair(context: str, continuation: str, encoding: tiktoken.Encoding) -> tuple[list[int], list[int]]:
    """Tokens of a context and of what follows it, as the harness cuts them.

    Both are encoded as one text; what comes after as many tokens as the context has by itself is the continuation.
    Spaces that end the context go over to it, since most encodings join a space to the word behind.
    """
    stripped = context.rstrip()
    whole = encoding.encode_ordinary(context + continuation)
    tokens = encoding.encode_ordinary(stripped)
    return tokens, whole[len(tokens) :]
