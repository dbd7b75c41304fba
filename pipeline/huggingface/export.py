"""Writes a model as a Hugging Face GPT-2, which `transformers.AutoModelForCausalLM.from_pretrained(directory)` loads.

    config.json, generation_config.json    the architecture
    model.safetensors                      the weights: linear layers transposed, no rows for the vocabulary's padding
    tokenizer.json, tokenizer_config.json  the tokenizer for `transformers.AutoTokenizer`
    tokenizer/                             the tokenizer's own files, so that this pipeline can import the directory

Run by `python -m pipeline export`.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.corpus.chat import load_chat
from pipeline.corpus.tokenizer import TOKENIZER_DIRECTORY, load_tokenizer
from pipeline.corpus.tokenizer_json import tokenizer_config, tokenizer_json
from pipeline.files import atomic_directory, check_replaceable, write_json
from pipeline.huggingface.convert import ACTIVATIONS, CONFIG, FIXED, TRANSPOSED, WEIGHTS
from pipeline.log import UserError
from pipeline.model.config import OFF, GPTConfig
from pipeline.model.gpt import GPT

# The choices that GPT-2's architecture in transformers has.
EXPRESSIBLE: dict[str, tuple[object, ...]] = {
    "position": ("learned",),
    "norm": ("layernorm",),
    "norm_placement": ("pre",),
    **{key: (value,) for key, value in OFF.items() if not key.startswith("rope_")},  # position says it all
    "mlp": tuple(dict.fromkeys(ACTIVATIONS.values())),
}


def export_model(model: GPT, tokenizer_directory: Path | None, directory: Path) -> None:
    """Writes a Hugging Face directory atomically; `tokenizer_directory` None: without a tokenizer.

    Raises UserError that names each key which a Hugging Face GPT-2 cannot express, and FileExistsError if `directory`
    exists and is not empty.
    """
    check_expressible(model.config)
    check_replaceable(directory)
    tokenizer = None if tokenizer_directory is None else load_tokenizer(tokenizer_directory)
    end_of_text = None if tokenizer is None else tokenizer.eot_token
    chat = load_chat(tokenizer_directory, tokenizer) if tokenizer_directory and tokenizer else None
    with atomic_directory(directory, ()) as temporary:
        write_json(temporary / CONFIG, config_to(model.config, end_of_text))
        ends = [end_of_text, chat.end_id] if chat else end_of_text
        special_ids = {"bos_token_id": end_of_text, "eos_token_id": ends}
        write_json(temporary / "generation_config.json", {"_from_model_config": not chat, **special_ids})
        # some readers refuse a file whose metadata does not name the framework
        save_file(weights_to(model), temporary / WEIGHTS, metadata={"format": "pt"})
        if tokenizer is not None and tokenizer_directory is not None:
            write_json(temporary / "tokenizer.json", tokenizer_json(tokenizer))
            config = tokenizer_config(model.config.block_size, chat.template if chat else None)
            write_json(temporary / "tokenizer_config.json", config)
            shutil.copytree(tokenizer_directory, temporary / TOKENIZER_DIRECTORY)


def check_expressible(config: GPTConfig) -> None:
    """Raises UserError that names each key which a Hugging Face GPT-2 cannot express."""
    mistakes = [
        f"model.{key} ({getattr(config, key)}) must be {' or '.join(map(str, choices))}"
        for key, choices in EXPRESSIBLE.items()
        if getattr(config, key) not in choices
    ]
    if config.kv_heads != config.n_head:
        mistakes.append(f"model.n_kv_head ({config.kv_heads}) must equal n_head ({config.n_head})")
    if mistakes:
        raise UserError("Hugging Face's GPT-2 cannot express this model: " + "; ".join(mistakes))


def config_to(config: GPTConfig, end_of_text: int | None) -> dict[str, Any]:
    """The content of Hugging Face's config.json."""
    activations = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}  # the first name of each
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": activations[config.mlp],
        "attn_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "initializer_range": 0.02,
        "n_ctx": config.block_size,
        "n_positions": config.block_size,
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "n_layer": config.n_layer,
        "n_inner": None if config.mlp_width == 4 * config.n_embd else config.mlp_width,
        "tie_word_embeddings": config.tie_embeddings,
        "dtype": "float32",
        "vocab_size": config.text_vocab_size,
        **FIXED,
    }


def weights_to(model: GPT) -> dict[str, Tensor]:
    """Hugging Face's weights by name, float32. A model without biases gets zeros, which compute the same."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in model.stored_weights().items():
        if name in ("transformer.wte.weight", "lm_head.weight"):
            tensor = tensor[: model.config.text_vocab_size]
        theirs[name] = (tensor.t() if name.endswith(TRANSPOSED) else tensor).contiguous()
        if not model.config.bias and name != "lm_head.weight" and not name.startswith("transformer.w"):
            theirs[name.removesuffix("weight") + "bias"] = torch.zeros(tensor.size(0))
    return theirs
