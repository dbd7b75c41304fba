"""The costs in docs/scaling.md are those that `python -m pipeline plan` computes."""

import re

import pytest

from pipeline.cli.plan import GPUS, USUAL_MFU, Plan, make_plan, read_params
from pipeline.formatting import format_bytes, format_duration
from pipeline.model.accounting import GPU_PEAKS, parameters
from pipeline.model.config import GPT2_VOCAB_SIZE, GPTConfig
from pipeline.recipes import apply_recipe
from tests.docs.commands import ROOT

PAGE = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
RECIPES = ("gpt2-124m", "gpt2-medium", "gpt2-large", "gpt2-xl")


@pytest.fixture(autouse=True)
def _in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def plan(recipe: str, ranks: int, **runtime_changes: object) -> Plan:
    model, train, runtime, *_ = read_params(apply_recipe(recipe).values)
    return make_plan(model, train, runtime.model_copy(update=runtime_changes), GPT2_VOCAB_SIZE, None, ranks)


@pytest.mark.parametrize("recipe", RECIPES)
def test_tokens_memory_and_times(recipe: str) -> None:
    plans = [plan(recipe, ranks) for ranks in (1, 8, 16)]
    (memory,) = {format_bytes(p.memory_per_rank.total) for p in plans[:2]}
    times = [format_duration(p.flops / (p.ranks * GPU_PEAKS[gpu] * USUAL_MFU)) for gpu in GPUS for p in plans]
    assert row(recipe, f"{plans[0].tokens:,}", memory, *times) in PAGE


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_of_gpt2_xl(sharding: str, checkpointing: bool) -> None:
    memory = plan("gpt2-xl", 8, sharding=sharding, activation_checkpointing=checkpointing).memory_per_rank
    amounts = [memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.total]
    assert row(sharding + ", checkpointing" * checkpointing, *map(format_bytes, amounts)) in PAGE


def test_sizes_of_checkpoints() -> None:
    sizes = re.findall(r"`([\w-]+)` takes ([\d.]+ GB)", PAGE)
    assert len(sizes) == 2
    for recipe, size in sizes:
        config = GPTConfig.from_params(read_params(apply_recipe(recipe).values)[0], GPT2_VOCAB_SIZE)
        tied = config.vocab_size * config.n_embd  # stored twice
        assert size == format_bytes(12 * parameters(config).total + 4 * tied)


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
