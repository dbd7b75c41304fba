"""The key/value cache: with it, generating a token costs a forward pass of one token.

Rows of different lengths share a batch with padding on the *left*, so that the newest token of every row is in the last
slot. Padding is never attended to, and positions count from the first token of a row:

    slot          0    1    2    3        padding = [0, 2]
    row 0         The  cat  sat  on       positions 0 1 2 3
    row 1         .    .    Hello ,       positions 0 0 0 1

Created by `model.new_cache`, used by `model.hidden(idx, cache)`.
"""

import torch
from torch import Tensor


class LayerCache:
    """Keys and values of one layer, (B, K, slots, D) each. The first `append` allocates them, in its dtype."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.length = 0
        self.keys = self.values = torch.empty(0)

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends k and v (B, K, T, D). Returns views of all keys and values so far, (B, K, S, D)."""
        if self.length == 0 and self.keys.numel() == 0:
            shape = (*v.shape[:2], self.slots, v.shape[3])
            self.keys, self.values = v.new_zeros(shape), v.new_zeros(shape)
        start, self.length = self.length, self.length + k.size(2)
        self.keys[:, :, start : self.length] = k
        self.values[:, :, start : self.length] = v
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def take(self, rows: Tensor, slots: int) -> "LayerCache":
        """A copy with the given rows (N,), which may repeat, and room for `slots` tokens."""
        copy = LayerCache(slots)
        copy.length = self.length
        if self.length:
            shape = (rows.numel(), self.keys.size(1), slots, self.keys.size(3))
            copy.keys, copy.values = self.keys.new_zeros(shape), self.values.new_zeros(shape)
            copy.keys[:, :, : self.length] = self.keys[rows, :, : self.length]
            copy.values[:, :, : self.length] = self.values[rows, :, : self.length]
        return copy

    def replace(self, rows: Tensor, other: "LayerCache") -> None:
        """Writes the tokens of `other` into the last slots of `rows`."""
        last = slice(self.length - other.length, self.length)
        self.keys[rows, :, last] = other.keys[:, :, : other.length]
        self.values[rows, :, last] = other.values[:, :, : other.length]

    def drop(self, slots: int) -> None:
        """Removes the first slots."""
        rest = slice(slots, self.length)
        self.length -= slots
        self.keys[:, :, : self.length] = self.keys[:, :, rest].clone()
        self.values[:, :, : self.length] = self.values[:, :, rest].clone()


class KVCache:
    """Keys and values of all layers, for `batch` rows of at most `slots` tokens, padding included."""

    def __init__(self, layers: list[LayerCache], batch: int, slots: int, padding: Tensor | None) -> None:
        """`padding` (batch,) int64: unused slots at the left of each row; None: no row has any."""
        self.layers, self.batch, self.slots, self.padding = layers, batch, slots, padding

    @property
    def length(self) -> int:
        """Slots in use, padding included."""
        return self.layers[0].length

    def take(self, rows: Tensor, slots: int | None = None) -> "KVCache":
        """A copy with the given rows: a subset, to drop finished rows, or repeated rows, to continue one several times.

        four = cache.take(torch.arange(cache.batch).repeat_interleave(4))   # four continuations of each context
        """
        slots = self.slots if slots is None else slots
        padding = None if self.padding is None else self.padding[rows]
        return KVCache([layer.take(rows, slots) for layer in self.layers], rows.numel(), slots, padding)

    def replace(self, rows: Tensor, other: "KVCache") -> None:
        """Replaces all tokens of the given rows (N,) by those of `other`: N rows without padding, not longer."""
        for layer, other_layer in zip(self.layers, other.layers, strict=True):
            layer.replace(rows, other_layer)
        padding = self.padding
        if padding is None:
            padding = torch.zeros(self.batch, dtype=torch.int64, device=rows.device)
        self.padding = padding.index_fill(0, rows, self.length - other.length)

    def trim(self) -> None:
        """Removes the slots that are padding in every row."""
        if self.padding is None:
            return
        unused = int(self.padding.min())
        for layer in self.layers:
            layer.drop(unused)
        self.padding = self.padding - unused if bool((self.padding > unused).any()) else None

    def place(self, idx: Tensor) -> tuple[Tensor, Tensor | None]:
        """Positions, (T,) or (B, T), and attention mask of the next tokens idx (B, T).

        Raises ValueError if they do not fit.
        """
        start, end = self.length, self.length + idx.size(1)
        if idx.size(0) != self.batch:
            raise ValueError(f"{idx.size(0)} rows for a cache of {self.batch}")
        if end > self.slots:
            raise ValueError(f"{end} tokens do not fit a cache of {self.slots} slots")
        key = torch.arange(end, device=idx.device)
        query = key[start:]
        if self.padding is None:
            plain = idx.size(1) == 1 or start == 0  # one query, which sees every key, or causal from the start: no mask
            return query, None if plain else key <= query[:, None]
        padding = self.padding.to(idx.device)[:, None]  # (B, 1)
        positions = (query - padding).clamp(min=0)  # (B, T)
        visible = (key <= query[:, None]) & (key >= padding)[:, None, :]  # (B, T, S)
        # Padding attends to itself: a softmax over no keys would be NaN.
        visible |= key == query[:, None]
        return positions, visible[:, None]
