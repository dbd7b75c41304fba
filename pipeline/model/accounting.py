"""Parameters, FLOPs and memory of a model by formula, and the peak FLOP/s of GPUs. No torch: nothing is built.

`tests/model/test_accounting.py` compares each formula with the built model.
"""

import re
from dataclasses import dataclass

from pipeline.model.config import GPTConfig

FLOAT32 = 4  # bytes
BFLOAT16 = 2

# Peak FLOP/s of dense bfloat16 matrix products (float16 where a GPU has no bfloat16: V100, T4), from NVIDIA's data
# sheets. Where a sheet gives the figure "with sparsity", this is half of it. The first entry that matches is used.
GPU_PEAKS = {
    "B200": 2250e12,  # Blackwell architecture technical brief, HGX B200: 2.25 PFLOP/s dense per GPU
    "H200": 989e12,  # H200 SXM data sheet: 1,979 with sparsity
    "H100 PCIe": 756e12,  # H100 data sheet (2022): 1,513 with sparsity
    "H100 NVL": 835e12,  # H100 data sheet (2024): 1,671 with sparsity
    "H100": 989e12,  # H100 data sheet, SXM: 1,979 with sparsity
    "A100": 312e12,  # A100 data sheet: the same for PCIe and SXM, 40 and 80 GB
    "L40S": 362e12,  # L40S data sheet: 362.05, 733 with sparsity
    "L40": 181e12,  # L40 data sheet: 181.05, 362.1 with sparsity
    "L4": 121e12,  # L4 data sheet: 242 with sparsity
    "A10G": 70e12,  # A10G data sheet: 70, 140 with sparsity
    "RTX 4090": 165e12,  # Ada GPU architecture white paper, appendix A: 165.2 with float32 accumulation
    "RTX 3090": 71e12,  # Ampere GA102 white paper, appendix A: 71 with float32 accumulation
    "V100": 125e12,  # V100 data sheet, SXM2: float16
    "T4": 65e12,  # T4 data sheet: float16
}


def gpu_peak(name: str) -> float | None:
    """Peak FLOP/s of a GPU by the device name that CUDA reports, `NVIDIA H100 80GB HBM3`; None if it is not listed."""
    return next((peak for key, peak in GPU_PEAKS.items() if re.search(rf"\b{key}\b", name)), None)


@dataclass(frozen=True)
class Parameters:
    """Parameters by component. All blocks are alike; the norms of a block include QK-norm."""

    token_embedding: int
    position_embedding: int
    attention_per_block: int
    mlp_per_block: int
    norms_per_block: int
    skips_per_block: int
    """Weights of the embeddings and of the first block's values."""
    blocks: int
    """Number of blocks."""
    outer_norms: int
    """After the embeddings and after the blocks."""
    head: int
    """0 if tied to the token embedding."""

    @property
    def per_block(self) -> int:
        """Parameters of one block."""
        return self.attention_per_block + self.mlp_per_block + self.norms_per_block + self.skips_per_block

    @property
    def total(self) -> int:
        """All parameters; a tied matrix counts once."""
        return (
            self.token_embedding + self.position_embedding + self.blocks * self.per_block + self.outer_norms + self.head
        )

    @property
    def without_embeddings(self) -> int:
        """All except token and position embeddings. An untied head counts."""
        return self.total - self.token_embedding - self.position_embedding

    @property
    def multiplied(self) -> int:
        """Parameters in matrix products: N in "6N FLOPs per token".

        An embedding lookup multiplies nothing, but a tied embedding is also the head.
        """
        tied = self.head == 0
        return self.total - self.position_embedding - (0 if tied else self.token_embedding)


def parameters(config: GPTConfig) -> Parameters:
    """Parameters of a model by component."""
    C, D, F, V = config.n_embd, config.head_size, config.mlp_width, config.vocab_size
    qkv, fc = C + 2 * config.kv_heads * D, F * (2 if config.gated else 1)
    b = int(config.bias)
    per_dimension = {"layernorm": 1 + b, "rmsnorm": 1, "rmsnorm_gainless": 0}[config.norm]
    pre_norm = config.norm_placement == "pre"
    return Parameters(
        token_embedding=V * C,
        position_embedding=config.block_size * C if config.position == "learned" else 0,
        attention_per_block=(C + b) * qkv + (C + b) * C,
        mlp_per_block=(C + b) * fc + (F + b) * C,
        norms_per_block=per_dimension * (2 * C + (2 * D if config.qk_norm else 0)),
        skips_per_block=2 * config.embedding_skip + config.value_residual,
        blocks=config.n_layer,
        outer_norms=per_dimension * C * (pre_norm + config.embedding_norm),
        head=0 if config.tie_embeddings else V * C,
    )


