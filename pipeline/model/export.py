"""A model as a Hugging Face GPT-2: the same logits from `transformers.AutoModelForCausalLM.from_pretrained(directory)`.

    config.json, generation_config.json   the architecture
    model.safetensors                     the weights, linear layers transposed; no rows for the vocabulary's padding
    tokenizer.json, tokenizer_config.json the encoding, as `transformers.AutoTokenizer` reads it
    encoding/                             the encoding's own files, so that this pipeline reads the directory too

Run by `python -m pipeline.export_model`.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.corpus import encodings
from pipeline.files import atomic_directory, check_replaceable, write_json
from pipeline.model.config import GPTConfig
from pipeline.model.files import CONFIG, ENCODING, WEIGHTS, stored_weights
from pipeline.model.gpt import GPT
from pipeline.model.huggingface import ACTIVATIONS, FIXED, TRANSPOSED
from pipeline.model.tokenizer_json import tokenizer_config, tokenizer_json

# What GPT-2's architecture in transformers is made of; everything else that `model` offers it cannot express.
EXPRESSIBLE: dict[str, tuple[object, ...]] = {
    "position": ("learned",),
    "norm": ("layernorm",),
    "norm_placement": ("pre",),
    "qk_norm": (False,),
    "mlp": tuple(dict.fromkeys(ACTIVATIONS.values())),
}


def export_model(model: GPT, encoding_directory: Path | None, directory: Path) -> None:
    """Writes a Hugging Face directory, whole or not at all; `encoding_directory`: None leaves the tokenizer out.

    Before anything is written, raises ValueError that names each key that a Hugging Face GPT-2 cannot express, and
    FileExistsError where `directory` is there and not empty.
    """
    check_expressible(model.config)
    check_replaceable(directory)
    encoding = None if encoding_directory is None else encodings.load(encoding_directory)
    end_of_text = None if encoding is None else encoding.eot_token
    with atomic_directory(directory, ()) as temporary:
        write_json(temporary / CONFIG, config_to(model.config, end_of_text))
        ids = {"bos_token_id": end_of_text, "eos_token_id": end_of_text}
        write_json(temporary / "generation_config.json", {"_from_model_config": True, **ids})
        # Some readers ask the metadata which framework's layout this is.
        save_file(weights_to(model), temporary / WEIGHTS, metadata={"format": "pt"})
        if encoding is not None and encoding_directory is not None:
            write_json(temporary / "tokenizer.json", tokenizer_json(encoding))
            write_json(temporary / "tokenizer_config.json", tokenizer_config(model.config.block_size))
            shutil.copytree(encoding_directory, temporary / ENCODING)


def check_expressible(config: GPTConfig) -> None:
    """Raises ValueError that names each key with which the model is no GPT-2 as transformers knows it."""
    wrong = [
        f"model.{key} ({getattr(config, key)}) must be {' or '.join(str(value) for value in values)}"
        for key, values in EXPRESSIBLE.items()
        if getattr(config, key) not in values
    ]
    if config.kv_heads != config.n_head:
        wrong.append(f"model.n_kv_head ({config.kv_heads}) must equal n_head ({config.n_head})")
    if wrong:
        raise ValueError("Hugging Face's GPT-2 cannot express this model: " + "; ".join(wrong))


def config_to(config: GPTConfig, end_of_text: int | None) -> dict[str, Any]:
    """The content of Hugging Face's config.json."""
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}  # the first name of each
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": names[config.mlp],
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
        "tie_word_embeddings": config.tie_head,
        "dtype": "float32",
        "vocab_size": config.text_vocab_size,
        **FIXED,
    }


def weights_to(model: GPT) -> dict[str, Tensor]:
    """Hugging Face's weights by name, float32. Absent biases are written as zeros, which compute the same."""
    rows = model.config.text_vocab_size
    theirs: dict[str, Tensor] = {}
    for name, tensor in stored_weights(model).items():
        if name in ("transformer.wte.weight", "lm_head.weight"):
            tensor = tensor[:rows]
        theirs[name] = (tensor.t() if name.endswith(TRANSPOSED) else tensor).contiguous()
        if not model.config.bias and name != "lm_head.weight" and not name.startswith("transformer.w"):
            theirs[name.removesuffix("weight") + "bias"] = torch.zeros(tensor.size(0))
    return theirs
