"""GPT-2's network and its variants, in one file, with nanoGPT's names (https://github.com/karpathy/nanoGPT, model.py).

    tokens -> wte + wpe -> n_layer x (attention, MLP) -> ln_f -> lm_head -> logits

Read from top to bottom: norms, attention, MLP, block, transformer, GPT. Position schemes are in `positions.py`, the
key/value cache is in `kv_cache.py`. Nothing here depends on files, data or training.

Letters in shapes: B sequences, T tokens in each, C = n_embd, H query heads, K key/value heads, D = C / H, F hidden
width of the MLP, V vocabulary, S keys (T, or more with a cache).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.model.config import GPTConfig
from pipeline.model.kv_cache import KVCache, LayerCache
from pipeline.model.positions import POSITIONS, Rotation, rotate

EPSILON = 1e-5  # GPT-2's layer_norm_epsilon; RMSNorm uses it too
IGNORE_INDEX = -1  # targets with this value do not count in the loss
VECTORS = {"weight": 1.0, "bias": 0.0, "x_scale": 1.0, "x0_scale": 0.0, "value_mix": 0.5}  # initial values
EAGER_KEYS = 256  # python -m benchmarks.model --block-size N --only attention, on two cores


class RMSNorm(nn.RMSNorm):
    """RMSNorm (arXiv 1910.07467): divides by the root mean square over the last dimension; no bias."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> the same, in the dtype of the gain: float32 under autocast, as nn.LayerNorm."""
        return super().forward(x.float() if self.weight is None else x.type_as(self.weight))


def build_norm(config: GPTConfig, width: int) -> nn.Module:
    """The norm that `config.norm` names, over the last dimension."""
    if config.norm == "layernorm":
        return nn.LayerNorm(width, eps=EPSILON, bias=config.bias)
    return RMSNorm(width, eps=EPSILON, elementwise_affine=config.norm == "rmsnorm")


# The attention mask is the same in every layer. With T queries, the last T of S keys, it is one of:
#   None                          causal: a query sees itself and every key before it
#   (T, S) or (B, 1, T, S) bool   a query sees the keys that are True
#   (1 or B, H, T, S) float       added to the scores (ALiBi); -inf hides a key


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """PyTorch's fused attention: q (B, H, T, D), k and v (B, K, S, D) -> (B, H, T, D). Never stores (T, S) scores."""
    is_causal = mask is None and q.size(2) > 1  # a single query is the newest token: it sees every key
    if mask is not None and mask.is_floating_point():
        # CUDA kernels need the dtype of the queries. In bfloat16 this rounds ALiBi's bias, by at most 2^-9 of itself.
        mask = mask.to(q.dtype)
    grouped = q.size(1) != k.size(1)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=is_causal, enable_gqa=grouped)


def eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """The same as `sdpa`, written out as matrix products and a softmax."""
    groups = q.size(1) // k.size(1)
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)  # (B, H, S, D)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, H, T, S)
    if mask is None:
        T, S = scores.shape[-2:]
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = F.dropout(F.softmax(scores, dim=-1), dropout)
    return weights.type_as(v) @ v  # (B, H, T, D)


def fastest(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """`eager` on a CPU with at most EAGER_KEYS keys, where it is faster; else `sdpa`."""
    attend = eager if q.device.type == "cpu" and k.size(2) <= EAGER_KEYS else sdpa
    return attend(q, k, v, mask, dropout)


FirstValues = tuple[Tensor, Tensor]  # the values (B, K, T, D) of the first block, and their weight in another block

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]
ATTENTION: dict[str, Attention] = {"auto": fastest, "sdpa": sdpa, "eager": eager}


