"""Measures the trained model: `python -m pipeline launch stages.evaluate`, on every visible GPU or on the CPU's cores.

Reads data/model, data/shards and data/hellaswag. Writes reports/evaluate/metrics.json: the loss over the whole
validation split, and the accuracy on HellaSwag (or the items used in its place) under both protocols. The numbers
do not depend on the number of processes.
"""

import math
from pathlib import Path
from typing import Any

from pipeline import distributed
from pipeline.artifacts import SOURCE_FILE, ChoiceMetrics, EvaluationMetrics, ItemSource, ValidationMetrics
from pipeline.config import read_sections
from pipeline.corpus.hellaswag import ITEMS_FILE, read_items
from pipeline.corpus.shards import open_split
from pipeline.corpus.tokenizer import TOKENIZER_DIRECTORY, load_tokenizer
from pipeline.evaluation.hellaswag import HellaswagResult, answer, build_requests, subset
from pipeline.evaluation.params import EvaluateParams
from pipeline.evaluation.val_loss import ValLoss, validation_loss
from pipeline.log import UserError, cli_errors, logger
from pipeline.model_directory import check_tokenizer, load_model, match_vocabulary
from pipeline.progress import Progress
from pipeline.runtime import RuntimeParams

MODEL, SHARDS, HELLASWAG = Path("data/model"), Path("data/shards"), Path("data/hellaswag")
METRICS = Path("reports/evaluate/metrics.json")


def main() -> None:
    """Evaluates on all ranks; rank 0 writes."""
    params, runtime = read_sections(EvaluateParams, RuntimeParams)
    stream = open_split(SHARDS, "val")
    tokenizer = load_tokenizer(SHARDS / TOKENIZER_DIRECTORY)
    check_tokenizer(MODEL, stream.manifest.tokenizer_sha256, str(MODEL))
    source = ItemSource.read(HELLASWAG / SOURCE_FILE)
    items = subset(read_items(HELLASWAG / ITEMS_FILE), params.hellaswag_items)
    with distributed.start(runtime.collective_timeout) as group, group.name_absent_ranks(lambda: "the evaluation"):
        model = load_model(MODEL, group.device)
        match_vocabulary(model, tokenizer, MODEL)
        common: dict[str, Any] = {
            "batch_size": runtime.micro_batch_size,
            "dtype": distributed.autocast_dtype(params.dtype, group.device),
            "group": group,
        }
        with Progress("validation loss", total=len(stream) - 1, unit="tok") as progress:
            loss = validation_loss(
                model, stream, tokenizer, tokens=None, stride=params.stride, progress=progress, **common
            )
        with Progress(source.name, total=8 * len(items), unit="endings") as progress:
            result = answer(model, build_requests(items, tokenizer), progress=progress, **common)
        if group.is_main:
            metrics(loss, result, source).write(METRICS)
            logger.info(
                f"validation: loss {loss.nats_per_token:.4f}, perplexity {loss.perplexity:.2f}, "
                f"{loss.bits_per_byte:.4f} bits per byte over {loss.tokens:,} tokens"
            )
            for metric in result.answers:
                logger.info(
                    f"{source.name}: {metric} {result.accuracy(metric):.4f} ± {result.stderr(metric):.4f} "
                    f"on {result.items:,} items ({result.truncated} truncated; chance 0.25)"
                )


def metrics(loss: ValLoss, result: HellaswagResult, source: ItemSource) -> EvaluationMetrics:
    """The content of metrics.json. Raises UserError where the loss is not finite or too large for a perplexity."""
    if not math.isfinite(loss.perplexity):
        raise UserError(f"{MODEL}: validation loss ({loss.nats_per_token}) is not usable: the weights are broken")
    accuracies = {metric: result.accuracy(metric) for metric in result.answers}
    errors = {f"{metric}_stderr": result.stderr(metric) for metric in result.answers}
    items = {**source.model_dump(), "items": result.items, "truncated": result.truncated}
    choice = ChoiceMetrics.model_validate(items | accuracies | errors)
    val = ValidationMetrics(
        loss=loss.nats_per_token, perplexity=loss.perplexity, bpb=loss.bits_per_byte, tokens=loss.tokens
    )
    return EvaluationMetrics(val=val, **{source.key: choice})


if __name__ == "__main__":
    with cli_errors("evaluate", __doc__):
        main()
