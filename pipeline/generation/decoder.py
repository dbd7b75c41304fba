"""Next-token logits of a batch of growing texts, with a key/value cache.

A text may outgrow the model's context. When the window of `block_size` tokens is full, its older half is dropped and
the newer half is read again from position 0. That happens every block_size / 2 tokens; every other new token costs one
forward pass of one token. The start of the window depends on the number of tokens only (`window_start`), so the logits
are the same function of the text with and without a cache.

    position    past the context limit
    learned     the window moves: the position table ends there
    sinusoidal  the window moves: the position table ends there
    rope        the window moves: larger angles were never trained
    alibi       no limit: the distance penalty is defined at any distance, and the cache grows
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.model.gpt import GPT
from pipeline.model.kv_cache import KVCache


def window_start(tokens: int, limit: int | None) -> int:
    """Index of the first token that the model sees of a text of `tokens` tokens. `limit`: its context; None: unlimited.

    >>> [window_start(n, 4) for n in (3, 4, 5, 6, 7)]
    [0, 0, 2, 2, 4]
    """
    if limit is None or tokens <= limit:
        return 0
    hop = limit - limit // 2
    return -(-(tokens - limit) // hop) * hop


class Decoder:
    """Growing texts in one batch. `rows` holds their tokens, at least one each."""

    def __init__(self, model: GPT, rows: Sequence[Sequence[int]], longest: int) -> None:
        """`longest`: maximum tokens that a row will have, for the size of the cache."""
        self.model = model
        self.rows = [list(row) for row in rows]
        self.limit = model.config.context_limit
        self.slots = longest if self.limit is None else min(longest, self.limit)
        self.device = model.transformer.wte.weight.device
        self.cache: KVCache | None = None
        self.starts: list[int] = []

    def logits(self) -> Tensor:
        """The next token's logits for each row, (B, V) float32.

        Between two calls, `append` must add one token to each row.
        """
        before, self.starts = self.starts, [window_start(len(row), self.limit) for row in self.rows]
        if self.cache is None:
            hidden = self._prefill([row[start:] for row, start in zip(self.rows, self.starts, strict=True)])
        else:
            moved = [row for row, start in enumerate(self.starts) if start != before[row]]
            if moved:
                self._reread(moved, self.cache)
            if self.cache.length == self.slots:
                self.cache.trim()
            hidden = self.model.hidden(torch.tensor([row[-1:] for row in self.rows], device=self.device), self.cache)
        return self.model.logits(hidden[:, -1]).float()

    def append(self, tokens: Sequence[int]) -> None:
        """Adds one token to each row."""
        for row, token in zip(self.rows, tokens, strict=True):
            row.append(token)

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all rows except these (current indices)."""
        self.rows = [self.rows[row] for row in rows]
        self.starts = [self.starts[row] for row in rows]
        if self.cache is not None:
            self.cache = self.cache.take(torch.tensor(rows, device=self.device))

    def _prefill(self, texts: list[list[int]]) -> Tensor:
        """Fills a new cache; equal texts are computed once. Hidden states, the newest last.  # (B, T, C)"""
        distinct = list(dict.fromkeys(map(tuple, texts)))
        width = max(map(len, distinct))
        lengths = torch.tensor([len(text) for text in distinct], device=self.device)
        padding = None if bool((lengths == width).all()) else width - lengths
        idx = torch.tensor([[0] * (width - len(text)) + list(text) for text in distinct], device=self.device)
        self.cache = self.model.new_cache(len(distinct), self.slots, padding)
        hidden = self.model.hidden(idx, self.cache)
        if len(distinct) < len(texts):
            row_of = {text: row for row, text in enumerate(distinct)}
            rows = torch.tensor([row_of[tuple(text)] for text in texts], device=self.device)
            self.cache, hidden = self.cache.take(rows), hidden[rows]
        return hidden

    def _reread(self, moved: list[int], cache: KVCache) -> None:
        """Replaces the cached tokens of rows whose windows moved by their new windows, without the newest token.

        A window moves when it is full, so these texts have the same length, and are shorter than what the cache holds.
        """
        texts = [self.rows[row][self.starts[row] : -1] for row in moved]
        fresh = self.model.new_cache(len(texts), len(texts[0]))
        self.model.hidden(torch.tensor(texts, dtype=torch.int64, device=self.device), fresh)
        cache.replace(torch.tensor(moved, device=self.device), fresh)
