"""What training measures on its way: validation loss, multiple choice, samples.

Probes cannot touch the weights: what they call reads the model alone and leaves its mode and the random state as they
were. That is why the train stage does not list this module, nor what it imports, among its dependencies; a test proves
it.
"""

import textwrap
from dataclasses import dataclass
from pathlib import Path

import tiktoken
import torch

from pipeline.config import read_sections
from pipeline.corpus.hellaswag_items import ITEMS_FILE, Item, read_items, read_source
from pipeline.corpus.shards import TokenStream, open_split
from pipeline.distributed import Group, autocast_dtype
from pipeline.evaluation.hellaswag import score_items, subset
from pipeline.evaluation.val_loss import validation_loss
from pipeline.generation.params import SampleParams
from pipeline.generation.sampler import generate
from pipeline.log import logger
from pipeline.model.gpt import GPT
from pipeline.runtime import RuntimeParams
from pipeline.training.metrics import Row
from pipeline.training.params import TrainParams
from pipeline.training.trainer import Probe

METRICS = ("acc", "acc_norm", "acc_norm_token")
SHOWN_TOKENS = 60


@dataclass(frozen=True)
class ValLossProbe:
    """Validation loss over the first tokens of the split, by the code that the evaluate stage uses for all of it."""

    interval: int
    tokens: int
    batch_size: int
    stream: TokenStream
    encoding: tiktoken.Encoding
    dtype: torch.dtype
    group: Group

    def measure(self, model: GPT, step: int) -> Row:
        loss = validation_loss(
            model,
            self.stream,
            self.encoding,
            tokens=self.tokens,
            stride=None,
            batch_size=self.batch_size,
            dtype=self.dtype,
            group=self.group,
        )
        logger.info("step %d: validation loss %.4f, %.3f bits per byte", step, loss.nats_per_token, loss.bits_per_byte)
        return {"val/loss": loss.nats_per_token, "val/bpb": loss.bits_per_byte}


@dataclass(frozen=True)
class ChoiceProbe:
    """Accuracy on a fixed subset of the multiple-choice items."""

    interval: int
    name: str
    items: list[Item]
    batch_size: int
    encoding: tiktoken.Encoding
    dtype: torch.dtype
    group: Group

    def measure(self, model: GPT, step: int) -> Row:
        result = score_items(
            model, self.encoding, self.items, batch_size=self.batch_size, dtype=self.dtype, group=self.group
        )
        logger.info(
            "step %d: %s acc_norm %.3f ± %.3f on %d items",
            step,
            self.name,
            result.accuracy("acc_norm"),
            result.stderr("acc_norm"),
            result.items,
        )
        return {f"{self.name}/{metric}": result.accuracy(metric) for metric in METRICS}


@dataclass(frozen=True)
class SampleProbe:
    """The beginning of one continuation of the first prompt that has a text, printed by rank 0."""

    interval: int
    sample: SampleParams
    encoding: tiktoken.Encoding
    dtype: torch.dtype
    group: Group

    def measure(self, model: GPT, step: int) -> Row:
        if self.group.is_main:
            prompt = next((prompt for prompt in self.sample.prompts if prompt), "")
            (tokens,) = generate(
                model,
                [self.encoding.encode_ordinary(prompt)],
                max_new_tokens=min(self.sample.max_new_tokens, SHOWN_TOKENS),
                temperature=self.sample.temperature,
                top_k=self.sample.top_k,
                top_p=self.sample.top_p,
                seed=self.sample.seed,
                eot_id=self.encoding.eot_token,
                dtype=self.dtype,
            )
            logger.info("step %d: sample\n%s", step, textwrap.indent(prompt + self.encoding.decode(tokens), "  | "))
        return {}


def training_probes(
    train: TrainParams, runtime: RuntimeParams, group: Group, encoding: tiktoken.Encoding, shards: Path, hellaswag: Path
) -> list[Probe]:
    """The probes that the `train` section asks for, the same on every rank."""
    (sample,) = read_sections(SampleParams)
    dtype, batch_size = autocast_dtype(runtime.dtype, group.device), runtime.micro_batch_size
    val = open_split(shards, "val")
    items = subset(read_items(hellaswag / ITEMS_FILE), train.hellaswag_items)
    key = read_source(hellaswag).key
    return [
        ValLossProbe(train.eval_interval, train.eval_tokens, batch_size, val, encoding, dtype, group),
        ChoiceProbe(train.hellaswag_interval, key, items, batch_size, encoding, dtype, group),
        SampleProbe(train.sample_interval, sample, encoding, dtype, group),
    ]


def choice_columns(hellaswag: Path) -> tuple[str, ...]:
    """The columns of curves.csv that the multiple-choice probe fills."""
    key = read_source(hellaswag).key
    return tuple(f"{key}/{metric}" for metric in METRICS)
