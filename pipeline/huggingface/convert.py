"""Hugging Face's GPT-2 read without the transformers package: download, config.json, weights.

Hugging Face stores GPT-2's linear layers as OpenAI did, transposed (`Conv1D`: in x out), so these four are transposed
here. Old files also hold causal masks, which are skipped. The way back is `export.py`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from pipeline.log import UserError
from pipeline.model.config import GPTConfig, gpt2_config
from pipeline.model.gpt import EPSILON

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = "model.safetensors.index.json"  # of weights in several files
PICKLES = "pytorch_model*.bin"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}")  # repository@revision

# activation_function -> model.mlp. Export writes the first name of each.
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "relu2": "relu_squared",
}
# Key of Hugging Face's config.json -> ours.
KEYS = {
    "n_positions": "block_size",
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "n_inner": "mlp_expansion",
    "resid_pdrop": "dropout",
    "tie_word_embeddings": "tie_embeddings",
    "vocab_size": "vocab_size",
}
DEFAULTS = {"n_positions": 1024, "resid_pdrop": 0.1, "tie_word_embeddings": True}  # GPT2Config's
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
MASKS = (".attn.bias", ".attn.masked_bias")
# Settings of GPT2Config that change the function, with the only value that this model computes.
FIXED = {
    "layer_norm_epsilon": EPSILON,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def download(hub_id: str) -> Path:
    """Downloads `repository@revision` from the Hugging Face hub, or finds it in the hub's cache.

    Returns the directory with config.json and the weights. Raises UserError if that fails.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, _, revision = hub_id.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=[CONFIG, "model*.safetensors*"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{hub_id}: download from the Hugging Face hub failed ({type(error).__name__}: {error}); "
            f"without a network, put a directory with its {CONFIG} and {WEIGHTS} under models/"
        ) from None


def is_huggingface(values: Mapping[str, Any]) -> bool:
    """Whether the content of a config.json is Hugging Face's, not ours."""
    return "model_type" in values


def config_from(values: Mapping[str, Any], source: Path) -> GPTConfig:
    """Our config for the content of Hugging Face's config.json.

    Raises UserError that names `source`, the key and the value if the model is not a GPT-2 that we can compute.
    """
    if values["model_type"] != "gpt2":
        raise UserError(f"{source}: model_type ({values['model_type']}) must be gpt2")
    for key, value in FIXED.items():
        if values.get(key, value) != value:
            raise UserError(f"{source}: {key} ({values[key]}) must be {value}")
    activation = values.get("activation_function", "gelu_new")
    if activation not in list(ACTIVATIONS):  # a list: the value may have any type
        raise UserError(f"{source}: activation_function ({activation}) must be one of {', '.join(ACTIVATIONS)}")
    fields = {ours: values.get(theirs, DEFAULTS.get(theirs)) for theirs, ours in KEYS.items()}
    n_inner = fields.pop("mlp_expansion")
    if n_inner is not None and type(n_inner) is not int:
        raise UserError(f"{source}: n_inner ({n_inner}) must be an integer or null")
    try:
        config = gpt2_config("gpt2").changed(**fields, text_vocab_size=1, mlp=ACTIVATIONS[activation])
        expansion = 4.0 if n_inner is None else n_inner / config.n_embd
        return config.changed(text_vocab_size=config.vocab_size, mlp_expansion=expansion)
    except ValidationError as error:
        theirs = {key: f"{name} ({values.get(name)}): " for name, key in KEYS.items()}
        mistakes = [theirs.get("".join(map(str, part["loc"])), "") + part["msg"] for part in error.errors()]
        raise UserError(f"{source}: not a valid config of a GPT-2: {'; '.join(mistakes)}") from None


def weights_from(weights: Mapping[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """Our weights by name, of the same dtypes, from Hugging Face's."""
    # Without it: saved from GPT2Model, as the files on the hub.
    prefix = "" if any(name.startswith("transformer.") for name in weights) else "transformer."
    ours: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name.endswith(MASKS) or (config.tie_embeddings and name == "lm_head.weight"):
            continue
        transposed = name.endswith(TRANSPOSED) and tensor.dim() == 2
        ours[name if name == "lm_head.weight" else prefix + name] = tensor.t() if transposed else tensor
    return ours
