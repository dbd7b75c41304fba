"""Mistakes in params.yaml."""

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import RENAMED, ConfigError, load_yaml, validate

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("evaluate", "stride", 129, r"evaluate.stride \(129\) must be at most model.block_size \(128\)"),
        ("evaluate", "stride", 0, r"evaluate.stride \(0\)"),
        ("evaluate", "dtype", "float16", r"evaluate.dtype \('float16'\)"),
        ("evaluate", "hellaswag_items", 0, r"evaluate.hellaswag_items \(0\)"),
        ("sample", "temperature", -0.1, r"sample.temperature \(-0.1\)"),
        ("sample", "temperature", float("inf"), r"sample.temperature \(inf\)"),
        ("train", "grad_clip", float("inf"), r"train.grad_clip \(inf\)"),
        ("train", "max_lr", float("nan"), r"train.max_lr \(nan\)"),
        ("sample", "top_p", 0.0, r"sample.top_p \(0.0\)"),
        ("tokenizer", "vocab_size", 10**7 + 1, r"tokenizer.vocab_size \(10000001\)"),
        ("tokenizer", "shard_tokens", 10**12 + 1, r"tokenizer.shard_tokens \(1000000000001\)"),
        ("hellaswag", "items", 10**6 + 1, r"hellaswag.items \(1000001\)"),
        ("sample", "prompts", [], r"sample.prompts"),
        ("sample", "prompts", [3], r"sample.prompts.0"),
    ],
)
def test_a_value_outside_its_rule_is_named(section: str, key: str, value: Any, message: str) -> None:
    values = load_yaml(ROOT / "params.yaml")
    values["model"]["block_size"] = 128
    values[section][key] = value
    with pytest.raises(ConfigError, match=message):
        validate(values)


@pytest.mark.parametrize("old", sorted(RENAMED))
def test_a_renamed_key_is_answered_with_its_new_name(old: str) -> None:
    values = load_yaml(ROOT / "params.yaml")
    section, _, key = old.partition(".")
    values[section][key] = True
    with pytest.raises(ConfigError, match=re.escape(f"{old}: renamed to {RENAMED[old]}")):
        validate(values)
    new = RENAMED[old].split()[0].partition(".")
    assert new[2] in values[new[0]]
