"""Pictures and figures of the docs are those of the code as it stands."""

import re
import runpy
from pathlib import Path

import pytest

from pipeline import plan
from pipeline.model.accounting import parameters
from pipeline.model.config import GPT2_VOCAB_SIZE, GPTConfig
from pipeline.model.gpt import GPT
from pipeline.progress import format_duration
from pipeline.training.checkpoint import CheckpointStore
from tests.docs.commands import ROOT
from tests.model.configs import TINY

PICTURES = ROOT / "docs/pictures"
RANKS = (1, 8, 16)


@pytest.mark.parametrize(("file", "colours"), [("architecture.svg", "LIGHT"), ("architecture-dark.svg", "DARK")])
def test_the_picture_of_the_architecture_is_that_of_dvc_yaml(file: str, colours: str) -> None:
    """If this fails: python docs/pictures/architecture.py, and look at what it drew."""
    drawn = runpy.run_path(str(PICTURES / "architecture.py"))
    assert drawn["picture"](drawn[colours]) == (PICTURES / file).read_text(encoding="utf-8")


def test_the_commands_in_the_picture_are_modules() -> None:
    drawn = runpy.run_path(str(PICTURES / "architecture.py"))
    for name in drawn["COMMANDS"]:
        path = ROOT / "pipeline" / Path(*name.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), name


def rows_of_costs() -> list[list[str]]:
    """The rows of docs/scaling.md's table of recipes."""
    text = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\| gpt2-.*$", text, re.M)]


@pytest.mark.parametrize("row", rows_of_costs(), ids=lambda row: row[0])
def test_what_a_recipe_costs_is_what_the_plan_says(row: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    name, tokens, memory, *times = row
    model, train, runtime, _ = plan.read_params(name)
    plans = [plan.make_plan(model, train, runtime, GPT2_VOCAB_SIZE, None, ranks) for ranks in RANKS]
    assert tokens == f"{plans[0].tokens:,}"
    assert (
        memory == plan.format_bytes(plans[0].memory_per_rank.total) == plan.format_bytes(plans[1].memory_per_rank.total)
    )
    expected = [
        format_duration(one.flops / (one.ranks * peak * plan.USUAL_MFU))
        for peak in plan.GPU_PEAKS.values()
        for one in plans
    ]
    assert times == expected


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_memory_of_ways_to_train_gpt2_xl_is_what_the_plan_says(
    sharding: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    model, train, runtime, _ = plan.read_params("gpt2-xl")
    chosen = runtime.model_copy(update={"sharding": sharding, "activation_checkpointing": checkpointing})
    need = plan.make_plan(model, train, chosen, GPT2_VOCAB_SIZE, None, 8).memory_per_rank
    amounts = [need.weights, need.gradients, need.optimizer, need.activations, need.total]
    row = f"| {sharding}{', checkpointing' * checkpointing} | {' | '.join(map(plan.format_bytes, amounts))} |"
    assert row in (ROOT / "docs/scaling.md").read_text(encoding="utf-8")


def test_all_sizes_of_gpt2_stand_in_the_table() -> None:
    assert [row[0] for row in rows_of_costs()] == ["gpt2-124m", "gpt2-medium", "gpt2-large", "gpt2-xl"]


def weights_in_checkpoint(config: GPTConfig) -> int:
    """Bytes of a checkpoint's weights, as docs/scaling.md has it: a tied head is written once more."""
    return 4 * (parameters(config).total + config.vocab_size * config.n_embd)


def test_checkpoints_have_the_sizes_that_the_page_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the first part fails, the rule has changed: correct it here and in the page."""
    config = TINY.changed(n_embd=64, vocab_size=4096)
    store = CheckpointStore(tmp_path / "checkpoints", 1)
    store.save(1, {"weights": GPT(config).state_dict()}, {})
    store.wait()
    (file,) = tmp_path.rglob("weights.pt")
    assert file.stat().st_size == pytest.approx(weights_in_checkpoint(config), rel=0.02)

    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
    sizes = re.findall(r"`([\w-]+)` takes ([\d.]+) GB", text)
    assert len(sizes) == 2
    for name, said in sizes:
        config = GPTConfig.from_params(plan.read_params(name)[0], GPT2_VOCAB_SIZE)
        moments = 8 * parameters(config).total
        assert float(said) == pytest.approx((weights_in_checkpoint(config) + moments) / 1e9, abs=0.05)
