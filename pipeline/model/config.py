"""The architecture of a GPT as values: the `model` section of params.yaml, and what a saved model says of itself.

Three classes, each the one before and a little more:

    Architecture   the choices that shape the network
    ModelParams    + where the weights come from and how the vocabulary is padded: the `model` section
    GPTConfig      + the vocabulary, which the tokenizer decides: all that `GPT(config)` needs

No torch here: `plan`, the report and the parameter reference read these classes without it.
"""

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.config import Section

GATED_MLPS = ("swiglu", "geglu")

# Name -> (n_layer, n_head, n_embd) of the released GPT-2 models; all have vocabulary 50257, context 1024 and biases.
GPT2_SIZES = {
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
}
GPT2_VOCAB_SIZE = 50257


class Architecture(Section):
    """The choices that shape the network. GPT-2's: learned, layernorm, pre, gelu_tanh, 4.0, biases, tied, scaled."""

    block_size: int = Field(ge=1)
    """Context in tokens: the longest sequence the model is trained on."""

    n_layer: int = Field(ge=1)
    """Transformer blocks."""

    n_head: int = Field(ge=1)
    """Query heads of each attention layer; must divide n_embd."""

    n_kv_head: int | None = Field(ge=1)
    """Key/value heads, each shared by n_head / n_kv_head query heads (grouped-query attention, arXiv 2305.13245);
    1 is multi-query attention; null: n_head."""

    n_embd: int = Field(ge=1)
    """Width of the residual stream."""

    dropout: float = Field(ge=0, lt=1)
    """Probability of dropping an attention weight, a sublayer's output, an embedding; 0: off, as for pretraining."""

    bias: bool
    """Biases in every linear layer but the head, and in every LayerNorm (RMSNorm has none)."""

    position: Literal["learned", "sinusoidal", "rope", "alibi"]
    """How the model knows token order: learned table (GPT-2), fixed sine table (arXiv 1706.03762), rotary embedding
    of queries and keys (arXiv 2104.09864), distance penalty on attention scores (arXiv 2108.12409)."""

    norm: Literal["layernorm", "rmsnorm"]
    """LayerNorm (GPT-2) or RMSNorm (arXiv 1910.07467: no mean, no bias)."""

    norm_placement: Literal["pre", "post"]
    """Norm on the input of each sublayer, with a final norm (pre, GPT-2), or on the sum after it (post, GPT-1)."""

    qk_norm: bool
    """Normalises each head's queries and keys before their product (arXiv 2302.05442), with the norm chosen above."""

    mlp: Literal["gelu_tanh", "gelu", "relu", "relu_squared", "swiglu", "geglu"]
    """Activation of the MLP: tanh GELU (GPT-2), erf GELU, ReLU, ReLU² (arXiv 2109.08668), or the gated SwiGLU and
    GeGLU (arXiv 2002.05202), which have a third matrix."""

    mlp_expansion: float = Field(gt=0)
    """Hidden width of the MLP / n_embd: 4.0 in GPT-2; 2.667 gives a gated MLP the same parameter count. A product that
    is no whole number becomes the nearest multiple of 8."""

    attention: Literal["sdpa", "manual"]
    """PyTorch's fused scaled-dot-product attention, or the same written out as matrix products and a softmax."""

    tie_head: bool
    """The output head is the token embedding (GPT-2), not a matrix of its own."""

    init: Literal["scaled", "flat", "zero"]
    """Weights start normal with standard deviation 0.02; the two projections into the residual stream of each block
    with 0.02/sqrt(2 n_layer) (scaled, GPT-2), with 0.02 like the rest (flat), or at zero (zero)."""

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
        if self.position == "sinusoidal" and self.n_embd % 2:
            raise ValueError(f"model.n_embd ({self.n_embd}) must be even for position sinusoidal, which has pairs")
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
    def mlp_width(self) -> int:
        """Hidden width of the MLP; for a gated one, the width of gate and of value each."""
        width = self.mlp_expansion * self.n_embd
        if math.isclose(width, round(width)):
            return max(1, round(width))
        return max(8, 8 * round(width / 8))

    @property
    def gated(self) -> bool:
        """Whether the MLP has a gate."""
        return self.mlp in GATED_MLPS

    @property
    def context_limit(self) -> int | None:
        """The longest sequence that the model accepts; None: any.

        ALiBi was made to go on past the trained context, so it may. A learned or sinusoidal table ends there, and RoPE
        computes angles that no training has seen; for these three the window slides: when it is full, its newer half is
        kept and computed again from position 0 (pipeline/generation/decoder.py).
        """
        return None if self.position == "alibi" else self.block_size


