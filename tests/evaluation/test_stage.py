"""The evaluate stage: files in, metrics out, the same from any number of processes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.artifacts import EvaluationMetrics
from pipeline.cli.evaluate import main as compare_models
from pipeline.config import read_sections
from pipeline.corpus.benchmarks import TASKS, LambadaItem
from pipeline.corpus.tokenizer import save_tokenizer
from pipeline.log import UserError
from pipeline.model.gpt import GPT
from pipeline.model_directory import save_model
from pipeline.probes import benchmark_columns, training_probes
from pipeline.runtime import RuntimeParams
from pipeline.training.params import TrainParams
from stages import evaluate
from stages.train import validation_probe
from tests.evaluation.small import ALONE, BYTES, documents, many_items, tiny_model, write_benchmarks, write_val_split

ROOT = Path(__file__).parents[2]
OTHER_BYTES = type(BYTES)(
    "other",
    pat_str=r"\S+|\s+",
    mergeable_ranks={bytes([byte]): 255 - byte for byte in range(256)},
    special_tokens={"<|endoftext|>": 256},
)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with the inputs of the stage."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    write_val_split(tmp_path / "data/shards", documents())
    save_model(tmp_path / "data/model", tiny_model(block_size=64), tmp_path / "data/shards/tokenizer")
    write_benchmarks(tmp_path / "data/benchmarks", next_lines=many_items(13))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def metrics() -> EvaluationMetrics:
    """What the stage has written."""
    return EvaluationMetrics.read(evaluate.METRICS)


def evaluated() -> EvaluationMetrics:
    """What the stage writes."""
    evaluate.main()
    return metrics()


@pytest.mark.usefixtures("workspace")
def test_metrics_have_the_loss_and_the_accuracies() -> None:
    written = evaluated()
    assert written.val.tokens == len(documents()) - 1
    assert list(written.benchmarks) == ["next_lines"]
    result = written.benchmarks["next_lines"]
    assert (result.items, result.chance, result.main) == (13, 0.25, "acc_norm")
    assert result.metrics == list(TASKS["next_lines"].metrics)
    for metric in result.metrics:
        value, error = result.value(metric)
        assert 0 <= value <= 1
        assert error >= 0


def test_tasks_keep_their_order_and_none_is_allowed(workspace: Path) -> None:
    write_benchmarks(workspace / "data/benchmarks", hellaswag=many_items(2), next_lines=many_items(3))
    assert {task: result.items for task, result in evaluated().benchmarks.items()} == {"hellaswag": 2, "next_lines": 3}
    write_benchmarks(workspace / "data/benchmarks")
    assert evaluated().benchmarks == {}
    assert list(json.loads(evaluate.METRICS.read_text())) == ["val"]
    assert benchmark_columns(workspace / "data/benchmarks") == ()


@pytest.mark.slow
@pytest.mark.usefixtures("workspace")
def test_two_processes_write_the_same_metrics_as_one() -> None:
    alone = evaluated()
    evaluate.METRICS.unlink()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*command, "-m", "stages.evaluate"], check=True, env=environment, timeout=120)
    assert metrics() == alone


def test_a_model_with_another_tokenizer_is_refused_and_old_metrics_stay(workspace: Path) -> None:
    before = evaluated()
    save_tokenizer(OTHER_BYTES, workspace / "other")
    save_model(workspace / "data/model", tiny_model(), workspace / "other")
    with pytest.raises(UserError, match=r"data/model: its tokenizer other \(257 ids"):
        evaluate.main()
    assert metrics() == before


def test_an_imported_model_with_too_few_ids_is_refused(workspace: Path) -> None:
    save_model(workspace / "data/model", GPT(tiny_model().config.changed(vocab_size=64, text_vocab_size=64)), None)
    with pytest.raises(ValueError, match=r"257 ids.*vocabulary \(64\)"):
        evaluate.main()


def test_padded_ids_of_an_imported_model_take_no_probability(workspace: Path) -> None:
    before = evaluated()
    model = tiny_model(block_size=64)
    assert model.config.vocab_size > model.config.text_vocab_size
    model.config = model.config.changed(text_vocab_size=model.config.vocab_size)  # as in Hugging Face's config
    save_model(workspace / "data/model", model, None)
    assert evaluated() == before


def test_a_loss_that_is_not_finite_is_refused(workspace: Path) -> None:
    model = tiny_model(block_size=64)
    with torch.no_grad():
        model.transformer.wte.weight[65] = 1e38  # its square, in the norm, overflows
    save_model(workspace / "data/model", model, workspace / "data/shards/tokenizer")
    with pytest.raises(UserError, match=r"data/model: validation loss \(nan\)"):
        evaluate.main()
    assert not evaluate.METRICS.exists()


@pytest.mark.usefixtures("workspace")
def test_probes_on_all_data_measure_the_same_as_the_stage() -> None:
    written = evaluated()
    train, runtime = read_sections(TrainParams, RuntimeParams)
    train = train.model_copy(update={"eval_tokens": 10**6, "benchmark_items": 13})
    runtime = runtime.model_copy(update={"dtype": "float32"})
    measured = validation_probe(train, runtime, ALONE, BYTES)(tiny_model(block_size=64), 1)
    for probe in training_probes(train, runtime, ALONE, BYTES, Path("data/shards/tokenizer"), Path("data/benchmarks")):
        measured |= probe.measure(tiny_model(block_size=64), 1)
    assert (measured["val/loss"], measured["val/bpb"]) == (written.val.loss, written.val.bpb)
    result = written.benchmarks["next_lines"]
    accuracies = {f"next_lines/{metric}": result.value(metric)[0] for metric in result.metrics}
    assert {name: measured[name] for name in benchmark_columns(Path("data/benchmarks"))} == accuracies


def test_the_command_compares_models_by_item(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = evaluated()
    save_model(workspace / "models/other", tiny_model(block_size=64, n_layer=1), workspace / "data/shards/tokenizer")
    write_benchmarks(workspace / "items", next_lines=many_items(13), lambada=[LambadaItem(text="A big man")])
    capsys.readouterr()
    compare_models(["data/model", "other", "--directory", "items"])
    out, err = capsys.readouterr()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("| ")]
    assert rows[0] == ["", "data/model", "other", "Chance"]
    assert rows[2][:2] == ["Validation loss (nats per token)", f"{written.val.loss:.4f}"]
    value, error = written.benchmarks["next_lines"].value("acc")
    assert rows[4][:2] == ["Next lines `acc`, 13 items", f"{100 * value:.2f} % ± {100 * error:.2f} %"]
    assert [row[0] for row in rows[7:9]] == ["LAMBADA `acc`, 1 items", "LAMBADA `perplexity`, 1 items"]
    of_other = float(rows[4][2].split()[0])
    assert float(rows[11][2].split()[0]) == pytest.approx(of_other - 100 * value, abs=0.02)
    assert "validation loss" not in err
    compare_models(["other", "--shards", "none", "--tasks", "lambada", "--directory", "items"])
    assert "Validation loss" not in capsys.readouterr().out
    with pytest.raises(UserError, match="nothing: neither a model directory nor a name in models/"):
        compare_models(["nothing"])


def test_the_command_gives_no_loss_on_shards_of_another_tokenizer(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_val_split(workspace / "others", documents(), OTHER_BYTES)
    compare_models(["data/model", "--shards", "others"])
    out, err = capsys.readouterr()
    assert "Validation loss" not in out
    assert re.search(
        r"data/model: no validation loss: its tokenizer bytes \(\w+\) is not that of others \(other, \w+\)", err
    )
