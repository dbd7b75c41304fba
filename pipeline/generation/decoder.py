"""The logits of the next token of many growing texts, with a key/value cache that is kept in step with them.

What a model sees of a text that has outgrown its context: when a window of `block_size` tokens is full and another
token comes, the older half is forgotten and the newer half is read again from position 0. Between two such readings,
which come every block_size / 2 tokens, each new token costs one pass of one token. The start of the window depends on
the number of tokens alone (`window_start`), so cached and recomputed logits are the same function of the text.

    position    past the context limit
    learned     the window moves: the table of positions ends there
    sinusoidal  the window moves: the same
    rope        the window moves: larger angles were never trained
    alibi       no limit: the penalty on distance is defined at any distance, and the cache grows
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.model.cache import KVCache
from pipeline.model.gpt import GPT


def window_start(tokens: int, limit: int | None) -> int:
    """The first token that the model sees of a text of `tokens` tokens. `limit`: its context, None: endless.

    >>> [window_start(n, 4) for n in (3, 4, 5, 6, 7)]
    [0, 0, 2, 2, 4]
    """
    if limit is None or tokens <= limit:
        return 0
    hop = limit - limit // 2
    return -(-(tokens - limit) // hop) * hop


class Decoder:
    """Growing texts in one batch. `rows` are their tokens; each must hold at least one."""

    def __init__(self, model: GPT, rows: Sequence[Sequence[int]], longest: int) -> None:
        """`longest`: tokens that a row will have at most, for the size of the cache."""
        self.model = model
        self.rows = [list(row) for row in rows]
        self.limit = model.config.context_limit
        self.slots = longest if self.limit is None else min(longest, self.limit)
        self.device = model.transformer.wte.weight.device
        self.cache: KVCache | None = None
        self.starts: list[int] = []

    def logits(self) -> Tensor:
        """The next token's logits for each row as it is now, (B, V) float32.

        Each call but the first must come after `append`, which adds one token to each row.
        """
        before, self.starts = self.starts, [window_start(len(row), self.limit) for row in self.rows]
        if self.cache is None:
            hidden = self._read([row[start:] for row, start in zip(self.rows, self.starts, strict=True)])
        else:
            moved = [row for row, start in enumerate(self.starts) if start != before[row]]
            if moved:
                self._read_again(moved, self.cache)
            if self.cache.length == self.slots:
                self.cache.trim()
            hidden = self.model.hidden(torch.tensor([row[-1:] for row in self.rows], device=self.device), self.cache)
        return self.model.logits(hidden[:, -1]).float()

    def append(self, tokens: Sequence[int]) -> None:
        """Adds one token to each row."""
        for row, token in zip(self.rows, tokens, strict=True):
            row.append(token)

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all rows but these, which are counted as they are now."""
        self.rows = [self.rows[row] for row in rows]
        self.starts = [self.starts[row] for row in rows]
        if self.cache is not None:
            self.cache = self.cache.take(torch.tensor(rows, device=self.device))

    def _read(self, texts: list[list[int]]) -> Tensor:
        """Fills a new cache with texts, the same ones once; hidden states, the newest last.  # (B, T, C)"""
        different = list(dict.fromkeys(map(tuple, texts)))
        width = max(map(len, different))
        lengths = torch.tensor([len(text) for text in different], device=self.device)
        padding = None if bool((lengths == width).all()) else width - lengths
        idx = torch.tensor([[0] * (width - len(text)) + list(text) for text in different], device=self.device)
        cache = self.model.new_cache(len(different), self.slots, padding)
        hidden = self.model.hidden(idx, cache)
        if len(different) < len(texts):
            place = {text: row for row, text in enumerate(different)}
            rows = torch.tensor([place[tuple(text)] for text in texts], device=self.device)
            cache, hidden = cache.take(rows), hidden[rows]
        self.cache = cache
        return hidden

    def _read_again(self, moved: list[int], cache: KVCache) -> None:
        """Puts what rows see since their windows moved into the cache, all but the newest token.

        A window moves when it is full, so these texts are of one length, and shorter than what the cache holds.
        """
        texts = [self.rows[row][self.starts[row] : -1] for row in moved]
        read = self.model.new_cache(len(texts), len(texts[0]))
        self.model.hidden(torch.tensor(texts, dtype=torch.int64, device=self.device), read)
        cache.replace(torch.tensor(moved, device=self.device), read)