class ModelParams(Architecture):
    """The `model` section: an architecture, where its first weights come from, and the padding of its vocabulary."""

    section: ClassVar[str] = "model"

    init_from: str = Field(min_length=1)
    """First weights: scratch (random), gpt2 | gpt2-medium | gpt2-large | gpt2-xl (from the Hugging Face hub), or a
    directory that holds a model of this pipeline or a GPT-2 of Hugging Face's. The other keys of this section must then
    describe that model; dropout and attention are free, and block_size may be smaller than its own."""

    vocab_multiple: int = Field(ge=1)
    """The vocabulary is padded with unused ids to a multiple of this: matrix products like round sizes. Padded ids have
    probability zero in training, evaluation and sampling alike. 1: no padding."""

    def rules_across(self, sections: Mapping[str, Section]) -> Iterator[str]:
        """A released GPT-2 has fixed sizes and its own encoding; says at once which keys differ."""
        if self.init_from not in GPT2_SIZES:
            return
        encoding = getattr(sections["tokenizer"], "encoding", None)
        if encoding != "gpt2":
            yield f"model.init_from ({self.init_from}): needs tokenizer.encoding gpt2, not {encoding}"
        for key, (value, released) in self.differences(gpt2_architecture(self.init_from)).items():
            yield f"model.{key} ({value}): init_from {self.init_from} has {released}"

    def differences(self, loaded: Architecture) -> dict[str, tuple[object, object]]:
        """The keys in which weights of `loaded` do not fit these params: key -> (value here, value there)."""
        found: dict[str, tuple[object, object]] = {}
        for key in Architecture.model_fields:
            if key in ("dropout", "attention", "init", "n_kv_head", "mlp_expansion"):
                continue  # free to choose, or compared below by what they come to
            here, there = getattr(self, key), getattr(loaded, key)
            if here != there and not (key == "block_size" and here < there):
                found[key] = (here, there)
        if self.kv_heads != loaded.kv_heads:
            found["n_kv_head"] = (self.kv_heads, loaded.kv_heads)
        if "n_embd" not in found and self.mlp_width != loaded.mlp_width:
            found["mlp_expansion"] = (self.mlp_expansion, loaded.mlp_expansion)
        return found


class GPTConfig(Architecture):
    """All that `GPT(config)` needs; saved beside the weights. `model_dump` and `model_validate` round-trip as JSON."""

    section: ClassVar[str] = "model"

    vocab_size: int = Field(ge=1)
    """Rows of the token embedding, padding included."""

    text_vocab_size: int = Field(ge=1)
    """Ids that the encoding gives a text: ids from here to vocab_size are padding."""

    @model_validator(mode="after")
    def _vocabulary(self) -> Self:
        if self.text_vocab_size > self.vocab_size:
            raise ValueError(f"text_vocab_size ({self.text_vocab_size}) exceeds vocab_size ({self.vocab_size})")
        return self

    @classmethod
    def from_params(cls, params: ModelParams, text_vocab_size: int) -> Self:
        """The config of a new model for an encoding of `text_vocab_size` ids."""
        multiple = params.vocab_multiple
        fields = {key: getattr(params, key) for key in Architecture.model_fields}
        padded = -(-text_vocab_size // multiple) * multiple
        return cls(**fields, vocab_size=padded, text_vocab_size=text_vocab_size)

    def changed(self, **fields: object) -> Self:
        """A copy with some fields changed, all rules checked again."""
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
        qk_norm=False,
        mlp="gelu_tanh",
        mlp_expansion=4.0,
        attention="sdpa",
        tie_head=True,
        init="scaled",
    )


def gpt2_config(name: str) -> GPTConfig:
    """The config of a released GPT-2 model (a key of GPT2_SIZES)."""
    fields = gpt2_architecture(name).model_dump()
    return GPTConfig(**fields, vocab_size=GPT2_VOCAB_SIZE, text_vocab_size=GPT2_VOCAB_SIZE)
