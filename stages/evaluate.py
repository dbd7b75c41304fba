"""Measures the trained model: `python -m pipeline launch stages.evaluate`, on every visible GPU or on the CPU's cores.

Reads data/model, data/shards and data/benchmarks. Writes reports/evaluate/metrics.json: the loss over the whole
validation split, the accuracies on each benchmark, and the share of correct answers to held-out conversations. The
numbers do not depend on the number of processes.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import distributed
from pipeline.artifacts import SOURCE_FILE, BenchmarkMetrics, BenchmarkSource, EvaluationMetrics, ValidationMetrics
from pipeline.config import read_sections
from pipeline.corpus.benchmarks import TASKS, items_file, read_items
from pipeline.corpus.chat import load_chat
from pipeline.corpus.shards import open_split
from pipeline.corpus.tokenizer import TOKENIZER_DIRECTORY, load_tokenizer
from pipeline.evaluation.benchmarks import answer, build_questions, endings
from pipeline.evaluation.exact_match import build_requests, exact_match
from pipeline.evaluation.params import EvaluateParams
from pipeline.evaluation.val_loss import ValLoss, validation_loss
from pipeline.log import UserError, cli_errors, logger
from pipeline.model_directory import check_tokenizer, load_model, match_vocabulary
from pipeline.progress import Progress
from pipeline.runtime import RuntimeParams

MODEL, SHARDS, BENCHMARKS = Path("data/model"), Path("data/shards"), Path("data/benchmarks")
METRICS = Path("reports/evaluate/metrics.json")


def main() -> None:
    """Evaluates on all ranks; rank 0 writes."""
    params, runtime = read_sections(EvaluateParams, RuntimeParams)
    stream = open_split(SHARDS, "val")
    tokenizer = load_tokenizer(SHARDS / TOKENIZER_DIRECTORY)
    check_tokenizer(MODEL, stream.manifest.tokenizer_sha256, str(MODEL))
    tasks = BenchmarkSource.read(BENCHMARKS / SOURCE_FILE).tasks
    questions = {
        task: build_questions(task, read_items(items_file(BENCHMARKS, task), task), tokenizer) for task in tasks
    }
    chat = load_chat(SHARDS / TOKENIZER_DIRECTORY, tokenizer)
    if params.checker and not chat:
        raise UserError(f"evaluate.checker ({params.checker}): {SHARDS} holds no conversations: set it to null")
    with distributed.start(runtime.collective_timeout) as group, group.name_absent_ranks(lambda: "the evaluation"):
        model = load_model(MODEL, group.device)
        match_vocabulary(model, tokenizer, MODEL)
        common: dict[str, Any] = {
            "batch_size": runtime.micro_batch_size,
            "dtype": distributed.autocast_dtype(params.dtype, group.device),
            "group": group,
        }
        texts = len(stream.document_starts) if stream.has_mask else 1  # read alone; nothing predicts the first token
        with Progress("validation loss", total=len(stream) - texts, unit="tok") as progress:
            loss = validation_loss(
                model, stream, tokenizer, tokens=None, stride=params.stride, progress=progress, **common
            )
        results: dict[str, BenchmarkMetrics] = {}
        for task, asked in questions.items():
            with Progress(TASKS[task].name, total=endings(asked), unit="endings") as progress:
                results[task] = answer(model, asked, progress=progress, **common).metrics(task)
        if chat and params.checker:
            requests = build_requests(stream, chat, params.checker_items)
            with Progress("exact match", total=len(requests), unit="conversations") as progress:
                results["exact_match"] = exact_match(model, requests, chat, params.checker, progress=progress, **common)
        if group.is_main:
            written = metrics(loss, results)
            written.write(METRICS)
            logger.info(
                f"validation: loss {loss.nats_per_token:.4f}, perplexity {loss.perplexity:.2f}, "
                f"{loss.bits_per_byte:.4f} bits per byte over {loss.tokens:,} tokens"
            )
            for benchmark in written.benchmarks.values():
                for metric in benchmark.metrics:
                    value, error = benchmark.value(metric)
                    logger.info(
                        f"{benchmark.name}: {metric} {value:.4f} ± {error:.4f} on {benchmark.items:,} items "
                        f"({benchmark.truncated} truncated; chance {benchmark.chance:.2f})"
                    )


def metrics(loss: ValLoss, results: Mapping[str, BenchmarkMetrics]) -> EvaluationMetrics:
    """The content of metrics.json. Raises UserError where the loss is not finite or too large for a perplexity."""
    if not math.isfinite(loss.perplexity):
        raise UserError(f"{MODEL}: validation loss ({loss.nats_per_token}) is not usable: the weights are broken")
    val = ValidationMetrics(
        loss=loss.nats_per_token, perplexity=loss.perplexity, bpb=loss.bits_per_byte, tokens=loss.tokens
    )
    return EvaluationMetrics(val=val, benchmarks=dict(results))


if __name__ == "__main__":
    with cli_errors("evaluate", __doc__):
        main()
