"""HellaSwag, or items like it: how often a model finds the true ending likelier than three false ones.

    result = score_items(model, encoding, read_items(path), batch_size=32, dtype=torch.float32, group=group)
    result.metrics("hellaswag")   # hellaswag/acc, hellaswag/acc_norm (harness), hellaswag/acc_norm_token, errors

Rules where the protocols leave a choice:
- Of endings with the same score, the first wins.
- An ending that gives no characters (acc_norm) or no tokens (any) cannot win.
- What does not fit the model's window is cut (pipeline.evaluation.scoring.tasks_of), and the items with such a cut are
  counted in `truncated`.
- float32 gives the same answers as the reference tools. In bfloat16 a log-likelihood moves by some hundredths of a nat
  with the batch that it is in, and answers that are closer than that may change.
Batches are cut before they are dealt to the ranks, so any number of ranks gives the same scores.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tiktoken
import torch

from pipeline.corpus.hellaswag_items import Item
from pipeline.distributed import Group
from pipeline.evaluation.protocols import HARNESS, PROTOCOLS, TOKEN_MEAN, Question, ask
from pipeline.evaluation.scoring import Task, batches_of, fits, score_batch, tasks_of
from pipeline.model.gpt import GPT
from pipeline.model.inference import for_inference
from pipeline.progress import Progress

SUBSET_SEED = 20190519  # the same items in every run, whatever its own seed, so that runs can be compared

Answers = npt.NDArray[np.int64]


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

    `batch_size`: sequences per forward pass of a rank. `dtype` of matrix products. `progress`: advanced by endings
    scored, by this rank: all ranks together score 8 per item. Touches nothing of the model, nor any random state.
    Raises ValueError where the encoding has ids that the model has not.
    """
    if encoding.n_vocab > model.config.text_vocab_size:
        raise ValueError(
            f"encoding {encoding.name} ({encoding.n_vocab} ids) exceeds the model's vocabulary "
            f"({model.config.text_vocab_size})"
        )
    block_size = model.config.block_size
    questions = {protocol: [ask(item, protocol, encoding) for item in items] for protocol in PROTOCOLS}
    tasks = _all_tasks(questions, block_size, encoding.eot_token)
    batches = batches_of(tasks, batch_size)
    fast = for_inference(model, dtype)

    endings = len(items[0].endings)
    nats = torch.zeros(len(PROTOCOLS) * len(items) * endings, dtype=torch.float64)
    for batch in batches[group.rank :: group.world_size]:
        for row, value in score_batch(fast, batch, batch_size, group.device):
            nats[row] = value
        if progress is not None:
            progress.advance(sum(len(task.rows) for task in batch))
    group.sum_(nats)  # every row is nonzero on one rank alone, so this addition is exact

    table = nats.view(len(PROTOCOLS), len(items), endings).numpy()
    by_protocol = dict(zip(PROTOCOLS, table, strict=True))
    truncated = sum(
        not all(fits(question.context, question.endings, block_size) for question in asked)
        for asked in zip(*questions.values(), strict=True)
    )
    labels = np.array([item.label for item in items])
    return HellaswagResult(labels, answers_of(by_protocol, questions), truncated)


def subset(items: Sequence[Item], count: int | None) -> list[Item]:
    """A fixed choice of `count` items (None: all) in their order; a smaller one is part of every larger one."""
    order = list(range(len(items)))
    random.Random(SUBSET_SEED).shuffle(order)
    return [items[index] for index in sorted(order[:count])]


def _all_tasks(questions: dict[str, list[Question]], block_size: int, eot_id: int) -> list[Task]:
    """Every question as tasks; the rows count endings through protocols and items, in order."""
    tasks: list[Task] = []
    row = 0
    for asked in questions.values():
        for question in asked:
            tasks += tasks_of(question.context or [eot_id], question.endings, row, block_size)
            row += len(question.endings)
    return tasks


def answers_of(nats: dict[str, npt.NDArray[np.float64]], questions: dict[str, list[Question]]) -> dict[str, Answers]:
    """The ending with the least loss under each metric, the first of those that are equal.

    `nats`: protocol -> summed loss of each ending.  # (n, 4)
    """
    lengths = {
        protocol: np.array([[len(ending) for ending in question.endings] for question in asked])
        for protocol, asked in questions.items()
    }
    characters = np.array([question.characters for question in questions[HARNESS]])
    return {
        "acc": _least(nats[HARNESS], np.ones_like(characters), lengths[HARNESS]),
        "acc_norm": _least(nats[HARNESS], characters, lengths[HARNESS]),
        "acc_norm_token": _least(nats[TOKEN_MEAN], lengths[TOKEN_MEAN], lengths[TOKEN_MEAN]),
    }


def _least(nats: npt.NDArray[np.float64], divisors: Answers, tokens: Answers) -> Answers:
    """The column with the least nats per divisor; one with no divisor or no tokens only where all are so.  # (n,)"""
    possible = (divisors > 0) & (tokens > 0)
    return np.argmin(np.where(possible, nats / np.maximum(divisors, 1), np.inf), axis=1)
