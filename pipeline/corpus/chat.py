"""Chat templates: conversations as token ids, the same in training, evaluation and generation.

A template such as `<|{role}|>{content}<|end|>` is filled in for each message, after one end-of-text token:

    <|endoftext|><|user|>2 + 2?<|end|><|assistant|>4<|end|>
                                                   ------- counts in the loss

Words of the form `<|...|>` are special tokens, which no text of a message can spell. Those that a tokenizer lacks get
the next free ids. Other words of a template are ordinary text, so a template whose only special token is <|endoftext|>
fits every tokenizer.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tiktoken

from pipeline.artifacts import COUNTS, STARTS
from pipeline.corpus.conversations import ROLES, Message
from pipeline.corpus.tokenizer import TOKENIZER_FILE, TokenizerConfig, encode_text

Mask = npt.NDArray[np.uint8]


class Chat:
    """A template with the tokenizer that has its special tokens."""

    def __init__(self, tokenizer: tiktoken.Encoding, template: str) -> None:
        self.tokenizer, self.template = tokenizer, template
        before, end = template.split("{content}")
        self._before = {role: tokenizer.encode(before.replace("{role}", role), allowed_special="all") for role in ROLES}
        self.end_id: int = tokenizer.encode_single_token(end)
        """The end-of-turn token."""

    def content(self, text: str) -> list[int]:
        """The ids of a message and of the end of its turn."""
        return [*encode_text(self.tokenizer, text).tolist(), self.end_id]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation's first messages, after which the assistant answers."""
        ids, _ = self.encode(messages)
        return ids + self._before["assistant"]

    def encode(self, conversation: Sequence[Message]) -> tuple[list[int], Mask]:
        """A conversation's ids, from its end-of-text token on, and the mask of the same length."""
        ids, mask = [self.tokenizer.eot_token], [STARTS]
        for message in conversation:
            before, content = self._before[message.role], self.content(message.content)
            ids += before + content
            mask += [0] * len(before) + [COUNTS if message.role == "assistant" else 0] * len(content)
        return ids, np.array(mask, np.uint8)


def prompt_ids(tokenizer: tiktoken.Encoding, chat: Chat | None, prompt: str | None) -> list[int]:
    """The ids of a prompt that a model continues: of a text, or of a message that it answers; None: at the start."""
    if chat is None:
        return encode_text(tokenizer, prompt or "").tolist()
    return [tokenizer.eot_token] if prompt is None else chat.prompt([Message("user", prompt)])


def prompt_text(chat: Chat | None, prompt: str | None) -> str | None:
    """A prompt as a reader sees it before its continuation."""
    return prompt if chat is None or prompt is None else f"user: {prompt}\nassistant: "


def load_chat(directory: Path, tokenizer: tiktoken.Encoding) -> Chat | None:
    """The template in a directory of a tokenizer; None if it was not trained on conversations."""
    template = TokenizerConfig.read(directory / TOKENIZER_FILE).chat_template
    return None if template is None else Chat(tokenizer, template)


def with_special_tokens(tokenizer: tiktoken.Encoding, template: str) -> tiktoken.Encoding:
    """The tokenizer with the special tokens of a template; itself where it has them all."""
    words = [word for role in ROLES for word in re.findall(r"<\|[^|<>]+\|>", template.replace("{role}", role))]
    special = dict(tokenizer._special_tokens)
    for word in words:
        special.setdefault(word, len(tokenizer._mergeable_ranks) + len(special))
    if len(special) == len(tokenizer._special_tokens):
        return tokenizer
    return tiktoken.Encoding(
        f"{tokenizer.name}-chat",
        pat_str=tokenizer._pat_str,
        mergeable_ranks=tokenizer._mergeable_ranks,
        special_tokens=special,
    )
