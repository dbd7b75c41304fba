"""A conversation with a model, turn by turn. The keys and values of earlier turns stay in the cache.

session = ChatSession(for_inference(model, dtype), chat, settings)
for token in session.reply("What is 347 + 285?"): ...
"""

from collections.abc import Iterator

import numpy as np
import torch

from pipeline.artifacts import SampleSettings
from pipeline.corpus.chat import Chat
from pipeline.corpus.conversations import Message
from pipeline.generation.sampling import Decoder, sample_token
from pipeline.log import UserError
from pipeline.model.gpt import GPT

ANSWER_SHARE = 4  # a message may fill the context except for a quarter, which is for the answer


class ChatSession:
    """When the model's context is full, the oldest turns are forgotten."""

    def __init__(self, model: GPT, chat: Chat, settings: SampleSettings) -> None:
        """`model`: from `for_inference`."""
        self.model, self.chat, self.settings = model, chat, settings
        self.decoder: Decoder | None = None
        self._turns: list[int] = []  # tokens of each message with its answer
        self._random = np.random.default_rng(settings.seed)

    @torch.no_grad()
    def reply(self, text: str) -> Iterator[int]:
        """The tokens of the answer to a message, as they are drawn, without the end of the turn."""
        ids, settings, limit = self.chat.prompt([Message("user", text)]), self.settings, self.model.config.context_limit
        before = [] if self.decoder is None else self.decoder.rows[0][1:]
        forgotten = 0
        while limit and self._turns and len(before) - forgotten + len(ids) > limit - limit // ANSWER_SHARE:
            forgotten += self._turns.pop(0)
        longest = len(before) + len(ids) + settings.max_new_tokens + 1
        if self.decoder is None or forgotten:
            self.decoder = Decoder(self.model, [ids[:1] + before[forgotten:] + ids[1:]], limit or 2 * longest)
        else:
            self.decoder.extend(ids[1:], longest)
        begin = len(self.decoder.rows[0]) - len(ids) + 1
        for _ in range(settings.max_new_tokens):
            uniforms = torch.tensor([self._random.random()], dtype=torch.float64)
            logits = self.decoder.logits()  # (1, V)
            if logits.isnan().any():
                raise UserError("the model's logits are NaN: its weights are broken")
            token = int(sample_token(logits, settings.temperature, settings.top_k, settings.top_p, uniforms))
            self.decoder.append([token])
            if token == self.chat.end_id:
                break
            yield token
        else:
            self.decoder.append([self.chat.end_id])
        self._turns.append(len(self.decoder.rows[0]) - begin)
