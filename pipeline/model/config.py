"""The `model` section of params.yaml, and the config that is saved with a model's weights. No torch.

Architecture   the choices that define the network
ModelParams    Architecture + initial weights and vocabulary padding: the `model` section
GPTConfig      Architecture + vocabulary sizes, which the tokenizer decides: all that `GPT(config)` needs
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.config import ModelsEntry, Section

# Name -> (n_layer, n_head, n_embd) of the released GPT-2 models (https://huggingface.co/openai-community, config.json).
# All have vocabulary 50257, context 1024 and biases.
GPT2_SIZES = {
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
}
GPT2_VOCAB_SIZE = 50257

# Choices that GPT-2 does without, and model directories from before they existed.
OFF: dict[str, Any] = {
    "rope_base": 10000.0,
    "rope_share": 1.0,
    "embedding_norm": False,
    "qk_norm": False,
    "attention_scale": None,
    "value_residual": False,
    "embedding_skip": False,
    "logit_softcap": 0.0,
}


class Architecture(Section):
    """The choices that define the network."""

    block_size: int = Field(ge=1, le=2**20)
    """Context in tokens: the longest sequence the model is trained on."""

    n_layer: int = Field(ge=1, le=1024)
    """Transformer blocks."""

    n_head: int = Field(ge=1, le=1024)
    """Query heads of each attention layer. Must divide n_embd."""

    n_kv_head: int | None = Field(ge=1, le=1024)
    """Key/value heads, each shared by n_head / n_kv_head query heads (grouped-query attention, arXiv 2305.13245);
    1 is multi-query attention; null: n_head."""

    n_embd: int = Field(ge=1, le=2**16)
    """Width of the residual stream."""

    dropout: float = Field(ge=0, lt=1)
    """Dropout probability of attention weights, sublayer outputs and embeddings. 0: off, usual for pretraining."""

    bias: bool
    """Biases in every linear layer except the head, and in every LayerNorm. RMSNorm has none."""

    position: Literal["learned", "sinusoidal", "rope", "alibi"]
    """Position scheme: a learned table (GPT-2), a fixed table of sines (arXiv 1706.03762), rotary embedding of queries
    and keys (RoPE, arXiv 2104.09864), or a distance penalty on attention scores (ALiBi, arXiv 2108.12409)."""

    rope_base: float = Field(gt=1, le=1e9)
    """Base of RoPE's frequencies: pair i of n turns by rope_base^(-i/n) radians per token. 10000 in the paper."""

    rope_share: float = Field(gt=0, le=1)
    """Share of each head's dimensions that RoPE rotates; the others do not depend on position."""

    norm: Literal["layernorm", "rmsnorm", "rmsnorm_gainless"]
    """LayerNorm (GPT-2), RMSNorm (arXiv 1910.07467: no mean, no bias), or RMSNorm without a learned gain."""

    norm_placement: Literal["pre", "post"]
    """pre: norm on the input of each sublayer, and a final norm (GPT-2). post: norm after each residual addition
    (GPT-1)."""

    embedding_norm: bool
    """A norm after the embeddings, so that the first block reads a unit-sized input whatever the embeddings' scale."""

    qk_norm: bool
    """Normalizes the queries and keys of each head (arXiv 2302.05442), with the norm of model.norm."""

    attention_scale: float | None = Field(gt=0, le=100)
    """Factor of the attention scores; null: 1/sqrt(head size). With QK-norm a larger one allows sharper attention."""

    value_residual: bool
    """Mixes the values of the first block into those of every later one, with a learned weight per block
    (arXiv 2410.17897)."""

    embedding_skip: bool
    """Each block starts from a learned mix of its input and the embeddings (github.com/KellerJordan/modded-nanogpt)."""

    mlp: Literal["gelu_tanh", "gelu", "relu", "relu_squared", "swiglu", "geglu"]
    """Activation of the MLP: tanh GELU (GPT-2), erf GELU, ReLU, ReLU² (arXiv 2109.08668), or the gated SwiGLU and
    GeGLU (arXiv 2002.05202), which have a third matrix."""

    mlp_expansion: float = Field(gt=0, le=64)
    """Hidden width of the MLP / n_embd: 4.0 in GPT-2; 2.667 gives a gated MLP the same parameter count. If the product
    is not an integer, it is rounded to a multiple of 8."""

    tie_embeddings: bool
    """The output head shares its matrix with the token embedding (GPT-2)."""

    logit_softcap: float = Field(ge=0, le=1e4)
    """Bounds the logits z smoothly: logit_softcap * tanh(z / logit_softcap) (Gemma 2, arXiv 2408.00118). 0: off."""

    init: Literal["scaled", "normal", "zero"]
    """Initial weights are normal with standard deviation 0.02. The two projections into the residual stream of each
    block have 0.02/sqrt(2 n_layer) (scaled, GPT-2), 0.02 as well (normal), or are zero, like an untied head (zero)."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.n_embd % self.n_head:
            raise ValueError(f"model.n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})")
        if self.n_head % self.kv_heads:
            raise ValueError(f"model.n_head ({self.n_head}) must be a multiple of n_kv_head ({self.n_kv_head})")
        if self.position == "rope" and self.head_size % 2:
            raise ValueError(
                f"model.n_embd / n_head ({self.head_size}) must be even for position rope, which rotates pairs"
            )
        if self.position == "rope" and self.rotated_pairs == 0:
            raise ValueError(
                f"model.rope_share ({self.rope_share}) must rotate at least one pair of each head's dimensions"
            )
        if self.value_residual and self.n_layer == 1:
            raise ValueError("model.value_residual (true): needs at least 2 blocks, not model.n_layer 1")
        if self.position == "sinusoidal" and self.n_embd % 2:
            raise ValueError(f"model.n_embd ({self.n_embd}) must be even for position sinusoidal")
        return self

    @property
    def kv_heads(self) -> int:
        """Key/value heads."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.n_embd // self.n_head

    @property
    def rotated_pairs(self) -> int:
        """Pairs of a head's dimensions that RoPE rotates."""
        return round(self.rope_share * self.head_size / 2)

    @property
    def mlp_width(self) -> int:
        """Hidden width of the MLP: F in `gpt.py`. A gated MLP has a gate and a value of this width."""
        width = self.mlp_expansion * self.n_embd
        if math.isclose(width, round(width)):
            return max(1, round(width))
        return max(8, 8 * round(width / 8))

    @property
    def gated(self) -> bool:
        """Whether the MLP has a gate."""
        return self.mlp in ("swiglu", "geglu")

    @property
    def context_limit(self) -> int | None:
        """The longest sequence that the model accepts; None: any length.

        ALiBi extrapolates past the trained context. Learned and sinusoidal tables end there, and RoPE would use angles
        that were never trained. Generation continues past the limit with a sliding window.
        """
        return None if self.position == "alibi" else self.block_size


