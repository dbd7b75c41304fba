"""`python -m pipeline plan`: what it computes from params.yaml alone, and with an earlier run's files."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.artifacts import SplitSize
from pipeline.cli import plan as planning
from pipeline.comparison.configurations import LOSS, configurations
from pipeline.comparison.scaling import ScalingFit, recipe, scaling_fit
from pipeline.config import load_yaml
from pipeline.corpus.chat import with_special_tokens
from pipeline.corpus.params import BenchmarkParams, TokenizerParams
from pipeline.corpus.tokenizer import bytes_tokenizer, fingerprint, save_tokenizer
from pipeline.distributed import Group
from pipeline.dvc_lock import flat
from pipeline.log import UserError
from pipeline.model.accounting import flops_per_token
from pipeline.model.config import ModelParams
from pipeline.runtime import RuntimeParams
from pipeline.training.params import TrainParams
from stages import train as train_stage
from tests.comparison.builders import scaling_loss, scaling_runs
from tests.reporting.fixtures import manifest, run_summary

ROOT = Path(__file__).parents[2]


@pytest.fixture
def params() -> dict[str, Any]:
    """The repository's params.yaml, changed to the reference run: GPT-2 on 10 billion tokens."""
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
        train_tokens and SplitSize(tokens=train_tokens, documents=1, utf8_bytes=1),
        ranks,
    )


def test_the_reference_run_on_eight_gpus(params: dict[str, Any]) -> None:
    plan = make(params, train_tokens=9_900_000_000)
    assert plan.config.vocab_size == 50304
    assert plan.tokens == 524288 * 19073
    assert plan.flops == pytest.approx(8.6e18, rel=0.01)  # 6 N D is 7.4e18, attention scores the rest
    assert plan.micro_batch == 64
    amounts = {label: amount for label, amount, _ in planning.run_rows(plan)}
    assert (amounts["tokens per step"], amounts["tokens"]) == ("524,288", "9,999,745,024")


def test_the_share_of_probes(params: dict[str, Any]) -> None:
    params["train"].update(max_steps=1000, eval_interval=300, eval_tokens=3 * 524288, benchmark_interval=0)
    benchmarks = BenchmarkParams(tasks=("hellaswag",), directory=None, items=None)
    # At steps 0, 300, 600, 900, 1000: a forward pass each of 3 steps' tokens, so the cost of 5 of 1000 steps.
    assert planning.probe_row(make(params), benchmarks)[1] == "0.5%"
    params["train"].update(eval_interval=0, benchmark_interval=1000, benchmark_items=10_042)
    assert "hellaswag 0.4% (10,042 items)" in planning.probe_row(make(params), benchmarks)[2]
    fewer, none = (benchmarks.model_copy(update=change) for change in ({"items": 5000}, {"tasks": ()}))
    assert "hellaswag 0.2% (5,000 items)" in planning.probe_row(make(params), fewer)[2]
    assert planning.probe_row(make(params), none)[2] == "validation loss 0.0%"


def test_the_micro_batch_is_the_largest_divisor_as_in_training(params: dict[str, Any]) -> None:
    largest = make(params, ranks=2)
    params["runtime"]["micro_batch_size"] = 60
    plan = make(params, ranks=2)
    assert plan.micro_batch == 32  # of 256 sequences per rank
    assert 2 * plan.memory_per_rank.activations == largest.memory_per_rank.activations


def test_fsdp_and_activation_checkpointing_need_less_memory(params: dict[str, Any]) -> None:
    ddp = make(params).memory_per_rank
    params["runtime"].update(sharding="fsdp", activation_checkpointing=True)
    fsdp = make(params).memory_per_rank
    assert fsdp.optimizer == ddp.optimizer // 8
    assert fsdp.weights < ddp.weights
    assert fsdp.activations < ddp.activations
    assert make(params, ranks=1).memory_per_rank.optimizer == ddp.optimizer  # a single rank shards nothing


def test_training_refuses_a_model_that_the_device_cannot_hold(
    params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_stage, "total_memory", lambda device: 10**9)  # GPT-2 needs 16 bytes per parameter
    config, train = make(params).config, TrainParams(**params["train"])
    for sharding, ranks in (("ddp", 8), ("fsdp", 1)):
        runtime = RuntimeParams(**{**params["runtime"], "sharding": sharding})
        with pytest.raises(UserError, match=r"model: 124,.*1\.99 GB.*1\.00 GB"):
            train_stage.check_memory(config, train, runtime, Group(0, ranks, torch.device("cpu")))
    train_stage.check_memory(config, train, runtime, Group(0, 8, torch.device("cpu")))  # a shard fits


def test_a_batch_that_cannot_be_divided_is_refused(params: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"total_batch_size \(524288\).*block_size \(1024\).*\(7\)"):
        make(params, ranks=7)


def test_time_at_a_given_speed_at_the_last_runs_and_on_gpus(params: dict[str, Any], tmp_path: Path) -> None:
    plan = make(params)
    ((_, duration, _),) = planning.time_rows(plan, 1_000_000, None)
    assert duration == "2 h 46 min"
    summary = run_summary(tokens_per_sec=5e5, flops=10 * flops_per_token(plan.config), tokens=10)
    summary.write(tmp_path / "summary.json")
    last = planning.last_run(tmp_path / "summary.json")
    assert last is not None
    assert last.hardware.world_size == 1
    assert [row[0] for row in planning.time_rows(plan, None, last)] == ["8 x A100", "8 x H100"]
    *_, (label, duration, _) = planning.time_rows(make(params, ranks=1), None, last)
    assert (label, duration) == ("as the last run", "5 h 33 min")


