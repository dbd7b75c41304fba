"""`plan` tells what a run will cost, from params.yaml alone or with what earlier runs left."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline import plan as planning
from pipeline.config import load_yaml
from pipeline.corpus.encodings import TokenizerParams
from pipeline.corpus.shards import Manifest
from pipeline.model.accounting import flops_per_token
from pipeline.model.config import ModelParams
from pipeline.runtime import RuntimeParams
from pipeline.training.params import TrainParams

ROOT = Path(__file__).parents[2]


@pytest.fixture
def params() -> dict[str, Any]:
    """The repository's params.yaml with a reference run of GPT-2 on 10 billion tokens in it."""
    values = load_yaml(ROOT / "params.yaml")
    values["model"].update(n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_multiple=128)
    values["train"].update(total_batch_size=524288, max_steps=19073, optimizer="adamw")
    values["runtime"].update(micro_batch_size=64, dtype="auto")
    values["tokenizer"].update(encoding="gpt2")
    return values


def make(values: dict[str, Any], ranks: int = 8, train_tokens: int | None = None) -> planning.Plan:
    return planning.make_plan(
        ModelParams(**values["model"]),
        TrainParams(**values["train"]),
        RuntimeParams(**values["runtime"]),
        50257,
        train_tokens,
        ranks,
    )


def test_the_reference_run_of_gpt2_on_eight_gpus(params: dict[str, Any]) -> None:
    plan = make(params, train_tokens=9_900_000_000)
    assert plan.config.vocab_size == 50304
    assert plan.tokens == 524288 * 19073
    assert plan.flops == pytest.approx(8.6e18, rel=0.01)  # 6 N D is 7.4e18, attention scores the rest
    assert plan.micro_batch == 64
    rows = {what: (much, remark) for what, much, remark in planning.run_rows(plan)}
    assert rows["tokens per step"] == ("524,288", "512 sequences of 1,024")
    assert rows["tokens"] == ("9,999,745,024", "80.3 per parameter, 1.01 epochs of 9,900,000,000")
    assert {what: remark for what, _, remark in planning.memory_rows(plan)}["activations"].endswith("1 a step")


def test_the_micro_batch_is_the_one_that_training_takes(params: dict[str, Any]) -> None:
    whole = make(params, ranks=2)
    params["runtime"]["micro_batch_size"] = 60
    plan = make(params, ranks=2)
    assert plan.micro_batch == 32  # the largest divisor of 256 sequences up to 60
    assert 2 * plan.memory_per_rank.activations == whole.memory_per_rank.activations


def test_a_model_too_large_for_a_rank_is_planned_shared_out_and_computed_again(params: dict[str, Any]) -> None:
    held = make(params).memory_per_rank
    params["runtime"].update(sharding="fsdp", activation_checkpointing=True)
    plan = make(params)
    assert plan.memory_per_rank.optimizer == held.optimizer // 8
    assert plan.memory_per_rank.weights < held.weights
    assert plan.memory_per_rank.activations < held.activations
    assert {what: remark for what, _, remark in planning.memory_rows(plan)}["weights"].startswith("1/8 on each rank")
    assert make(params, ranks=1).memory_per_rank.optimizer == held.optimizer  # one rank has nothing to share


def test_a_batch_that_cannot_be_shared_out_is_refused(params: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=r"total_batch_size \(524288\) must be a multiple of model.block_size \(1024\) x"
    ):
        make(params, ranks=7)


def test_time_is_told_at_the_given_the_last_and_the_usual_rates(params: dict[str, Any], tmp_path: Path) -> None:
    plan = make(params)
    assert list(planning.time_rows(plan, 1_000_000, None)) == [("at the given rate", "2h46m", "1,000,000 tokens/s")]
    summary = tmp_path / "summary.json"
    per_token = flops_per_token(plan.config)
    summary.write_text(json.dumps({"tokens_per_sec": 5e5, "flops": 10 * per_token, "tokens": 10}))
    first, *others = planning.time_rows(plan, None, planning.last_rate(summary))
    assert first[:2] == ("as fast as the last run", "5h33m")
    assert [row[0] for row in others] == ["8 x A100", "8 x H100"]


@pytest.mark.parametrize("content", [None, "", "{}", '{"tokens_per_sec": null, "flops": 1, "tokens": 1}'])
def test_without_an_earlier_run_no_rate_is_known(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    if content is not None:
        path.write_text(content)
    assert planning.last_rate(path) is None


def test_the_vocabulary_is_that_of_the_shards_when_they_are_of_this_encoding(
    params: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tokenizer = TokenizerParams(**{**params["tokenizer"], "encoding": "bpe", "vocab_size": 4096})
    assert planning.text_vocabulary(tokenizer, tmp_path) == (4096, None)

    def manifest(name: str, vocab_size: int) -> None:
        split = {"tokens": 7, "documents": 1, "utf8_bytes": 9, "shards": []}
        found = Manifest.model_construct(encoding_name=name, vocab_size=vocab_size)
        object.__setattr__(found, "splits", {"train": type("Split", (), split)})
        monkeypatch.setattr(planning.Manifest, "read", lambda directory: found)

    manifest("bpe-4000", 4000)
    assert planning.text_vocabulary(tokenizer, tmp_path) == (4000, 7)
    manifest("gpt2", 50257)
    assert planning.text_vocabulary(tokenizer, tmp_path) == (4096, None)


def test_the_command_prints_one_table_and_imports_no_torch() -> None:
    script = (
        "import sys; sys.argv = ['plan', '--tokens-per-sec', '50000']; "
        "from pipeline.plan import main; main(); assert 'torch' not in sys.modules, 'plan imported torch'"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for part in ("GPT of ", "Model\n", "Run\n", "Memory on each of 1 rank(s)", "Time\n", "50,000 tokens/s"):
        assert part in result.stdout


def test_export_and_import_commands_round_trip(tmp_path: Path) -> None:
    from pipeline.corpus import encodings
    from pipeline.model.files import load_model, save_model
    from pipeline.model.gpt import GPT
    from tests.model.configs import TINY

    encodings.save(encodings.bytes_encoding(), tmp_path / "encoding")
    save_model(tmp_path / "model", GPT(TINY.changed(vocab_size=257, text_vocab_size=257)), tmp_path / "encoding")

    def run(module: str, *arguments: Path) -> str:
        command = [sys.executable, "-m", module, *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "from_pretrained" in run("pipeline.export_model", tmp_path / "model", tmp_path / "hf")
    assert "weights and config and encoding" in run("pipeline.import_model", tmp_path / "hf", tmp_path / "back")
    before, after = load_model(tmp_path / "model").state_dict(), load_model(tmp_path / "back").state_dict()
    assert all(bool((before[name] == after[name]).all()) for name in before)
    assert encodings.load(tmp_path / "back" / "encoding").n_vocab == 257
