"""Small configs for the tests: GPT-2's architecture, every other choice, and combinations."""

from typing import Any

from pipeline.model.config import GPTConfig, gpt2_config

TINY = gpt2_config("gpt2").changed(n_layer=2, n_head=4, n_embd=32, block_size=16, vocab_size=64, text_vocab_size=61)

# Each choice by itself, and combinations that interact.
OPTIONS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "sinusoidal": {"position": "sinusoidal"},
    "rope": {"position": "rope"},
    "alibi": {"position": "alibi"},
    "rmsnorm": {"norm": "rmsnorm"},
    "post-norm": {"norm_placement": "post"},
    "gelu": {"mlp": "gelu"},
    "relu": {"mlp": "relu"},
    "relu_squared": {"mlp": "relu_squared"},
    "swiglu": {"mlp": "swiglu", "mlp_expansion": 2.667},
    "geglu": {"mlp": "geglu", "mlp_expansion": 2.667},
    "gqa": {"n_kv_head": 2},
    "multi-query": {"n_kv_head": 1},
    "qk_norm": {"qk_norm": True},
    "no bias": {"bias": False},
    "untied": {"tie_embeddings": False},
    "normal init": {"init": "normal"},
    "zero init": {"init": "zero"},
    "dropout": {"dropout": 0.1},
    "no padding": {"vocab_size": 61},
    "llama": {
        "position": "rope",
        "norm": "rmsnorm",
        "mlp": "swiglu",
        "mlp_expansion": 2.667,
        "n_kv_head": 2,
        "bias": False,
        "tie_embeddings": False,
    },
    "nanochat": {
        "position": "rope",
        "norm": "rmsnorm",
        "mlp": "relu_squared",
        "qk_norm": True,
        "bias": False,
        "tie_embeddings": False,
        "init": "zero",
    },
    "gainless": {"norm": "rmsnorm_gainless", "qk_norm": True},
    "part of rope": {"position": "rope", "rope_base": 1024.0, "rope_share": 0.5},
    "embedding norm": {"embedding_norm": True},
    "attention scale": {"attention_scale": 0.5},
    "softcap": {"logit_softcap": 15.0},
    "skips": {"value_residual": True, "embedding_skip": True, "n_kv_head": 2},
    "modern": {
        "position": "rope",
        "norm": "rmsnorm_gainless",
        "embedding_norm": True,
        "mlp": "relu_squared",
        "qk_norm": True,
        "value_residual": True,
        "embedding_skip": True,
        "logit_softcap": 15.0,
        "bias": False,
        "tie_embeddings": False,
        "init": "zero",
    },
    "alibi, gqa, qk_norm": {"position": "alibi", "n_kv_head": 2, "qk_norm": True},
    "rope, post-norm, qk_norm": {"position": "rope", "norm_placement": "post", "qk_norm": True},
}


def option(name: str) -> GPTConfig:
    """The tiny model with one of OPTIONS."""
    return TINY.changed(**OPTIONS[name])