@pytest.mark.parametrize("content", [None, "", "{}"])
def test_without_a_valid_summary_no_speed_is_known(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    assert planning.last_run(tmp_path / "summary.json") is None
    assert planning.flops_per_sec(run_summary(tokens_per_sec=0.0)) is None


@pytest.mark.parametrize("template", [None, "<|{role}|>{content}<|end|>"])
@pytest.mark.parametrize("encoding", ["bytes", "mine"])
def test_the_vocabulary_is_that_of_the_shards_if_they_are_of_this_tokenizer(
    params: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, template: str | None
) -> None:
    """`mine`: a tokenizer in models/. The template of conversations adds four special tokens."""
    monkeypatch.chdir(tmp_path)
    base = bytes_tokenizer()
    save_tokenizer(base, Path("models/mine/tokenizer"))
    tokenizer = TokenizerParams(**{**params["tokenizer"], "encoding": encoding})
    assert planning.text_vocabulary(tokenizer, tmp_path) == (257, None)
    used = with_special_tokens(base, template) if template else base
    save_tokenizer(used, tmp_path / "tokenizer", template, fingerprint(base) if template else None)
    fields = {"tokenizer_name": used.name, "tokenizer_sha256": fingerprint(used), "vocab_size": used.n_vocab}
    shards = manifest().model_copy(update=fields)
    shards.write(tmp_path / "manifest.json")
    assert planning.text_vocabulary(tokenizer, tmp_path) == (used.n_vocab, shards.splits["train"].size)
    assert used.n_vocab == (261 if template else 257)
    other = tokenizer.model_copy(update={"encoding": "bpe"})
    assert planning.text_vocabulary(other, tmp_path) == (4096, None)


def test_shards_with_a_bpe_vocabulary_of_another_size_are_not_used(params: dict[str, Any], tmp_path: Path) -> None:
    save_tokenizer(bytes_tokenizer(), tmp_path / "tokenizer")
    shards = manifest().model_copy(update={"tokenizer_name": "bpe-4000", "vocab_size": 4000})
    shards.write(tmp_path / "manifest.json")
    for vocab_size, expected in ((4000, (4000, shards.splits["train"].size)), (4096, (4096, None)), (512, (512, None))):
        tokenizer = TokenizerParams(**{**params["tokenizer"], "encoding": "bpe", "vocab_size": vocab_size})
        assert planning.text_vocabulary(tokenizer, tmp_path) == expected


@pytest.fixture(scope="module")
def fit() -> ScalingFit:
    """Of runs of params.yaml."""
    found = scaling_fit(configurations(scaling_runs(), LOSS))
    assert found is not None
    return found.model_copy(update={"recipe": recipe(flat(load_yaml(ROOT / "params.yaml")))})


def predicted(fit: ScalingFit, train_tokens: int | None = None, **changed: Any) -> list[planning.Row]:
    """The rows for params.yaml with some changes, `model__position` for model.position."""
    values = load_yaml(ROOT / "params.yaml")
    for dotted, value in changed.items():
        section, key = dotted.split("__")
        values[section][key] = value
    plan = planning.make_plan(
        ModelParams(**values["model"]),
        TrainParams(**values["train"]),
        RuntimeParams(**values["runtime"]),
        4096,
        train_tokens and SplitSize(tokens=train_tokens, documents=1, utf8_bytes=1),
        1,
    )
    return list(planning.loss_rows(plan, fit, flat(values)))


def test_the_loss_by_a_scaling_law(fit: ScalingFit) -> None:
    ((label, loss, remark),) = predicted(fit)
    assert (label, float(loss)) == ("validation loss", pytest.approx(scaling_loss(4_240_896, 1_228_800), abs=1e-3))
    low, _, high, *_ = remark.split()
    assert float(low) <= float(loss) <= float(high)
    rates = predicted(fit, model__n_layer=6, train__max_lr=1e-3, train__seed=2, runtime__workers=3)
    assert len(rates) == 1, "a recipe has several sizes and learning rates"


def test_a_run_unlike_those_of_the_law_has_warnings_or_no_prediction(fit: ScalingFit) -> None:
    (_, loss, _), (_, _, warning) = predicted(fit, model__position="rope")
    assert float(loss) > 0
    assert "model.position is rope; the fitted runs have learned" in warning
    assert "epochs" in predicted(fit, train_tokens=100_000)[1][2]
    for change in ({"data__source": "files"}, {"tokenizer__vocab_size": 512}, {"train__max_steps": 100_000}):
        ((_, loss, reason),) = predicted(fit, **change)
        assert loss == "unknown"
        assert next(iter(change)).replace("__", ".") in reason or "tokens: more than 10 times" in reason


def test_a_key_that_is_newer_than_the_law_changes_nothing(fit: ScalingFit) -> None:
    older = {key: value for key, value in fit.recipe.items() if key != "tokenizer.chat_template"}
    assert predicted(fit.model_copy(update={"recipe": older})) == predicted(fit)


def test_the_command_reads_a_scaling_law(
    fit: ScalingFit, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    fit.write(tmp_path / "scaling.json")
    planning.main(["--scaling", str(tmp_path / "scaling.json")])
    assert "validation loss  " in capsys.readouterr().out
    (tmp_path / "scaling.json").write_text("{}")
    with pytest.raises(UserError, match=r"scaling\.json is not what .*compare"):
        planning.main(["--scaling", str(tmp_path / "scaling.json")])


def test_the_command_needs_no_torch() -> None:
    script = (
        "import sys; from pipeline.cli.plan import main; main(['--tokens-per-sec', '50000']); "
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "50,000 tokens/s" in result.stdout
