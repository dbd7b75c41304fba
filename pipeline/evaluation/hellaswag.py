"""HellaSwag, or items like it: how often a model finds the true ending likelier than three false ones.

    result = score_items(model, encoding, read_items(path), batch_size=32, dtype=torch.float32, group=group)
    result.metrics("hellaswag")   # hellaswag/acc, hellaswag/acc_norm (harness), hellaswag/acc_norm_token, errors

Rules where the protocols leave a choice:
- Of endings with the same score, the first wins.
- An ending that gives no characters (acc_norm) or no tokens (any) cannot win.
- What does not fit the model's window is cut (pipeline.evaluation.scoring.tasks_of), and the items with such a cut are
  counted in `truncated`.
- The answers are those of float32, as the reference tools have them. In bfloat16 a log-likelihood is off by some tenths
  of a nat, not always the same with other batches; so an item that twice the largest error seen could decide is asked
  again in float32.
Batches are cut before they are dealt to the ranks, so any number of ranks gives the same scores.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import tiktoken
import torch

from pipeline.corpus.hellaswag_items import ENDINGS, Item
from pipeline.distributed import Group
from pipeline.evaluation.protocols import HARNESS, PROTOCOLS, TOKEN_MEAN, Question, ask
from pipeline.evaluation.scoring import Task, batches_of, fits, score_batch, tasks_of
from pipeline.model.gpt import GPT
from pipeline.model.inference import for_inference
from pipeline.progress import Progress

# The metrics that each protocol's questions answer.
METRICS = {HARNESS: ("acc", "acc_norm"), TOKEN_MEAN: ("acc_norm_token",)}
# Nats by which a log-likelihood is taken to be off in bfloat16 at least; docs/evaluation.md has a measurement.
ROUNDING = 0.5
SUBSET_SEED = 20190519  # the same items in every run, whatever its own seed, so that runs can be compared

Answers = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class HellaswagResult:
    """What a model answered, item by item, and how often that was right."""

    labels: Answers
    """The true ending of each item.  # (n,)"""

    answers: dict[str, Answers]
    """Metric (acc, acc_norm, acc_norm_token) -> the ending chosen for each item.  # (n,)"""

    truncated: int
    """Items of which something did not fit the model's window, under either protocol."""

    @property
    def items(self) -> int:
        return len(self.labels)

    def accuracy(self, metric: str) -> float:
        """The share of items answered rightly, 0 to 1."""
        return float(np.mean(self.answers[metric] == self.labels))

    def stderr(self, metric: str) -> float:
        """The standard error of that share: of the mean of a sample, as lm-evaluation-harness has it."""
        accuracy = self.accuracy(metric)
        return math.sqrt(accuracy * (1 - accuracy) / max(self.items - 1, 1))

    def metrics(self, name: str) -> dict[str, float]:
        """`name/acc`, `name/acc_stderr` and so on, and `name/items`."""
        found: dict[str, float] = {f"{name}/items": self.items, f"{name}/truncated": self.truncated}
        for metric in self.answers:
            found[f"{name}/{metric}"] = self.accuracy(metric)
            found[f"{name}/{metric}_stderr"] = self.stderr(metric)
        return found


@torch.no_grad()
def score_items(
    model: GPT,
    encoding: tiktoken.Encoding,
    items: Sequence[Item],
    *,
    batch_size: int,
    dtype: torch.dtype,
    group: Group,
    progress: Progress | None = None,
) -> HellaswagResult:
    """Asks a model all items under both protocols. Called by every rank alike; all get the same result.

    `batch_size`: sequences per forward pass of a rank. `dtype` of matrix products; with another than float32, close
    calls are asked again in float32. `progress`: advanced by the endings, 8 of each item, of every rank's batch when
    this rank has finished its own, so to all on rank 0; asking again is not counted. Touches nothing of the model, nor
    any random state.
    Raises ValueError where the encoding has ids that the model has not.
    """
    if encoding.n_vocab > model.config.text_vocab_size:
        raise ValueError(
            f"encoding {encoding.name} ({encoding.n_vocab} ids) exceeds the model's vocabulary "
            f"({model.config.text_vocab_size})"
        )
    questions = {protocol: [ask(item, protocol, encoding) for item in items] for protocol in PROTOCOLS}
    scored = partial(_scores, model, eot_id=encoding.eot_token, batch_size=batch_size, group=group)
    nats = scored([question for asked in questions.values() for question in asked], dtype=dtype, progress=progress)
    if dtype != torch.float32:
        _ask_close_calls_again(nats, questions, partial(scored, dtype=torch.float32, progress=None))

    truncated = sum(
        not all(fits(question.context, question.endings, model.config.block_size) for question in asked)
        for asked in zip(*questions.values(), strict=True)
    )
    labels = np.array([item.label for item in items])
    return HellaswagResult(labels, answers_of(_by_protocol(nats), questions), truncated)


