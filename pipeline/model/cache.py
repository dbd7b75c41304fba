"""Keys and values of the tokens already seen, so that each new token costs one forward pass of one token.

Rows of different lengths stand in one batch with padding on the *left*, so that the newest token of every row is in the
last slot. Padding is never attended to, and positions are counted from a row's first real token:

    slot          0    1    2    3        padding = [0, 2]
    row 0         The  cat  sat  on       positions 0 1 2 3
    row 1         .    .    Hello ,       positions 0 0 0 1

Made by `model.new_cache`; read and written by `model.hidden(idx, cache)`.
"""

import torch
from torch import Tensor


class LayerCache:
    """Keys and values of one layer, (B, K, slots, D) each, allocated at once by the first write, in its dtype."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.length = 0
        self.keys = self.values = torch.empty(0)

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes k and v (B, K, T, D) behind what is there; returns all so far, (B, K, S, D), as views."""
        if self.length == 0 and self.keys.numel() == 0:
            shape = (*v.shape[:2], self.slots, v.shape[3])
            self.keys, self.values = v.new_zeros(shape), v.new_zeros(shape)
        start, self.length = self.length, self.length + k.size(2)
        self.keys[:, :, start : self.length] = k
        self.values[:, :, start : self.length] = v
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def take(self, rows: Tensor, slots: int) -> "LayerCache":
        """A copy of some rows, each as often as `rows` (N,) names it, with room for `slots` tokens."""
        copy = LayerCache(slots)
        copy.length = self.length
        if self.length:
            shape = (rows.numel(), self.keys.size(1), slots, self.keys.size(3))
            copy.keys, copy.values = self.keys.new_zeros(shape), self.values.new_zeros(shape)
            copy.keys[:, :, : self.length] = self.keys[rows, :, : self.length]
            copy.values[:, :, : self.length] = self.values[rows, :, : self.length]
        return copy


class KVCache:
    """Keys and values of all layers, for `batch` rows of at most `slots` tokens, padding included."""

    def __init__(self, layers: list[LayerCache], batch: int, slots: int, padding: Tensor | None) -> None:
        """`padding` (batch,) int64: slots at the left of each row that hold no token; None: none in any row."""
        self.layers, self.batch, self.slots, self.padding = layers, batch, slots, padding

    @property
    def length(self) -> int:
        """Slots in use, padding included."""
        return self.layers[0].length

    def take(self, rows: Tensor, slots: int | None = None) -> "KVCache":
        """A copy of some rows: fewer, to drop those that are finished; or repeated, to share a prefilled context.

        four = cache.take(torch.arange(cache.batch).repeat_interleave(4))   # four continuations of each context
        """
        slots = self.slots if slots is None else slots
        if slots < self.length:
            raise ValueError(f"{slots} slots cannot hold the {self.length} tokens of this cache")
        padding = None if self.padding is None else self.padding[rows]
        return KVCache([layer.take(rows, slots) for layer in self.layers], rows.numel(), slots, padding)

    def rewind(self, length: int) -> None:
        """Forgets all tokens from slot `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind a cache of {self.length} tokens to {length}")
        for layer in self.layers:
            layer.length = length

    def place(self, idx: Tensor) -> tuple[Tensor, Tensor | None]:
        """Where the next tokens idx (B, T) will stand: their positions, (T,) or (B, T), and their attention mask.

        Raises ValueError where they do not fit.
        """
        start, end = self.length, self.length + idx.size(1)
        if idx.size(0) != self.batch:
            raise ValueError(f"{idx.size(0)} rows for a cache of {self.batch}")
        if end > self.slots:
            raise ValueError(f"{end} tokens do not fit a cache of {self.slots} slots")
        key = torch.arange(end, device=idx.device)
        query = key[start:]
        if self.padding is None:
            alone = idx.size(1) == 1 or start == 0  # plain causal attention, or one query that sees all: no mask
            return query, None if alone else key <= query[:, None]
        padding = self.padding.to(idx.device)[:, None]  # (B, 1)
        positions = (query - padding).clamp(min=0)  # (B, T)
        visible = (key <= query[:, None]) & (key >= padding)[:, None, :]  # (B, T, S)
        # Padding sees itself: a softmax over nothing would be NaN, and NaN would spread.
        visible |= key == query[:, None]
        return positions, visible[:, None]
