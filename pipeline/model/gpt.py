"""GPT-2's network, with the names that nanoGPT made familiar (https://github.com/karpathy/nanoGPT, model.py).

    tokens -> wte + wpe -> n_layer x (attention, MLP) -> ln_f -> lm_head -> logits

The choices beside GPT-2's live where they act: `attention.py`, `mlp.py`, `norms.py`, `positions.py`; norm placement and
initialisation here. Knows nothing of files, data or training.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.model.attention import CausalSelfAttention
from pipeline.model.cache import KVCache, LayerCache
from pipeline.model.config import GPTConfig
from pipeline.model.mlp import MLP
from pipeline.model.norms import NORMS
from pipeline.model.positions import POSITIONS, Rotation

IGNORED = -1  # a target that does not count


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream; norms on their inputs, as in GPT-2."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = NORMS[config.norm](config.n_embd, config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = NORMS[config.norm](config.n_embd, config.bias)
        self.mlp = MLP(config)
        self.activation_checkpointing = False  # how training is run, not what the model is: so not of the config

    def forward(self, x: Tensor, mask: Tensor | None, rotation: Rotation | None, cache: LayerCache | None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        if self.activation_checkpointing and self.training:
            # Keeps the inputs alone, and computes all else again when the gradient is due, with the same dropout.
            return checkpoint(self.compute, x, mask, rotation, cache, use_reentrant=False)
        return self.compute(x, mask, rotation, cache)

    def compute(self, x: Tensor, mask: Tensor | None, rotation: Rotation | None, cache: LayerCache | None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.attn(self.ln_1(x), mask, rotation, cache)
        return x + self.mlp(self.ln_2(x))


class PostNormBlock(Block):
    """Norms on the sums, as in the first Transformer and GPT-1 (arXiv 1706.03762)."""

    def compute(self, x: Tensor, mask: Tensor | None, rotation: Rotation | None, cache: LayerCache | None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = self.ln_1(x + self.attn(x, mask, rotation, cache))
        return self.ln_2(x + self.mlp(x))


BLOCKS: dict[str, type[Block]] = {"pre": Block, "post": PostNormBlock}


class Transformer(nn.Module):
    """All but the head: token ids to hidden states."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = POSITIONS[config.position](config)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(BLOCKS[config.norm_placement](config) for _ in range(config.n_layer))
        # With post-norm, the last block already ends in a norm, and GPT-1 had no other.
        pre = config.norm_placement == "pre"
        self.ln_f = NORMS[config.norm](config.n_embd, config.bias) if pre else nn.Identity()

    def forward(self, idx: Tensor, cache: KVCache | None) -> Tensor:
        """(B, T) int64 -> (B, T, C)."""
        if cache is None:
            positions, mask = torch.arange(idx.size(1), device=idx.device), None
        else:
            positions, mask = cache.place(idx)
        keys = idx.size(1) if cache is None else cache.length + idx.size(1)

        x = self.drop(self.wpe.embed(self.wte(idx), positions))  # (B, T, C)
        rotation = self.wpe.rotation(positions)
        mask = self.wpe.scores_mask(mask, idx.size(1), keys)
        for layer, block in enumerate(self.h):
            x = block(x, mask, rotation, None if cache is None else cache.layers[layer])
        return self.ln_f(x)


class GPT(nn.Module):
    """A GPT language model. Its weights depend on the config and on torch's random state alone."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_head:
            self.lm_head.weight = self.transformer.wte.weight
        self.init_weights()

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Token ids idx (B, T) int64 -> (logits, loss).

        With targets (B, T) int64: logits (B, T, V), and the mean cross entropy in nats over targets other than -1.
        Without: logits of the last position alone, (B, 1, V), and None.
        """
        x = self.hidden(idx)  # (B, T, C)
        if targets is None:
            return self.logits(x[:, -1:]), None
        logits = self.logits(x)  # (B, T, V)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)
        return logits, loss

    def hidden(self, idx: Tensor, cache: KVCache | None = None) -> Tensor:
        """Token ids idx (B, T) int64 -> (B, T, C), after the final norm.

        With a cache, idx are the tokens that follow those in it; they are added to it. Raises ValueError past the
        context limit, or past the cache's slots.
        """
        limit, seen = self.config.context_limit, 0 if cache is None else cache.length
        if limit is not None and seen + idx.size(1) > limit:
            raise ValueError(f"{seen + idx.size(1)} tokens exceed the context of {limit} (block_size)")
        return self.transformer(idx, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., V): -inf, so probability zero, for the padding of the vocabulary."""
        logits = self.lm_head(hidden)
        if self.config.vocab_size > self.config.text_vocab_size:
            logits[..., self.config.text_vocab_size :] = -torch.inf
        return logits

    def new_cache(self, batch: int, slots: int, padding: Tensor | None = None) -> KVCache:
        """An empty cache for `batch` rows of at most `slots` tokens; `padding` (batch,): see `cache.py`."""
        return KVCache([LayerCache(slots) for _ in range(self.config.n_layer)], batch, slots, padding)

    @torch.no_grad()
    def init_weights(self, seed: int | None = None) -> None:
        """Draws all weights anew, as GPT-2 does and `config.init` says; from torch's random state, or from `seed`."""
        generator = None if seed is None else torch.Generator(self.lm_head.weight.device).manual_seed(seed)
        residual_std = {"scaled": 0.02 / (2 * self.config.n_layer) ** 0.5, "flat": 0.02, "zero": 0.0}[self.config.init]
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:  # biases, and the gains of norms
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                parameter.normal_(0.0, residual_std if name.endswith("c_proj.weight") else 0.02, generator=generator)

    def crop_block_size(self, block_size: int) -> None:
        """Makes the context shorter: the same function on shorter sequences. Raises ValueError to lengthen it."""
        if block_size > self.config.block_size:
            raise ValueError(f"block_size ({block_size}) exceeds the model's ({self.config.block_size})")
        self.transformer.wpe.crop(block_size)
        self.config = self.config.changed(block_size=block_size)