def subset(items: Sequence[Item], count: int | None) -> list[Item]:
    """A fixed choice of `count` items (None: all) in their order; a smaller one is part of every larger one."""
    order = list(range(len(items)))
    random.Random(SUBSET_SEED).shuffle(order)
    return [items[index] for index in sorted(order[:count])]


def _scores(
    model: GPT,
    questions: Sequence[Question],
    *,
    eot_id: int,
    batch_size: int,
    dtype: torch.dtype,
    group: Group,
    progress: Progress | None,
) -> Scores:
    """The summed nats of every ending of every question, on every rank.  # (n, 4)"""
    tasks: list[Task] = []
    for number, question in enumerate(questions):
        first_row = number * ENDINGS
        tasks += tasks_of(question.context or [eot_id], question.endings, first_row, model.config.block_size)
    fast = for_inference(model, dtype)
    nats = torch.zeros(len(questions) * ENDINGS, dtype=torch.float64)
    batches = batches_of(tasks, batch_size)
    for begin in range(0, len(batches), group.world_size):
        at_once = batches[begin : begin + group.world_size]  # a batch for each rank
        for batch in at_once[group.rank : group.rank + 1]:
            for row, value in score_batch(fast, batch, batch_size, group.device):
                nats[row] = value
        if progress is not None:
            progress.advance(sum(len(task.rows) for batch in at_once for task in batch))
    group.sum_(nats)  # every row is nonzero on one rank alone, so this addition is exact
    return nats.view(len(questions), ENDINGS).numpy()


def _ask_close_calls_again(
    nats: Scores, questions: dict[str, list[Question]], in_float32: Callable[[list[Question]], Scores]
) -> None:
    """Replaces the scores of questions whose answers errors like those seen could change.  # (n, 4)

    An error is seen where a question was asked again; one larger than was thought possible can make more of them close.
    """
    everything = [question for asked in questions.values() for question in asked]
    error, exact = ROUNDING, np.zeros(len(everything), dtype=bool)
    while len(again := np.flatnonzero(~exact & _close_calls(_by_protocol(nats), questions, error))):
        scores = in_float32([everything[number] for number in again])
        error = max(error, 2 * float(np.abs(scores - nats[again]).max()))
        nats[again], exact[again] = scores, True


def _close_calls(nats: dict[str, Scores], questions: dict[str, list[Question]], error: float) -> npt.NDArray[np.bool_]:
    """Whether errors of at most `error` nats could change the answer to a question, in their order.  # (n,)"""
    return np.concatenate(
        [
            np.any([_close(nats[protocol], _divisors(metric, asked), error) for metric in METRICS[protocol]], axis=0)
            for protocol, asked in questions.items()
        ]
    )


def _close(nats: Scores, divisors: Answers, error: float) -> npt.NDArray[np.bool_]:
    """Whether another ending can be as good as the best where each score is off by at most `error` nats.  # (n,)"""
    rows, best = np.arange(len(nats)), _least(nats, divisors)
    highest, lowest = _normalised(nats + error, divisors), _normalised(nats - error, divisors)
    lowest[rows, best] = np.inf  # the best is no other
    closest: Scores = lowest.min(axis=1)
    return closest < highest[rows, best]


def answers_of(nats: dict[str, Scores], questions: dict[str, list[Question]]) -> dict[str, Answers]:
    """The ending with the least loss under each metric, the first of those that are equal.

    `nats`: protocol -> summed loss of each ending.  # (n, 4)
    """
    return {
        metric: _least(nats[protocol], _divisors(metric, questions[protocol]))
        for protocol, metrics in METRICS.items()
        for metric in metrics
    }


def _by_protocol(nats: Scores) -> dict[str, Scores]:
    """The scores of all questions, as views of those of each protocol."""
    return dict(zip(PROTOCOLS, np.split(nats, len(PROTOCOLS)), strict=True))


def _divisors(metric: str, questions: Sequence[Question]) -> Answers:
    """What each ending's loss is divided by; 0 where it cannot win, for it has no characters or tokens.  # (n, 4)"""
    tokens = np.array([[len(ending) for ending in question.endings] for question in questions])
    characters = np.array([question.characters for question in questions])
    of_metric = {"acc": np.ones_like(tokens), "acc_norm": characters, "acc_norm_token": tokens}
    return np.where(tokens > 0, of_metric[metric], 0)


def _normalised(nats: Scores, divisors: Answers) -> Scores:
    """Nats per divisor, infinite where that is 0."""
    return np.where(divisors > 0, nats / np.maximum(divisors, 1), np.inf)


def _least(nats: Scores, divisors: Answers) -> Answers:
    """The column with the least nats per divisor.  # (n,)"""
    return np.argmin(_normalised(nats, divisors), axis=1)
