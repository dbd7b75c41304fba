"""What a configuration costs, by formula: parameters, FLOPs, bytes. No torch, so nothing need be built to know.

Tests hold each formula against the built model: `tests/model/test_accounting.py`.
"""

from dataclasses import dataclass

from pipeline.model.config import GPTConfig

FLOAT32 = 4  # bytes
BFLOAT16 = 2


@dataclass(frozen=True)
class Parameters:
    """Parameters by component. Blocks are all alike; norms include those inside attention (QK-norm)."""

    token_embedding: int
    position_embedding: int
    attention_per_block: int
    mlp_per_block: int
    norms_per_block: int
    blocks: int
    """How many blocks there are."""
    final_norm: int
    head: int
    """0 where the head is the token embedding."""

    @property
    def per_block(self) -> int:
        """Parameters of one block."""
        return self.attention_per_block + self.mlp_per_block + self.norms_per_block

    @property
    def total(self) -> int:
        """All parameters, each once."""
        return (
            self.token_embedding + self.position_embedding + self.blocks * self.per_block + self.final_norm + self.head
        )

    @property
    def without_embeddings(self) -> int:
        """All but the token and position embeddings; a head of its own counts."""
        return self.total - self.token_embedding - self.position_embedding

    @property
    def multiplied(self) -> int:
        """Parameters that every token is multiplied with: N in "6N FLOPs per token".

        Looking a row up in a table multiplies nothing; but a tied embedding is multiplied with as the head.
        """
        tied = self.head == 0
        return self.total - self.position_embedding - (0 if tied else self.token_embedding)


def parameters(config: GPTConfig) -> Parameters:
    """Parameters of a model by component, equal to the built model's."""
    C, D, F, V = config.n_embd, config.head_size, config.mlp_width, config.vocab_size
    qkv, fc = C + 2 * config.kv_heads * D, F * (2 if config.gated else 1)
    b = int(config.bias)
    norm_bias = b if config.norm == "layernorm" else 0  # RMSNorm has none
    qk_norm = 2 * D * (1 + norm_bias) if config.qk_norm else 0
    return Parameters(
        token_embedding=V * C,
        position_embedding=config.block_size * C if config.position == "learned" else 0,
        attention_per_block=(C + b) * qkv + (C + b) * C,
        mlp_per_block=(C + b) * fc + (F + b) * C,
        norms_per_block=2 * C * (1 + norm_bias) + qk_norm,
        blocks=config.n_layer,
        final_norm=C * (1 + norm_bias) if config.norm_placement == "pre" else 0,
        head=0 if config.tie_head else V * C,
    )


def flops_per_token(config: GPTConfig, length: int | None = None) -> int:
    """FLOPs per token of training, forward and backward, in sequences of `length` tokens (default: block_size).

    6N + 12·n_layer·n_embd·T, as PaLM counts (arXiv 2204.02311, appendix B): two per multiply-add, the backward pass
    twice the forward; attention scores as if not causal. Fewer key/value heads shrink N, not the second term: every
    query head still meets every key.
    """
    length = config.block_size if length is None else length
    return 6 * parameters(config).multiplied + 12 * config.n_layer * config.n_embd * length


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank during training, where they are most."""

    weights: int
    """float32, plus the bfloat16 copies of matrices that autocast makes; of a sharded model, also what is gathered."""
    gradients: int
    optimizer: int
    activations: int
    """What the forward pass keeps for the backward pass, for one micro-batch, without torch.compile."""

    @property
    def total(self) -> int:
        """Bytes altogether. An estimate from below: buffers of kernels and of the allocator come on top."""
        return self.weights + self.gradients + self.optimizer + self.activations


def memory(
    config: GPTConfig,
    sequences: int,
    bfloat16: bool,
    optimizer: str,
    *,
    recompute: bool = False,
    shards: int = 1,
    accumulates: bool = False,
) -> Memory:
    """Bytes of training with micro-batches of `sequences` full sequences; `optimizer`: adamw or muon.

    `recompute`: with activation checkpointing. `shards`: ranks that a model is shared out to (FSDP); 1: each holds it.
    Then a rank gathers the block that it computes and the next, and holds whole what is in no block; and while a step
    `accumulates` several micro-batches, all gradients.
    """
    counts = parameters(config)
    # AdamW keeps two moments of each parameter; Muon one, of the hidden matrices.
    states = 2 * counts.total - (hidden_matrices(config) if optimizer == "muon" else 0)
    copied = counts.multiplied - (counts.blocks - 1) * counts.per_block if recompute else counts.multiplied
    gathered = counts.total - max(counts.blocks - 2, 0) * counts.per_block if shards > 1 else 0
    return Memory(
        weights=FLOAT32 * (counts.total // shards + gathered) + BFLOAT16 * copied * bfloat16,
        gradients=FLOAT32 * (counts.total if accumulates else counts.total // shards + gathered),
        optimizer=FLOAT32 * states // shards,
        activations=sequences * config.block_size * activation_bytes_per_token(config, bfloat16, recompute),
    )


def hidden_matrices(config: GPTConfig) -> int:
    """Parameters in the matrices of the blocks: those that Muon updates."""
    no_bias = config.changed(bias=False)
    counts = parameters(no_bias)
    return counts.blocks * (counts.attention_per_block + counts.mlp_per_block)


def activation_bytes_per_token(config: GPTConfig, bfloat16: bool, recompute: bool = False) -> int:
    """Bytes kept for the backward pass per token, without torch.compile and without dropout.

    With `recompute`, the input of each block, and the more of what one block keeps and what follows the blocks.

    After Korthikanti et al. (arXiv 2205.05198, section 4.1), with this model's dtypes: under autocast the residual
    stream and the norms' statistics are float32, the inputs of matrix products bfloat16. Exact for GPT-2 and for gated
    MLPs; other choices keep a few copies more, which depend on the kernel.
    """
    C, F, V, H = config.n_embd, config.mlp_width, config.vocab_size, config.n_head
    width = BFLOAT16 if bfloat16 else FLOAT32
    kv = config.kv_heads * config.head_size
    norm = FLOAT32 * C + width * C + 2 * FLOAT32  # its input; its output, as a matrix product takes it; mean and scale
    attention = width * (C + 2 * kv) + width * C + FLOAT32 * H  # queries, keys, values; output; log-sum-exp
    if config.position == "rope" or config.qk_norm:
        attention += width * (C + kv)  # queries and keys before and after
    if config.attention == "manual":
        attention += (FLOAT32 + BFLOAT16 * bfloat16) * H * config.block_size  # the softmax, and as a product takes it
    mlp = width * (4 if config.gated else 2) * F  # before and after the activation; gate, value and their product
    loss = FLOAT32 * V + width * V + 2 * 8  # log-softmax, the logits themselves, token and target
    block = 2 * norm + attention + mlp
    if recompute:
        return config.n_layer * FLOAT32 * C + max(block, norm + loss)
    return config.n_layer * block + norm + loss


def describe(config: GPTConfig) -> str:
    """The model in one line, as `train` prints it when it starts."""
    counts = parameters(config)
    heads = f"{config.n_head} heads"
    if config.kv_heads != config.n_head:
        heads += f" ({config.kv_heads} key/value)"
    return (
        f"GPT of {config.n_layer} layers x {config.n_embd} wide, {heads}, context {config.block_size:,}, vocabulary "
        f"{config.text_vocab_size:,}: {counts.total:,} parameters ({counts.without_embeddings:,} without embeddings)"
    )
