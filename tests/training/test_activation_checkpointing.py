"""Recomputing activations in the backward pass changes what is kept, and no number."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.model.gpt import Block
from tests.training.conftest import MemoryLogger, same, trainer, weights_of

ON: dict[str, Any] = {"activation_checkpointing": True}
STEPS = {"max_steps": 4, "warmup_steps": 1}


def trained(
    shards: Path, state: Path, config: dict[str, Any], **runtime: Any
) -> tuple[dict[str, torch.Tensor], MemoryLogger]:
    log = MemoryLogger()
    run = trainer(shards, state, log, train=STEPS, runtime=runtime, config=config)
    run.run()
    return weights_of(run), log


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({}, "float32"),
        ({"position": "rope", "norm": "rmsnorm", "mlp": "swiglu"}, "bfloat16"),
        ({"position": "alibi", "dropout": 0.3}, "float32"),
    ],
)
def test_the_weights_are_the_same_bit_for_bit(shards: Path, tmp_path: Path, config: dict[str, Any], dtype: str) -> None:
    """With dropout: recomputing drops the same activations."""
    kept, log = trained(shards, tmp_path / "kept", config, dtype=dtype)
    again, other_log = trained(shards, tmp_path / "again", config, dtype=dtype, **ON)
    assert same(kept, again)
    assert log.curve() == other_log.curve()


@pytest.mark.slow
def test_a_compiled_run_has_the_same_weights(shards: Path, tmp_path: Path) -> None:
    kept, _ = trained(shards, tmp_path / "kept", {}, compile="on")
    again, _ = trained(shards, tmp_path / "again", {}, compile="on", **ON)
    for name, weight in kept.items():
        torch.testing.assert_close(again[name], weight, rtol=1e-5, atol=1e-6)


def test_each_block_is_recomputed_once_per_backward_pass(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    compute = Block.compute

    def counted(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return compute(*arguments)

    monkeypatch.setattr(Block, "compute", counted)
    trained(shards, tmp_path / "kept", {})
    once, calls = calls, 0
    trained(shards, tmp_path / "again", {}, **ON)
    assert calls == 2 * once
    assert once == 4 * 2 * 2  # steps, micro-batches, blocks
