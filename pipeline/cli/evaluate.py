"""Evaluates models without training: validation loss and benchmarks, several models side by side.

    python -m pipeline evaluate data/model
    python -m pipeline evaluate data/model gpt2 path/to/hf --tasks hellaswag lambada --directory items > table.md

A model is a model directory, a Hugging Face GPT-2 (with GPT-2's tokenizer, unless the directory has another), or a name
in models/. The accuracies of several models are compared with the first one's by a paired t-test over the items. The
validation loss is left out for a model whose tokenizer is not that of the shards. Standard output has only the tables.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import markdown as md
from pipeline.artifacts import MANIFEST_FILE, BenchmarkMetrics
from pipeline.cli.arguments import positive_int
from pipeline.cli.generate import load
from pipeline.comparison.statistics import ALPHA, holm, t_test
from pipeline.config import MODELS
from pipeline.corpus.benchmarks import TASKS, Item, items_file, read_items, subset
from pipeline.corpus.shards import TokenStream, open_split
from pipeline.corpus.tokenizer import fingerprint
from pipeline.distributed import autocast_dtype, start
from pipeline.evaluation.benchmarks import BenchmarkResult, answer, build_questions, endings
from pipeline.evaluation.val_loss import ValLoss, validation_loss
from pipeline.formatting import DASH, exact, fixed, percent, significant
from pipeline.log import UserError, logger
from pipeline.model_directory import weights_directory
from pipeline.progress import Progress
from pipeline.reporting.figures import GPT2_HELLASWAG, GPT2_ITEMS

BATCH_SIZE = 16  # full sequences per forward pass


@dataclass(frozen=True)
class Evaluated:
    """A model's results."""

    name: str
    loss: ValLoss | None
    """None without shards of its tokenizer."""
    results: Mapping[str, BenchmarkResult]
    """By task."""


