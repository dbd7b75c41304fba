"""Mistakes in params.yaml."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.config import ConfigError, load_yaml, validate
from pipeline.recipes import round_trip

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("evaluate", "stride", 129, r"evaluate.stride \(129\) must be at most model.block_size \(128\)"),
        ("evaluate", "stride", 0, r"evaluate.stride \(0\)"),
        ("evaluate", "dtype", "float16", r"evaluate.dtype \('float16'\)"),
        ("sample", "temperature", -0.1, r"sample.temperature \(-0.1\)"),
        ("sample", "temperature", float("inf"), r"sample.temperature \(inf\)"),
        ("train", "grad_clip", float("inf"), r"train.grad_clip \(inf\)"),
        ("train", "max_lr", float("nan"), r"train.max_lr \(nan\)"),
        ("sample", "top_p", 0.0, r"sample.top_p \(0.0\)"),
        ("tokenizer", "vocab_size", 10**7 + 1, r"tokenizer.vocab_size \(10000001\)"),
        ("tokenizer", "shard_tokens", 10**12 + 1, r"tokenizer.shard_tokens \(1000000000001\)"),
        ("benchmarks", "tasks", ["next_lines"] * 2, r"benchmarks.tasks \(\[.*\]\) must not name a task twice"),
        ("benchmarks", "items", 10**6 + 1, r"benchmarks.items \(1000001\)"),
        ("sample", "prompts", [], r"sample.prompts"),
        ("sample", "prompts", [3], r"sample.prompts.0"),
        ("sample", "prompts", ["\ud800"], r"sample.prompts.0 \('\\ud800'\)"),
        ("sample", "surprisal_text", "\ud800", r"sample.surprisal_text \('\\ud800'\)"),
        ("tracking", "tags", ["\ud800"], r"tracking.tags.0 \('\\ud800'\)"),
        ("report", "title", "two\rlines", r"report.title \('two\\rlines'\)"),
        ("sample", "temperature", 1e300, r"sample.temperature \(1e\+300\)"),
        ("sample", "seed", 2**64, rf"sample.seed \({2**64}\)"),
        ("train", "max_lr", 1e300, r"train.max_lr \(1e\+300\)"),
        ("train", "total_batch_size", 2**40, rf"train.total_batch_size \({2**40}\)"),
        ("model", "n_layer", 10**9, rf"model.n_layer \({10**9}\)"),
        ("model", "mlp_expansion", 1e300, r"model.mlp_expansion \(1e\+300\)"),
        ("train", "patience", 0, r"train.patience \(0\)"),
        ("runtime", "collective_timeout", 1e300, r"runtime.collective_timeout \(1e\+300\)"),
        ("runtime", "collective_timeout", 1e-9, r"runtime.collective_timeout \(1e-09\)"),
        ("train", "betas", [0.9, 1.0], r"\n  train.betas \(\[0.9, 1.0\]\) must each be at least 0 and below 1"),
        ("runtime", "workers", [0] * 10_000, r"runtime.workers \(\[0, .{,200}\): input"),
    ],
)
def test_a_value_outside_its_rule_is_named(section: str, key: str, value: Any, message: str) -> None:
    values = load_yaml(ROOT / "params.yaml")
    values["model"]["block_size"] = 128
    values[section][key] = value
    with pytest.raises(ConfigError, match=message):
        validate(values)


@pytest.mark.parametrize(("key", "value"), [("keep", "best"), ("patience", 3)])
def test_what_needs_validation_losses_is_refused_without_them(key: str, value: Any) -> None:
    values = load_yaml(ROOT / "params.yaml")
    values["train"] |= {key: value, "eval_interval": 0}
    with pytest.raises(ConfigError, match=r"train.eval_interval \(0\)"):
        validate(values)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"data: 2020-99-99", "month must be in"),
        (b"data: !!int abc", "invalid literal"),
        (b"data: !!python/name:os 1", "line 1: could not determine a constructor"),
        (b"data: \xff", "can't decode byte 0xff"),
        (b"data: \0", "#x0000"),
        (b"data: " + b"[" * 1000, "line 1: more than 100 nested"),
        (b"data: 1\n" + b"benchmarks: " + b"{a: " * 1000, "line 2: more than 100 nested"),
        (b"data: &x [1]\nbenchmarks: *x", r"line 2: .*\*x"),
        (b"data: 1\ndata: 2", 'line 2: found duplicate key "data"'),
        (b"data: [1,", "line 1"),
        (b"- data", "mapping"),
        (b"", "mapping"),
    ],
)
@pytest.mark.parametrize("yaml", [None, round_trip()])
def test_a_broken_file_is_named_with_its_line(content: bytes, rule: str, yaml: YAML | None, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^{path}.*{rule}") as error:
        load_yaml(path, yaml)
    assert len(str(error.value).splitlines()) == 1


def test_keys_that_are_no_text_are_named() -> None:
    values: dict[Any, Any] = load_yaml(ROOT / "params.yaml")
    values[3] = values["model"][None] = 1
    with pytest.raises(ConfigError, match=r"(?s)3: unknown section.*model\.None"):
        validate(values)