class ModelParams(Architecture):
    """The `model` section: an architecture, its initial weights, and the padding of its vocabulary."""

    section: ClassVar[str] = "model"

    init_from: ModelsEntry
    """Initial weights, a name under models/: scratch (random weights), gpt2 | gpt2-medium | gpt2-large | gpt2-xl (from
    the Hugging Face hub, at a pinned revision), or a model directory there (this pipeline's or a Hugging Face GPT-2).
    A path relative to models/ works too: ../data/base. The other keys of this section must describe that model, except
    dropout and init; block_size may be smaller than the model's."""

    vocab_multiple: int = Field(ge=1, le=2**16)
    """The vocabulary is padded with unused ids to a multiple of this, because matrix products of round sizes are
    faster. Padded ids have probability zero in training, evaluation and sampling. 1: no padding."""

    def cross_validate(self, sections: Mapping[str, Section]) -> Iterator[str]:
        """A released GPT-2 has a fixed architecture and tokenizer: yields a line for each key that differs."""
        if self.init_from not in GPT2_SIZES:
            return
        tokenizer = getattr(sections["tokenizer"], "encoding", None)
        if tokenizer != "gpt2":
            yield f"model.init_from ({self.init_from}): needs tokenizer.encoding gpt2, not {tokenizer}"
        for key, (value, released) in self.differences(gpt2_architecture(self.init_from)).items():
            yield f"model.{key} ({value}): must be {released} with init_from {self.init_from}"

    def differences(self, loaded: Architecture) -> dict[str, tuple[object, object]]:
        """The keys in which these params do not describe the weights of `loaded`: key -> (value here, value there)."""
        differing: dict[str, tuple[object, object]] = {}
        for key in Architecture.model_fields:
            if key in ("dropout", "init", "n_kv_head", "mlp_expansion"):
                continue  # free to choose, or compared below by their effect
            here, there = getattr(self, key), getattr(loaded, key)
            if here != there and not (key == "block_size" and here < there):
                differing[key] = (here, there)
        if self.kv_heads != loaded.kv_heads:
            differing["n_kv_head"] = (self.kv_heads, loaded.kv_heads)
        if "n_embd" not in differing and self.mlp_width != loaded.mlp_width:
            differing["mlp_expansion"] = (self.mlp_expansion, loaded.mlp_expansion)
        return differing


class GPTConfig(Architecture):
    """All that `GPT(config)` needs. Saved beside the weights; `model_dump` and `model_validate` round-trip as JSON."""

    section: ClassVar[str] = "model"

    vocab_size: int = Field(ge=1, le=2**24)
    """Rows of the token embedding, padding included."""

    text_vocab_size: int = Field(ge=1, le=2**24)
    """Ids of the tokenizer. Ids from here to vocab_size are padding."""

    @model_validator(mode="after")
    def _vocabulary(self) -> Self:
        if self.text_vocab_size > self.vocab_size:
            raise ValueError(f"text_vocab_size ({self.text_vocab_size}) exceeds vocab_size ({self.vocab_size})")
        return self

    @classmethod
    def from_params(cls, params: ModelParams, text_vocab_size: int) -> Self:
        """The config of a new model for a tokenizer of `text_vocab_size` ids."""
        multiple = params.vocab_multiple
        fields = {key: getattr(params, key) for key in Architecture.model_fields}
        padded = -(-text_vocab_size // multiple) * multiple
        return cls(**fields, vocab_size=padded, text_vocab_size=text_vocab_size)

    def changed(self, **fields: object) -> Self:
        """A copy with some fields changed. All rules are checked again."""
        return type(self).model_validate({**self.model_dump(), **fields})


def gpt2_architecture(name: str) -> Architecture:
    """The architecture of a released GPT-2 model (a key of GPT2_SIZES)."""
    n_layer, n_head, n_embd = GPT2_SIZES[name]
    return Architecture(
        block_size=1024,
        n_layer=n_layer,
        n_head=n_head,
        n_kv_head=None,
        n_embd=n_embd,
        dropout=0.0,
        bias=True,
        position="learned",
        norm="layernorm",
        norm_placement="pre",
        **OFF,
        mlp="gelu_tanh",
        mlp_expansion=4.0,
        tie_embeddings=True,
        init="scaled",
    )


def gpt2_config(name: str) -> GPTConfig:
    """The config of a released GPT-2 model (a key of GPT2_SIZES)."""
    fields = gpt2_architecture(name).model_dump()
    return GPTConfig(**fields, vocab_size=GPT2_VOCAB_SIZE, text_vocab_size=GPT2_VOCAB_SIZE)
