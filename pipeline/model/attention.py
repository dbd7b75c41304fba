"""Causal self-attention, and the two ways to compute it. A new one goes into ATTENTION and `Architecture.attention`.

What a query may see is given by `mask`, the same in every layer:
    None                          itself and everything before it
    (T, S) or (B, 1, T, S) bool   the keys that are True
    (1 or B, H, T, S) float       all, with this added to the score; -inf hides a key (alibi)
with T queries, the newest of S >= T keys. Where the queries are bfloat16, sdpa rounds what is added to it too, as
autocast does in training: by at most 2^-9 of itself, so a key whose weight alibi divides by e^4 is off by under 1 %.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.cache import LayerCache
from pipeline.model.config import GPTConfig
from pipeline.model.norms import NORMS
from pipeline.model.positions import Rotation, rotate


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """PyTorch's fused attention: q (B, H, T, D), k and v (B, K, S, D) -> (B, H, T, D). Never holds a (T, S) matrix."""
    causal = mask is None and q.size(2) > 1  # one query with no mask is the newest: it sees every key
    grouped = q.size(1) != k.size(1)
    if mask is not None and mask.is_floating_point():
        mask = mask.to(q.dtype)  # of another dtype, CUDA's kernels refuse it or read its bits wrongly
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal, enable_gqa=grouped)


def manual(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """The same, written out: the readable reference. Shapes as for `sdpa`."""
    groups = q.size(1) // k.size(1)
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)  # (B, H, S, D)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, H, T, S)
    if mask is None:
        queries, keys = scores.shape[-2:]
        mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = F.dropout(F.softmax(scores, dim=-1), dropout)
    return weights.type_as(v) @ v  # (B, H, T, D)


ATTENTION: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]] = {
    "sdpa": sdpa,
    "manual": manual,
}


class CausalSelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself and its past; with fewer key/value heads where grouped."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head, self.kv_heads, self.head_size = config.n_head, config.kv_heads, config.head_size
        width, kv_width = config.n_embd, self.kv_heads * self.head_size
        self.c_attn = nn.Linear(width, width + 2 * kv_width, bias=config.bias)  # queries, keys, values in one product
        self.c_proj = nn.Linear(width, width, bias=config.bias)
        self.qk_norm = config.qk_norm
        if self.qk_norm:
            self.q_norm = NORMS[config.norm](self.head_size, config.bias)
            self.k_norm = NORMS[config.norm](self.head_size, config.bias)
        self.attend = ATTENTION[config.attention]
        self.dropout = config.dropout
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None, rotation: Rotation | None, cache: LayerCache | None) -> Tensor:
        """x (B, T, C) -> (B, T, C). `rotation`: of queries and keys (rope), or None."""
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split((C, *[self.kv_heads * self.head_size] * 2), dim=-1)
        q = q.view(B, T, self.n_head, self.head_size).transpose(1, 2)  # (B, H, T, D)
        k = k.view(B, T, self.kv_heads, self.head_size).transpose(1, 2)  # (B, K, T, D)
        v = v.view(B, T, self.kv_heads, self.head_size).transpose(1, 2)  # (B, K, T, D)
        if self.qk_norm:
            q, k = self.q_norm(q).type_as(v), self.k_norm(k).type_as(v)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None:
            k, v = cache.append(k, v)  # (B, K, S, D): all keys and values so far
        y = self.attend(q, k, v, mask, self.dropout if self.training else 0.0)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, C)  # heads side by side
        return self.resid_dropout(self.c_proj(y))
