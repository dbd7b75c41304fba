"""Measures the trained model: `python -m pipeline.launch stages.evaluate`, on every visible GPU or on the CPU's cores.

Reads data/model, data/shards and data/hellaswag. Writes reports/evaluate/metrics.json: validation loss over every token
of the validation split, and HellaSwag (or the items that stand in for it) under both protocols. The numbers do not
depend on the number of processes.
"""

from pathlib import Path
from typing import Any

from pipeline import distributed
from pipeline.config import read_sections
from pipeline.corpus import encodings
from pipeline.corpus.hellaswag_items import ITEMS_FILE, ItemSource, read_items, read_source
from pipeline.corpus.shards import ENCODING_DIRECTORY, open_split
from pipeline.evaluation.hellaswag import HellaswagResult, score_items, subset
from pipeline.evaluation.params import EvaluateParams
from pipeline.evaluation.val_loss import ValLoss, validation_loss
from pipeline.files import write_json
from pipeline.log import Stop, clear_errors, logger
from pipeline.model.files import ENCODING, load_model, match_vocabulary
from pipeline.progress import Progress
from pipeline.runtime import RuntimeParams

MODEL, SHARDS, HELLASWAG = Path("data/model"), Path("data/shards"), Path("data/hellaswag")
METRICS = Path("reports/evaluate/metrics.json")


def main() -> None:
    """Evaluates on all ranks; rank 0 writes."""
    params, runtime = read_sections(EvaluateParams, RuntimeParams)
    stream = open_split(SHARDS, "val")
    encoding = encodings.load(SHARDS / ENCODING_DIRECTORY)
    check_same_encoding(MODEL / ENCODING, SHARDS / ENCODING_DIRECTORY)
    source = read_source(HELLASWAG)
    items = subset(read_items(HELLASWAG / ITEMS_FILE), params.hellaswag_items)
    with distributed.start(runtime.collective_timeout) as group:
        model = load_model(MODEL, group.device)
        match_vocabulary(model, encoding, MODEL)
        dtype = distributed.autocast_dtype(params.dtype, group.device)
        with Progress("validation loss", total=len(stream) - 1, unit="tok") as progress:
            loss = validation_loss(
                model,
                stream,
                encoding,
                tokens=None,
                stride=params.stride,
                batch_size=runtime.micro_batch_size,
                dtype=dtype,
                group=group,
                progress=progress,
            )
        with Progress(source.name, total=8 * len(items), unit="endings") as progress:
            result = score_items(
                model,
                encoding,
                items,
                batch_size=runtime.micro_batch_size,
                dtype=dtype,
                group=group,
                progress=progress,
            )
        if group.is_main:
            values = metrics(loss, result, source)
            write_json(METRICS, values)
            report(loss, result, source)


def check_same_encoding(model: Path, shards: Path) -> None:
    """Raises Stop where a model that knows its encoding was trained with another one than the shards'."""
    if not model.is_dir():
        return  # an imported model: its vocabulary is all that can be compared, and is
    theirs, ours = encodings.load(model), encodings.load(shards)
    if encodings.identity(theirs) != encodings.identity(ours):
        raise Stop(
            f"{model}: encoding {theirs.name} ({theirs.n_vocab} ids) is not that of {shards}: {ours.name} "
            f"({ours.n_vocab} ids): train on these shards, or tokenize with the model's encoding"
        )


def metrics(loss: ValLoss, result: HellaswagResult, source: ItemSource) -> dict[str, dict[str, Any]]:
    """What metrics.json holds. Raises ValueError where the loss is no number: the model's weights are broken."""
    choices = {name.partition("/")[2]: value for name, value in result.metrics(source.key).items()}
    return {
        "val": {
            "loss": loss.nats_per_token,
            "perplexity": loss.perplexity,
            "bpb": loss.bits_per_byte,
            "tokens": loss.tokens,
        },
        source.key: {"name": source.name, "is_hellaswag": source.is_hellaswag, **choices},
    }


def report(loss: ValLoss, result: HellaswagResult, source: ItemSource) -> None:
    """Says in a few lines what was found."""
    logger.info(
        "validation: loss %.4f, perplexity %.2f, %.4f bits per byte over %s tokens",
        loss.nats_per_token,
        loss.perplexity,
        loss.bits_per_byte,
        f"{loss.tokens:,}",
    )
    for metric in result.answers:
        logger.info(
            "%s: %s %.4f ± %.4f on %s items (%d cut to the context; chance 0.25)",
            source.name,
            metric,
            result.accuracy(metric),
            result.stderr(metric),
            f"{result.items:,}",
            result.truncated,
        )


if __name__ == "__main__":
    with clear_errors("evaluate"):
        main()
