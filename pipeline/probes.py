"""What training measures in its loop: validation loss, multiple choice, samples.

Probes only read the model, and leave its mode and the random state as they were. So the train stage does not list this
module, or what it imports, among its deps; a test compares the weights with and without them.
"""

import textwrap
from pathlib import Path

import tiktoken

from pipeline.artifacts import SOURCE_FILE, ItemSource, SampleSettings
from pipeline.config import read_sections
from pipeline.corpus.hellaswag import ITEMS_FILE, read_items
from pipeline.corpus.shards import open_split
from pipeline.corpus.tokenizer import encode_text
from pipeline.distributed import Group, autocast_dtype
from pipeline.evaluation.hellaswag import METRICS, answer, build_requests, subset
from pipeline.evaluation.val_loss import validation_loss
from pipeline.generation.params import SampleParams
from pipeline.generation.sampling import generate
from pipeline.log import logger
from pipeline.model.gpt import GPT
from pipeline.runtime import RuntimeParams
from pipeline.training.metrics import Row
from pipeline.training.params import TrainParams
from pipeline.training.trainer import Probe

SAMPLE_TOKENS = 60  # at most, of a sample in the log


def training_probes(
    train: TrainParams,
    runtime: RuntimeParams,
    group: Group,
    tokenizer: tiktoken.Encoding,
    shards: Path,
    hellaswag: Path,
) -> list[Probe]:
    """The probes that the `train` section asks for, the same on every rank. Each uses the code of a later stage."""
    (sample,) = read_sections(SampleParams)
    dtype, batch_size = autocast_dtype(runtime.dtype, group.device), runtime.micro_batch_size
    val = open_split(shards, "val")

    def val_loss(model: GPT, step: int) -> Row:
        """Over the first train.eval_tokens of the validation split."""
        loss = validation_loss(
            model,
            val,
            tokenizer,
            tokens=train.eval_tokens,
            stride=None,
            batch_size=batch_size,
            dtype=dtype,
            group=group,
        )
        logger.info("step %d: validation loss %.4f, %.3f bits per byte", step, loss.nats_per_token, loss.bits_per_byte)
        return {"val/loss": loss.nats_per_token, "val/bpb": loss.bits_per_byte}

    def log_sample(model: GPT, step: int) -> Row:
        """Logs the beginning of a continuation of the first non-empty prompt."""
        if group.is_main:
            prompt = next((prompt for prompt in sample.prompts if prompt), "")
            fields = sample.model_dump(include=set(SampleSettings.model_fields))
            fields["max_new_tokens"] = min(sample.max_new_tokens, SAMPLE_TOKENS)
            settings = SampleSettings(**fields)
            prompts, eot_id = [encode_text(tokenizer, prompt).tolist()], tokenizer.eot_token
            ((tokens,),) = generate(model, prompts, settings, eot_id=eot_id, dtype=dtype, samples_per_prompt=1)
            text = textwrap.indent(prompt + tokenizer.decode(tokens), "  | ")
            logger.info("step %d: sample\n%s", step, text)
        return {}

    probes = [Probe(train.eval_interval, val_loss), Probe(train.sample_interval, log_sample)]
    if not (hellaswag / ITEMS_FILE).is_file():
        if train.hellaswag_interval:
            logger.info("%s not found: skipping the multiple-choice probe during training", hellaswag / ITEMS_FILE)
        return probes
    requests = build_requests(subset(read_items(hellaswag / ITEMS_FILE), train.hellaswag_items), tokenizer)
    key = ItemSource.read(hellaswag / SOURCE_FILE).key

    def choice(model: GPT, step: int) -> Row:
        """Accuracy on a fixed subset of the multiple-choice items."""
        result = answer(model, requests, batch_size=batch_size, dtype=dtype, group=group)
        logger.info(
            "step %d: %s acc_norm %.3f ± %.3f on %d items",
            step,
            key,
            result.accuracy("acc_norm"),
            result.stderr("acc_norm"),
            result.items,
        )
        return {f"{key}/{metric}": result.accuracy(metric) for metric in METRICS}

    return [*probes, Probe(train.hellaswag_interval, choice)]


def choice_columns(hellaswag: Path) -> tuple[str, ...]:
    """The columns of curves.csv that the multiple-choice probe fills; none without its items."""
    if not (hellaswag / ITEMS_FILE).is_file():
        return ()
    key = ItemSource.read(hellaswag / SOURCE_FILE).key
    return tuple(f"{key}/{metric}" for metric in METRICS)
