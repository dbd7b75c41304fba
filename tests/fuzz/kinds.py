"""A finished project in small and, for each kind of file in it, what the product does with that file."""

import gzip
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import chdir
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline import recipes
from pipeline.artifacts import (
    BenchmarkSource,
    EvaluationMetrics,
    RawCorpus,
    RunSummary,
    Samples,
    TrainingSample,
    TrainingSamples,
)
from pipeline.charts import pages
from pipeline.cli import convert, plan
from pipeline.config import PARAMS_FILE, load_yaml, validate
from pipeline.corpus import sources
from pipeline.corpus.benchmark_source import next_lines
from pipeline.corpus.benchmarks import items_file, read_items
from pipeline.corpus.documents import read_texts
from pipeline.corpus.readers import SUFFIXES
from pipeline.corpus.shards import open_split, verify
from pipeline.corpus.tokenizer import END_OF_TEXT, load_tokenizer
from pipeline.corpus.tokenizer_json import tokenizer_json
from pipeline.corpus.vocabularies import huggingface_tokenizer, train_bpe
from pipeline.curves import Curves, SampleLog, typed
from pipeline.evaluation.benchmarks import build_questions
from pipeline.files import sha256_of, write_json
from pipeline.model_directory import load_model, match_vocabulary, save_model
from pipeline.probes import benchmark_columns
from pipeline.reporting import report
from pipeline.run_state import FinishedRun, remove_recorded, run_key
from pipeline.tracking import publish
from pipeline.tracking.wandb_run import run_identity
from pipeline.training.checkpoint import CheckpointManifest
from tests.corpus.conftest import DOCUMENTS, data_params, write_corpus
from tests.evaluation.small import BYTES, many_items, tiny_model, write_benchmarks
from tests.reporting import fixtures
from tests.training.conftest import trainer, write_shards

ROOT = Path(__file__).parents[2]
SHARDS, MODEL, BENCHMARKS, RAW = Path("data/shards"), Path("data/model"), Path("data/benchmarks"), Path("data/raw")
STATE, DOWNLOAD = Path(".runs/train-1"), Path(".runs/download-1")
VOCABULARIES = ("vocab.json", "added_tokens.json", "tokenizer.json")  # each in a directory models/<name>
CHECKPOINTS = STATE / "checkpoints"
CHECKPOINT = CHECKPOINTS / "step_00000005"
SMALL: Any = {"train": {"max_steps": 6, "grad_clip": 0.0}, "config": {"n_layer": 1}}


def make_project(root: Path) -> None:
    """Writes the project, with a valid file of every kind."""
    fixtures.write_run(root, fixtures.curves(40))
    with chdir(root):
        shutil.copy(ROOT / "params.yaml", PARAMS_FILE)
        (root / "recipes").mkdir()
        shutil.copy(ROOT / "recipes/shakespeare-char.yaml", "recipes/small.yaml")
        _write_sources()
        text = "The quick brown fox jumps over the lazy dog, and the dog does not mind it at all. " * 80
        write_corpus(RAW, [text, *(f"{n} {text[n:]}" for n in range(8))], val_every=2, row_group_bytes=20_000)
        write_shards(SHARDS)
        write_benchmarks(BENCHMARKS, next_lines=many_items(4))
        save_model(MODEL, tiny_model(), SHARDS / "tokenizer")
        with patch("pipeline.training.trainer.peak_flops", return_value=None):
            trainer(SHARDS, CHECKPOINTS, **SMALL).run()
        shutil.rmtree(CHECKPOINTS / "step_00000006")
        convert.export_main([str(MODEL), "models/hf"])
        _write_vocabularies(tokenizer_json(train_bpe([text], 280)))
        FinishedRun(output="reports/train/summary.json", md5="0" * 32).write(STATE / "finished.json")
        run_identity(STATE / "wandb.json", "name", None, "offline")
        shutil.copy("reports/train/curves.csv", STATE)
        TrainingSamples(samples=[TrainingSample(step=2, tokens=16, text="To be")]).write(STATE / "samples.json")
        with patch.object(sources, "remove_directory"):  # as if killed after the last part
            _download("texts/part.jsonl")
        shutil.rmtree("data/new")


def _write_sources() -> None:
    Path("texts").mkdir()
    lines = "".join(json.dumps({"text": text, "n": n}) + "\n" for n, text in enumerate(DOCUMENTS)).encode()
    for name in ("a.jsonl", "part.jsonl"):
        Path("texts", name).write_bytes(lines)
    Path("texts/a.txt").write_text(DOCUMENTS[2])
    Path("texts/a.jsonl.gz").write_bytes(gzip.compress(lines))
    with pa.output_stream("texts/a.jsonl.zst", compression="zstd") as out:
        out.write(lines)
    pq.write_table(pa.table({"text": DOCUMENTS, "n": list(range(len(DOCUMENTS)))}), "texts/a.parquet")


def _write_vocabularies(values: dict[str, Any]) -> None:
    for name in VOCABULARIES:
        directory = Path("models", name)
        directory.mkdir()
        if name != "tokenizer.json":
            write_json(directory / "vocab.json", values["model"]["vocab"])
            (directory / "merges.txt").write_text("\n".join(map(" ".join, values["model"]["merges"])))
    write_json(Path("models/added_tokens.json/added_tokens.json"), {END_OF_TEXT: values["added_tokens"][0]["id"]})
    write_json(Path("models/tokenizer.json/tokenizer.json"), values)


def _download(name: str) -> RawCorpus:
    return sources.fetch(data_params(files=[name]), Path(), Path("data/new"), DOWNLOAD, part_bytes=500)


