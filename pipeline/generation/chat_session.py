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
from pipeline.model.gpt import GPT


class ChatSession:
    """Past the model's context, the oldest tokens are forgotten, as in other generation."""

    def __init__(self, model: GPT, chat: Chat, settings: SampleSettings) -> None:
        """`model`: from `for_inference`."""
        self.model, self.chat, self.settings = model, chat, settings
        self.decoder: Decoder | None = None
        self._random = np.random.default_rng(settings.seed)

    @torch.no_grad()
    def reply(self, text: str) -> Iterator[int]:
        """The tokens of the answer to a message, as they are drawn, without the end of the turn."""
        ids, settings = self.chat.prompt([Message("user", text)], start=self.decoder is None), self.settings
        new = len(ids) + settings.max_new_tokens + 1
        if self.decoder is None:
            self.decoder = Decoder(self.model, [ids], self.model.config.context_limit or 2 * new)
        else:
            self.decoder.extend(ids, len(self.decoder.rows[0]) + new)
        for _ in range(settings.max_new_tokens):
            uniforms = torch.tensor([self._random.random()], dtype=torch.float64)
            logits = self.decoder.logits()  # (1, V)
            token = int(sample_token(logits, settings.temperature, settings.top_k, settings.top_p, uniforms))
            self.decoder.append([token])
            if token == self.chat.end_id:
                return
            yield token
        self.decoder.append([self.chat.end_id])