def flops_per_token(config: GPTConfig) -> int:
    """FLOPs per trained token, forward and backward, in sequences of block_size tokens.

    6N + 12·n_layer·n_embd·block_size, as PaLM counts (arXiv 2204.02311, appendix B): two FLOPs per multiply-add, the
    backward pass costs twice the forward pass, attention is counted as if it were not causal. Grouped-query attention
    shrinks N only.
    """
    return 6 * parameters(config).multiplied + 12 * config.n_layer * config.n_embd * config.block_size


@dataclass(frozen=True)
class Memory:
    """Peak bytes on one rank during training."""

    weights: int
    """float32, plus autocast's bfloat16 copies of matrices. With FSDP: this rank's shard and the gathered blocks."""
    gradients: int
    optimizer: int
    activations: int
    """Kept by the forward pass for the backward pass, for one micro-batch, without torch.compile."""
    probes: int = 0
    """With FSDP, the whole model, which probes run on between steps, without gradients and activations."""

    @property
    def total(self) -> int:
        """Bytes at the peak. A lower bound: workspaces of kernels and the allocator's overhead are not counted."""
        return self.weights + self.optimizer + max(self.gradients + self.activations, self.probes)


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
    """Memory of training with micro-batches of `sequences` full sequences; `optimizer`: as train.optimizer.

    `recompute`: with activation checkpointing. `shards`: ranks that share the model (FSDP); 1: each rank holds all of
    it. With FSDP a rank gathers two blocks at a time (the current one and the next) and everything outside the blocks.
    If a step `accumulates` several micro-batches, gradients stay unsharded until the last.
    """
    counts = parameters(config)
    # AdamW keeps two moments of each parameter, Muon one of the hidden matrices.
    states = 2 * counts.total - (hidden_matrices(config) if optimizer != "adamw" else 0)
    copied = counts.multiplied - (counts.blocks - 1) * counts.per_block if recompute else counts.multiplied
    gathered = counts.total - max(counts.blocks - 2, 0) * counts.per_block if shards > 1 else 0
    return Memory(
        weights=FLOAT32 * (counts.total // shards + gathered) + BFLOAT16 * copied * bfloat16,
        gradients=FLOAT32 * (counts.total if accumulates else counts.total // shards + gathered),
        optimizer=FLOAT32 * states // shards,
        activations=sequences * config.block_size * activation_bytes_per_token(config, bfloat16, recompute),
        probes=FLOAT32 * counts.total - (FLOAT32 - BFLOAT16) * bfloat16 * hidden_matrices(config) if shards > 1 else 0,
    )


def hidden_matrices(config: GPTConfig) -> int:
    """Parameters in the matrices of the blocks, which Muon updates."""
    no_bias = config.changed(bias=False)
    counts = parameters(no_bias)
    return counts.blocks * (counts.attention_per_block + counts.mlp_per_block)


def activation_bytes_per_token(config: GPTConfig, bfloat16: bool, recompute: bool = False) -> int:
    """Bytes per token kept for the backward pass, with fused attention, without torch.compile and dropout.

    With `recompute`: the input of each block, plus the larger of one block's activations and those after the blocks.

    After Korthikanti et al. (arXiv 2205.05198, section 4.1), with this model's dtypes: under autocast the residual
    stream and the statistics of norms are float32, inputs of matrix products bfloat16. Exact for GPT-2 and gated MLPs;
    other choices keep a few more copies, which depend on the kernel.
    """
    C, F, V, H = config.n_embd, config.mlp_width, config.vocab_size, config.n_head
    width = BFLOAT16 if bfloat16 else FLOAT32
    kv = config.kv_heads * config.head_size
    norm = FLOAT32 * C + width * C + 2 * FLOAT32  # input, output in the dtype of matrix products, mean and scale
    attention = width * (C + 2 * kv) + width * C + FLOAT32 * H  # queries, keys, values; output; log-sum-exp
    if config.position == "rope" or config.qk_norm:
        attention += width * (C + kv)  # queries and keys before and after
    mlp = width * (4 if config.gated else 2) * F  # before and after the activation; gate, value and their product
    # log-softmax, and before it the softcap's tanh; token and target
    loss = FLOAT32 * V * (2 if config.logit_softcap else 1) + 2 * 8
    block = 2 * norm + attention + mlp
    if recompute:
        return config.n_layer * FLOAT32 * C + max(block, norm + loss)
    return config.n_layer * block + norm + loss


def describe(config: GPTConfig) -> str:
    """The model in one line, as `train` logs it."""
    counts = parameters(config)
    heads = f"{config.n_head} heads"
    if config.kv_heads != config.n_head:
        heads += f" ({config.kv_heads} key/value)"
    return (
        f"GPT with {config.n_layer} layers, width {config.n_embd}, {heads}, context {config.block_size:,}, vocabulary "
        f"{config.text_vocab_size:,}: {counts.total:,} parameters ({counts.without_embeddings:,} without embeddings)"
    )