def use_params() -> None:
    """What the stages do with them before work starts, and `plan`."""
    sections = validate(load_yaml(PARAMS_FILE))
    sections["data"].model_dump_json().encode()
    for text in (*sections["sample"].prompts, sections["sample"].surprisal_text):  # type: ignore[attr-defined]
        BYTES.encode_ordinary(text or "")
    run_key({name: sections[name].model_dump() for name in ("model", "train")}, SHARDS / "manifest.json", None, 1)
    plan.main([])


def use_recipe() -> None:
    overlay = recipes.apply_recipe("small")
    recipes.flags({key: value for key, value in overlay.changes.items() if isinstance(value, int | float | bool)})
    recipes.with_changes(PARAMS_FILE.read_text(), overlay.changes)
    plan.main(["--recipe", "small"])


def use_shards() -> None:
    tokenizer = load_tokenizer(SHARDS / "tokenizer")
    assert tokenizer.decode(tokenizer.encode_ordinary("To be, or\n")) == "To be, or\n"
    for stream in (open_split(SHARDS, "train"), open_split(SHARDS, "val")):
        stream.read(0, len(stream))
    verify(SHARDS)
    plan.main([])


def use_raw() -> None:
    corpus = RawCorpus.read(RAW / "source.json")
    for files in corpus.splits.values():
        list(read_texts(RAW, files))
    list(next_lines(RAW, None))


def use_benchmarks() -> None:
    for task in BenchmarkSource.read(BENCHMARKS / "source.json").tasks:
        build_questions(task, read_items(items_file(BENCHMARKS, task), task), BYTES)


def use_checkpoint() -> None:
    """Resumes and trains one more step."""
    with patch("pipeline.training.trainer.peak_flops", return_value=None):
        trainer(SHARDS, CHECKPOINTS, **SMALL).run()


def use_model() -> None:
    model, tokenizer = load_model(MODEL), load_tokenizer(MODEL / "tokenizer")
    match_vocabulary(model, tokenizer, MODEL)
    model(torch.zeros((1, 1), dtype=torch.long))
    convert.export_main([str(MODEL), "models/exported"])


def use_huggingface() -> None:
    convert.import_main(["models/hf", "models/imported"])
    load_model(Path("models/imported"))(torch.zeros((1, 1), dtype=torch.long))


def use_vocabulary(name: str) -> None:
    assert huggingface_tokenizer(Path("models", name))


def use_report() -> None:
    """Writes the report without charts, and makes the values for W&B."""
    chart = SimpleNamespace(name="accuracy", alt="")
    with (
        patch.object(report, "run_charts", return_value=[chart]),
        patch.object(pages, "write_svgs"),
        patch.object(pages, "html_page", return_value=""),
    ):
        report.write_report(Path(), "A report", 0.9)
    publish.last_values(Curves(publish.CURVES, publish.CURVES))
    publish.summary_values(RunSummary.read(publish.SUMMARY))
    publish.evaluation_values(EvaluationMetrics.read(publish.METRICS))
    publish.samples_table(Samples.read(publish.SAMPLES))


def use_state() -> None:
    """What training does with the state of its own and of other runs."""
    remove_recorded(Path(".runs"))
    for mode in ("disabled", "offline"):
        run_identity(STATE / "wandb.json", "name", None, mode)
    curves = Curves(STATE / "curves.csv", publish.CURVES, benchmark_columns(BENCHMARKS))
    curves.rewind(5)
    assert all("step" in typed(row) for row in curves.rows())
    SampleLog(STATE / "samples.json", publish.TRAINING_SAMPLES).rewind(5)


def reseal() -> None:
    """Gives the checkpoint the hashes of its damaged files, so that their content is what is read."""
    path = CHECKPOINT / "manifest.json"
    values = json.loads(path.read_bytes())
    values["files"] = {name: sha256_of(CHECKPOINT / name) for name in values["files"]}
    write_json(path, {**values, "sha256": CheckpointManifest(**values).digest()})


def _each(directory: Path | str, names: Sequence[str], use: Callable[[], object]) -> dict[str, Callable[[], object]]:
    return {str(Path(directory, name)): use for name in names}


# File -> what the product does with it. Charts take seconds and are left out.
KINDS: dict[str, Callable[[], object]] = {
    "params.yaml": use_params,
    "recipes/small.yaml": use_recipe,
    "dvc.lock": use_report,
    **{name: partial(_download, name) for name in (f"texts/a{suffix}" for suffix in SUFFIXES)},
    f"{DOWNLOAD}/000000/part.json": partial(_download, "texts/part.jsonl"),
    **_each(RAW, ["source.json", "train/000000.parquet", "val/000000.parquet"], use_raw),
    **_each(BENCHMARKS, ["next_lines.jsonl", "source.json"], use_benchmarks),
    **_each(SHARDS, ["manifest.json", "train_000000.npy"], use_shards),
    **_each(SHARDS / "tokenizer", ["config.json", "ranks.tiktoken"], use_shards),
    **_each(CHECKPOINT, ["manifest.json", "weights.pt", "optimizer.pt", "rng.pt"], use_checkpoint),
    **_each(STATE, ["curves.csv", "samples.json", "wandb.json", "finished.json"], use_state),
    **_each(MODEL, ["config.json", "model.safetensors", "tokenizer/config.json"], use_model),
    **_each("models/hf", ["config.json", "model.safetensors"], use_huggingface),
    **{f"models/{name}/{name}": partial(use_vocabulary, name) for name in VOCABULARIES},
    **_each("reports/train", ["summary.json", "curves.csv"], use_report),
    **_each("reports", ["evaluate/metrics.json", "sample/samples.json"], use_report),
}
