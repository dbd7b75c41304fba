"""What training measures on its way: validation loss, multiple choice, samples.

Probes cannot touch the weights: what they call reads the model alone and leaves its mode and the random state as they
were. That is why the train stage does not list this module, nor what it imports, among its dependencies; a test proves
it.
"""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tiktoken
import torch

from pipeline.config import read_sections
from pipeline.corpus.hellaswag_items import ITEMS_FILE, read_items, read_source
from pipeline.corpus.shards import open_split
from pipeline.distributed import Group, autocast_dtype
from pipeline.evaluation.hellaswag import HellaswagResult, score_items, subset
from pipeline.evaluation.val_loss import ValLoss, validation_loss
from pipeline.generation.params import SampleParams
from pipeline.generation.sampler import Settings, generate
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
    score: Callable[[GPT], ValLoss]

    def measure(self, model: GPT, step: int) -> Row:
        loss = self.score(model)
        logger.info("step %d: validation loss %.4f, %.3f bits per byte", step, loss.nats_per_token, loss.bits_per_byte)
        return {"val/loss": loss.nats_per_token, "val/bpb": loss.bits_per_byte}


@dataclass(frozen=True)
class ChoiceProbe:
    """Accuracy on a fixed subset of the multiple-choice items."""

    interval: int
    name: str
    score: Callable[[GPT], HellaswagResult]

    def measure(self, model: GPT, step: int) -> Row:
        result = self.score(model)
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
    """A short text, written and printed by rank 0."""

    interval: int
    write: Callable[[GPT], str]
    group: Group

    def measure(self, model: GPT, step: int) -> Row:
        if self.group.is_main:
            logger.info("step %d: sample\n%s", step, textwrap.indent(self.write(model), "  | "))
        return {}


def beginning(model: GPT, sample: SampleParams, encoding: tiktoken.Encoding, dtype: torch.dtype) -> str:
    """The first prompt that has a text, with the beginning of one continuation."""
    prompt = next((prompt for prompt in sample.prompts if prompt), "")
    length = min(sample.max_new_tokens, SHOWN_TOKENS)
    settings = Settings(length, sample.temperature, sample.top_k, sample.top_p, sample.seed)
    prompts, eot_id = [encoding.encode_ordinary(prompt)], encoding.eot_token
    ((tokens,),) = generate(model, prompts, settings, eot_id=eot_id, dtype=dtype, samples_per_prompt=1)
    return prompt + encoding.decode(tokens)


def training_probes(
    train: TrainParams, runtime: RuntimeParams, group: Group, encoding: tiktoken.Encoding, shards: Path, hellaswag: Path
) -> list[Probe]:
    """The probes that the `train` section asks for, the same on every rank."""
    (sample,) = read_sections(SampleParams)
    dtype, batch_size = autocast_dtype(runtime.dtype, group.device), runtime.micro_batch_size
    alike: dict[str, Any] = {"encoding": encoding, "batch_size": batch_size, "dtype": dtype, "group": group}
    val = open_split(shards, "val")
    items = subset(read_items(hellaswag / ITEMS_FILE), train.hellaswag_items)
    key = read_source(hellaswag).key
    loss_of = partial(validation_loss, stream=val, tokens=train.eval_tokens, stride=None, **alike)
    answers_of = partial(score_items, items=items, **alike)
    return [
        ValLossProbe(train.eval_interval, loss_of),
        ChoiceProbe(train.hellaswag_interval, key, answers_of),
        SampleProbe(train.sample_interval, partial(beginning, sample=sample, encoding=encoding, dtype=dtype), group),
    ]


def choice_columns(hellaswag: Path) -> tuple[str, ...]:
    """The columns of curves.csv that the multiple-choice probe fills."""
    key = read_source(hellaswag).key
    return tuple(f"{key}/{metric}" for metric in METRICS)