def main(arguments: list[str]) -> None:
    """Evaluates each model, then prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m pipeline evaluate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("models", nargs="+", help="model directories or names in models/")
    parser.add_argument(
        "--shards", type=Path, default=Path("data/shards"), help="shards for the validation loss (default: data/shards)"
    )
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path("data/benchmarks"),
        help="directory with the items, TASK.jsonl (default: data/benchmarks)",
    )
    parser.add_argument("--tasks", nargs="*", choices=TASKS, help="benchmarks (default: all in the directory)")
    parser.add_argument("--items", type=positive_int, help="size of a fixed random subset of each task (default: all)")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="float32",
        help="data type of matrix products (default: float32)",
    )
    options = parser.parse_args(arguments)

    with redirect_stdout(sys.stderr):  # log lines are not part of the tables
        directories = {name: find_model(name) for name in options.models}
        if options.tasks is None:
            options.tasks = [task for task in TASKS if items_file(options.directory, task).is_file()]
        items = {
            task: subset(read_items(items_file(options.directory, task), task), options.items) for task in options.tasks
        }
        stream = open_split(options.shards, "val") if (options.shards / MANIFEST_FILE).is_file() else None
        if stream is None:
            logger.info("%s: no shards, so no validation loss", options.shards)
        evaluated = [evaluate(name, path, stream, items, options.dtype) for name, path in directories.items()]
    print(results_table(evaluated))
    if len(evaluated) > 1 and items:
        print(f"\n{differences_table(evaluated)}")


def find_model(name: str) -> Path:
    """The directory with the weights of a model. Raises UserError if there is none."""
    if Path(name).is_dir():
        return Path(name)
    if (MODELS / name).exists():
        return weights_directory(MODELS / name)
    raise UserError(f"{name}: neither a model directory nor a name in {MODELS}/")


def evaluate(
    name: str, directory: Path, stream: TokenStream | None, items: Mapping[str, Sequence[Item]], dtype: str
) -> Evaluated:
    """The results of the model in a directory."""
    with start(timeout_s=60) as group:
        model, tokenizer = load(directory, group.device)
        common: dict[str, Any] = {
            "batch_size": BATCH_SIZE,
            "dtype": autocast_dtype(dtype, group.device),
            "group": group,
        }
        loss = None
        if stream is not None and (own := fingerprint(tokenizer)) != (theirs := stream.manifest.tokenizer_sha256):
            shards = f"{stream.directory} ({stream.manifest.tokenizer_name}, {theirs[:12]})"
            used = f"{tokenizer.name} ({own[:12]})"
            logger.info("%s: no validation loss: its tokenizer %s is not that of %s", name, used, shards)
        elif stream is not None:
            with Progress(f"{name}: validation loss", total=len(stream) - 1, unit="tok") as progress:
                loss = validation_loss(model, stream, tokenizer, tokens=None, stride=None, progress=progress, **common)
        results = {}
        for task, asked in items.items():
            questions = build_questions(task, asked, tokenizer)
            with Progress(f"{name}: {TASKS[task].name}", total=endings(questions), unit="endings") as progress:
                results[task] = answer(model, questions, progress=progress, **common)
    return Evaluated(name, loss, results)


def results_table(evaluated: Sequence[Evaluated]) -> str:
    """A row for each metric, a column for each model; GPT-2's published accuracies beside all of HellaSwag's items."""
    rows: list[list[str]] = []
    if any(model.loss for model in evaluated):
        for label, name in (("Validation loss (nats per token)", "nats_per_token"), ("Bits per byte", "bits_per_byte")):
            rows.append([label, *(fixed(getattr(model.loss, name, None), 4) for model in evaluated)])
    references: list[str] = []
    for task, first in evaluated[0].results.items():
        records = [model.results[task].metrics(task) for model in evaluated]
        for metric in records[0].metrics:
            chance = percent(first.chance, 0) if metric in first.answers and first.chance else DASH
            row = [
                f"{TASKS[task].name} " + md.code(metric) + f", {exact(first.items)} items",
                *(_value(r, metric) for r in records),
                chance,
            ]
            if task == "hellaswag" and first.items == GPT2_ITEMS:
                references = list(GPT2_HELLASWAG[metric])
                row += [percent(value, 2) for value in GPT2_HELLASWAG[metric].values()]
            rows.append(row)
    header = ["", *(model.name for model in evaluated)]
    header += ["Chance", *(f"{name} (published)" for name in references)] if evaluated[0].results else []
    return md.table(header, [row + [DASH] * (len(header) - len(row)) for row in rows])


def _value(record: BenchmarkMetrics, metric: str) -> str:
    if metric not in record.metrics:  # a perplexity too large for a float
        return DASH
    value, error = record.value(metric)
    if metric == "perplexity":
        return f"{significant(value, 4)} ± {significant(error, 2)}"
    return f"{percent(value, 2)} ± {percent(error, 2)}"


def differences_table(evaluated: Sequence[Evaluated]) -> str:
    """Each model's accuracies against the first one's, paired by item."""
    first, *others = evaluated
    tests = []
    for task, base in first.results.items():
        for metric in base.answers:
            for other in others:
                a, b = (_by_item(result, metric) for result in (other.results[task], base))
                difference = f"{100 * (sum(a.values()) - sum(b.values())) / len(a):+.2f} %"
                tests.append((f"{TASKS[task].name} " + md.code(metric), other.name, difference, t_test(a, b)))
    corrected = holm([test.p for *_, test in tests if test])
    left = iter(corrected)
    rows = []
    for label, name, difference, test in tests:
        if test is None:  # no item is answered differently
            rows.append([label, name, difference, DASH, "not statistically significant"])
            continue
        p = next(left)
        result = "statistically significant" if p < ALPHA else "not statistically significant"
        rows.append([label, name, f"{difference} ± {percent(test.error, 2)}", f"{p:.2g}", result])
    header = ["", "Model", f"Difference from {first.name}", f"p (Holm, {len(corrected)} tests)", "Result"]
    return md.table(header, rows, numbers=range(2, 4))


def _by_item(result: BenchmarkResult, metric: str) -> dict[str, float]:
    """Item -> 1 if the answer is correct, else 0."""
    return {str(item): float(right) for item, right in enumerate(result.answers[metric] == result.labels)}