class CausalSelfAttention(nn.Module):
    """Multi-head causal self-attention; grouped-query attention where n_kv_head is less than n_head."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head, self.kv_heads, self.head_size = config.n_head, config.kv_heads, config.head_size
        # queries, keys and values in one matrix product
        self.c_attn = nn.Linear(config.n_embd, config.n_embd + 2 * self.kv_heads * self.head_size, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.scale = config.attention_scale
        self.value_residual = config.value_residual
        self.qk_norm = config.qk_norm
        if self.qk_norm:
            self.q_norm = build_norm(config, self.head_size)
            self.k_norm = build_norm(config, self.head_size)
        self.attend = fastest  # set by the trainer: it does not change the function
        self.dropout = config.dropout  # of the attention weights
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        first: FirstValues | None,
        mask: Tensor | None,
        rotation: Rotation | None,
        cache: LayerCache | None,
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, T, C) -> (B, T, C), and with value_residual the first block's values (B, K, T, D).

        `first`: to mix into the values; `rotation`: RoPE's cosines and sines, None for other position schemes.
        """
        B, T, C = x.size()
        kv_width = self.kv_heads * self.head_size
        q, k, v = self.c_attn(x).split((C, kv_width, kv_width), dim=-1)
        q = q.view(B, T, self.n_head, self.head_size).transpose(1, 2)  # (B, H, T, D)
        k = k.view(B, T, self.kv_heads, self.head_size).transpose(1, 2)  # (B, K, T, D)
        v = v.view(B, T, self.kv_heads, self.head_size).transpose(1, 2)  # (B, K, T, D)
        values = None
        if first is not None:
            first_values, weight = first
            v = (1 - weight) * v + weight * first_values
        elif self.value_residual:
            values = v.contiguous()  # FSDP wants no view
        if self.qk_norm:
            q, k = self.q_norm(q).type_as(v), self.k_norm(k).type_as(v)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if self.scale is not None:
            q = q * (self.scale * math.sqrt(self.head_size))  # the kernels divide by sqrt(D)
        if cache is not None:
            k, v = cache.append(k, v)  # (B, K, S, D): those of earlier tokens too
        y = self.attend(q, k, v, mask, self.dropout if self.training else 0.0)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, C)  # concatenates the heads
        return self.resid_dropout(self.c_proj(y)), values


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)² (Primer, arXiv 2109.08668)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": partial(F.gelu, approximate="tanh"),  # GPT-2's
    "gelu": F.gelu,
    "relu": F.relu,
    "relu_squared": relu_squared,
    "swiglu": F.silu,  # of the gate
    "geglu": F.gelu,  # of the gate
}


class MLP(nn.Module):
    """Two matrices with an activation between them. A gated MLP (arXiv 2002.05202) multiplies by an activated gate."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.gated = config.gated
        # the gate and the value of a gated MLP in one matrix product
        self.c_fc = nn.Linear(config.n_embd, config.mlp_width * (2 if self.gated else 1), bias=config.bias)
        self.c_proj = nn.Linear(config.mlp_width, config.n_embd, bias=config.bias)
        self.activation = ACTIVATIONS[config.mlp]
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = self.c_fc(x)  # (B, T, F), or (B, T, 2F) if gated
        if self.gated:
            gate, value = x.chunk(2, dim=-1)
            x = self.activation(gate) * value  # (B, T, F)
        else:
            x = self.activation(x)
        return self.dropout(self.c_proj(x))  # (B, T, C)


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm_placement == "pre"
        self.ln_1 = build_norm(config, config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = build_norm(config, config.n_embd)
        self.mlp = MLP(config)
        self.activation_checkpointing = False  # set by the trainer: it does not change the function

    def forward(self, x: Tensor, *attention_inputs: Any) -> tuple[Tensor, Tensor | None]:
        """(B, T, C) -> the same, and what the attention returns beside; its other inputs follow x."""
        if self.activation_checkpointing and self.training:
            # Keeps only the inputs. The backward pass computes the rest again, with the same dropout masks.
            return checkpoint(self.compute, x, *attention_inputs, use_reentrant=False)
        return self.compute(x, *attention_inputs)

    def compute(self, x: Tensor, *attention_inputs: Any) -> tuple[Tensor, Tensor | None]:
        """As `forward`."""
        if self.pre_norm:  # GPT-2
            y, values = self.attn(self.ln_1(x), *attention_inputs)
            x = x + y
            x = x + self.mlp(self.ln_2(x))
        else:  # GPT-1 and the first Transformer (arXiv 1706.03762)
            y, values = self.attn(x, *attention_inputs)
            x = self.ln_1(x + y)
            x = self.ln_2(x + self.mlp(x))
        return x, values


class Transformer(nn.Module):
    """Everything but the head: token ids to hidden states."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = POSITIONS[config.position](config)
        self.embedding_norm = build_norm(config, config.n_embd) if config.embedding_norm else nn.Identity()
        self.drop = nn.Dropout(config.dropout)
        self.embedding_skip = config.embedding_skip
        if self.embedding_skip:  # each block's input: x_scale * x + x0_scale * embeddings
            self.x_scale = nn.Parameter(torch.empty(config.n_layer))
            self.x0_scale = nn.Parameter(torch.empty(config.n_layer))
        if config.value_residual:  # weights of the first block's values in each block; the first does not use its own
            self.value_mix = nn.Parameter(torch.empty(config.n_layer))
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        # with post-norm, the last block already ends in a norm
        self.ln_f = build_norm(config, config.n_embd) if config.norm_placement == "pre" else nn.Identity()

    def forward(self, idx: Tensor, cache: KVCache | None, documents: Tensor | None) -> Tensor:
        """(B, T) int64 -> (B, T, C)."""
        T = idx.size(1)
        positions: Tensor
        mask: Tensor | None
        if documents is not None:  # each document as if it were alone
            visible = (documents[:, :, None] == documents[:, None, :]).tril()  # (B, T, T)
            positions, mask, S = visible.sum(dim=-1) - 1, visible[:, None], T
        elif cache is None:
            positions, mask, S = torch.arange(T, device=idx.device), None, T
        else:
            positions, mask = cache.place(idx)
            S = cache.length + T
        x = x0 = self.drop(self.embedding_norm(self.wpe.embed(self.wte(idx), positions)))  # (B, T, C)
        rotation = self.wpe.rotation(positions)
        mask = self.wpe.scores_mask(mask, T, S)
        first: Tensor | None = None  # the values of the first block
        for i, block in enumerate(self.h):
            if self.embedding_skip:
                x = self.x_scale[i] * x + self.x0_scale[i] * x0
            mixed_in = None if first is None else (first, self.value_mix[i])
            x, values = block(x, mixed_in, mask, rotation, None if cache is None else cache.layers[i])
            first = values if i == 0 else first
        return self.ln_f(x)


