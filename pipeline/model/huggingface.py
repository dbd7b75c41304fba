"""Hugging Face's GPT-2, read without the transformers package: its config.json and its weights as ours.

Hugging Face keeps GPT-2's linear layers as OpenAI did: transposed ("Conv1D", in x out), so those four are transposed
here. Its causal masks, saved as tensors in old files, are left out. The way back: `pipeline/model/export.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from pipeline.model.config import GPTConfig
from pipeline.model.norms import EPSILON

# The revision of each repository on the hub: names can be moved to other weights, these cannot.
REVISIONS = {
    "gpt2": "607a30d783dfa663caf39e06633721c8d4cfcd7e",
    "gpt2-medium": "6dcaa7a952f72f9298047fd5137cd6e4f05f41da",
    "gpt2-large": "32b71b12589c2f8d625668d2335a01cac3249519",
    "gpt2-xl": "15ea56dee5df4983c59b2538573817e1667135e2",
}
# activation_function -> model.mlp; what several names mean alike is listed for each.
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "relu2": "relu_squared",
}
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
MASKS = (".attn.bias", ".attn.masked_bias")  # old files hold the causal mask under these names
# Settings of GPT2Config that change the function, and the only value that this model computes.
FIXED = {
    "layer_norm_epsilon": EPSILON,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def fetch(name: str) -> Path:
    """Downloads a released GPT-2 (gpt2, gpt2-medium, gpt2-large, gpt2-xl) from the hub, or finds it in its cache.

    Returns the directory that holds config.json and model.safetensors. Raises ValueError where it cannot be had.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise ValueError(f"{name} is downloaded with huggingface_hub: pip install huggingface_hub") from None
    files = ["config.json", "model.safetensors"]
    try:
        return Path(snapshot_download(f"openai-community/{name}", revision=REVISIONS[name], allow_patterns=files))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"{name} could not be downloaded from the Hugging Face hub ({type(error).__name__}: {error}); "
            f"a directory with its {' and '.join(files)} does as well"
        ) from None


def is_huggingface(values: Mapping[str, Any]) -> bool:
    """Whether the content of a config.json is Hugging Face's and not ours."""
    return "model_type" in values


def config_from(values: Mapping[str, Any], source: Path) -> GPTConfig:
    """Our config for the content of Hugging Face's config.json.

    Raises ValueError that names `source`, the key and the value where it is no GPT-2, or one computed in another way.
    """
    if values["model_type"] != "gpt2":
        raise ValueError(f"{source}: model_type ({values['model_type']}) must be gpt2")
    for key, only in FIXED.items():
        if values.get(key, only) != only:
            raise ValueError(f"{source}: {key} ({values[key]}) must be {only}")
    activation = values.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise ValueError(f"{source}: activation_function ({activation}) must be one of {', '.join(ACTIVATIONS)}")
    try:
        return GPTConfig(
            block_size=values.get("n_positions", 1024),
            n_layer=values["n_layer"],
            n_head=values["n_head"],
            n_kv_head=None,
            n_embd=values["n_embd"],
            dropout=values.get("resid_pdrop", 0.1),
            bias=True,
            position="learned",
            norm="layernorm",
            norm_placement="pre",
            qk_norm=False,
            mlp=ACTIVATIONS[activation],  # type: ignore[arg-type]
            mlp_expansion=(values.get("n_inner") or 4 * values["n_embd"]) / values["n_embd"],
            attention="sdpa",
            tie_head=values.get("tie_word_embeddings", True),
            init="scaled",
            vocab_size=values["vocab_size"],
            text_vocab_size=values["vocab_size"],
        )
    except (KeyError, ValidationError) as error:
        raise ValueError(f"{source}: not the config of a GPT-2: {error}") from None


def weights_from(weights: Mapping[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """Our weights by name for Hugging Face's, float32."""
    ours: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name.endswith(MASKS) or (config.tie_head and name == "lm_head.weight"):
            continue
        if not name.startswith(("transformer.", "lm_head.")):  # files of the bare GPT2Model, as those on the hub
            name = f"transformer.{name}"
        ours[name] = (tensor.t() if name.endswith(TRANSPOSED) else tensor).float().contiguous()
    return ours