class GPT(nn.Module):
    """A GPT language model. Its initial weights depend only on the config and on torch's random state."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.tie_weights()
        self.init_weights()

    def forward(self, idx: Tensor, targets: Tensor | None = None, documents: Tensor | None = None) -> Tensor:
        """Token ids idx (B, T) int64 -> the loss, or the next token's logits.

        With targets (B, T) int64: the mean cross entropy in nats over targets other than -1, a scalar. The logits are
        not returned, so that a compiled graph need not hold them or their gradient. Without: logits (B, 1, V) of the
        last position. `documents`: as for `hidden`.
        """
        x = self.hidden(idx, documents=documents)  # (B, T, C)
        if targets is None:
            return self.logits(x[:, -1:])
        logits = self.lm_head(x)[..., : self.config.text_vocab_size]  # a view without padding: no copy to mask it
        logits = self.softcap(logits.flatten(0, 1).float())
        return F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE_INDEX)

    def hidden(self, idx: Tensor, cache: KVCache | None = None, documents: Tensor | None = None) -> Tensor:
        """Token ids idx (B, T) int64 -> (B, T, C), after the final norm.

        With a cache, idx are the tokens after those in the cache; they are added to it. `documents` (B, T): the number
        of each token's document. Tokens then attend only to their own document, in which positions count from 0.
        Raises ValueError if the sequence exceeds the context limit or the slots of the cache.
        """
        length = idx.size(1) + (0 if cache is None else cache.length)
        limit = self.config.context_limit
        if limit is not None and length > limit:
            raise ValueError(f"{length} tokens exceed the context of {limit} (block_size)")
        return self.transformer(idx, cache, documents)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., V). -inf, that is probability zero, for the padding of the vocabulary."""
        logits = self.softcap(self.lm_head(hidden))
        if self.config.vocab_size > self.config.text_vocab_size:
            logits[..., self.config.text_vocab_size :] = -torch.inf
        return logits

    def softcap(self, logits: Tensor) -> Tensor:
        """The logits, bounded and in float32 where `config.logit_softcap` says so; the same shape."""
        cap = self.config.logit_softcap
        return cap * torch.tanh(logits.float() / cap) if cap else logits

    def new_cache(self, batch: int, slots: int, padding: Tensor | None = None) -> KVCache:
        """An empty cache for `batch` rows of at most `slots` tokens; `padding` (batch,): see `kv_cache.py`."""
        return KVCache([LayerCache(slots) for _ in range(self.config.n_layer)], batch, slots, padding)

    def tie_weights(self) -> None:
        """Makes a tied head the embedding itself: again where each has been replaced, as on another kind of device."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.transformer.wte.weight

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draws all weights as `config.init` says, from torch's random state."""
        scaled = 0.02 / (2 * self.config.n_layer) ** 0.5
        residual_std = {"scaled": scaled, "normal": 0.02, "zero": 0.0}[self.config.init]
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(VECTORS[name.rpartition(".")[2]])
            elif self.config.init == "zero" and name == "lm_head.weight":
                parameter.zero_()
            else:
                parameter.normal_(0.0, residual_std if name.endswith("c_proj.weight") else 0.02)

    def stored_weights(self) -> dict[str, Tensor]:
        """The tensors to save, by name: float32, on the CPU; a tied head is the embedding and not repeated."""
        weights = {name: tensor.detach().float().cpu().contiguous() for name, tensor in self.state_dict().items()}
        if self.config.tie_embeddings:
            del weights["lm_head.weight"]
        return weights

    def crop_block_size(self, block_size: int) -> None:
        """Shortens the context; shorter sequences keep their logits. Raises ValueError if it would get longer."""
        if block_size > self.config.block_size:
            raise ValueError(f"block_size ({block_size}) exceeds the model's ({self.config.block_size})")
        self.transformer.wpe.crop(block_size)
        self.config = self.config.changed(block_size=block_size)
