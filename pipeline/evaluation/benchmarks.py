"""Accuracy on benchmarks, by the rules of the tools whose numbers are published.

A task turns an item into questions: endings to score after a context, and by which metrics the answer is chosen.

HellaSwag (and next_lines) is asked under two protocols, whose numbers are not comparable with each other:

`acc`, `acc_norm`  EleutherAI's lm-evaluation-harness (tasks/hellaswag, version 1.0): the activity label first, ctx_b
                   capitalized, WikiHow's brackets removed, context and ending tokenized as one text. The answer is the
                   ending with the highest log-likelihood (acc), or the highest per character (acc_norm).
`acc_norm_token`   build-nanogpt, llm.c, nanochat: the raw ctx, endings tokenized separately. The answer is the ending
                   with the highest log-likelihood per token.

    item            activity_label "Roofing", ctx_a "A man is on a roof.", ctx_b "he", ending "is up [substeps] there."
    acc, acc_norm   "Roofing: A man is on a roof. He"   " is up there."
    acc_norm_token  "A man is on a roof. he"            " is up [substeps] there."

Where the rules leave a choice:
- Of endings with the same score, the first wins.
- An ending without characters (acc_norm) or without tokens (all metrics) cannot win.
- Items that do not fit the model's context are truncated (`score_requests`) and counted in `truncated`.
- The answers are those of float32, as in the reference tools. In bfloat16 a log-likelihood is off by some tenths of a
  nat. So every answer that could be changed by twice the largest error seen is scored again in float32.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import tiktoken
import torch

from pipeline.artifacts import BenchmarkMetrics
from pipeline.corpus.benchmarks import TASKS, HellaSwagItem, Item
from pipeline.corpus.tokenizer import encode_text
from pipeline.distributed import Group
from pipeline.evaluation.scoring import Request, Scores, score_requests
from pipeline.model.gpt import GPT
from pipeline.progress import Progress

BFLOAT16_ERROR = 0.5  # assumed error of a bfloat16 log-likelihood, in nats; docs/evaluation.md has a measurement

Answers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Question:
    """A request whose best ending is the answer to an item."""

    item: int
    """The number of the item."""
    request: Request
    lengths: dict[str, list[int]]
    """Metric -> what the loss of each ending is divided by; 0: it cannot win."""
    label: int
    """The true ending."""


def build_questions(task: str, items: Sequence[Item], tokenizer: tiktoken.Encoding) -> list[Question]:
    """The questions of all items. Each metric of the task belongs to one question of each item."""
    return [question for number, item in enumerate(items) for question in QUESTIONS[task](number, item, tokenizer)]


def _hellaswag(number: int, item: Item, tokenizer: tiktoken.Encoding) -> Iterator[Question]:
    assert isinstance(item, HellaSwagItem)
    text = preprocess(f"{item.activity_label}: {item.ctx_a} {item.ctx_b.capitalize()}")
    yield _multiple_choice(number, text, [preprocess(ending) for ending in item.endings], item.label, tokenizer)
    context = encode_text(tokenizer, item.ctx).tolist()
    endings = [encode_text(tokenizer, f" {ending}").tolist() for ending in item.endings]
    request = Request([context or [tokenizer.eot_token]], endings)
    yield Question(number, request, {"acc_norm_token": [len(ending) for ending in endings]}, item.label)


QUESTIONS: dict[str, Callable[[int, Item, tiktoken.Encoding], Iterator[Question]]] = {
    "next_lines": _hellaswag,
    "hellaswag": _hellaswag,
}


def _multiple_choice(
    number: int, context: str, endings: Sequence[str], label: int, tokenizer: tiktoken.Encoding
) -> Question:
    """The endings after a context, by `acc` and `acc_norm`."""
    pairs = [encode_pair(context, f" {ending}", tokenizer) for ending in endings]
    tokens = [ending for _, ending in pairs]
    lengths = {
        "acc": [1 if ending else 0 for ending in tokens],
        "acc_norm": [len(text) if ending else 0 for text, ending in zip(endings, tokens, strict=True)],
    }
    context_tokens = pairs[0][0]  # they do not depend on the ending
    return Question(number, Request([context_tokens or [tokenizer.eot_token]], tokens), lengths, label)


def preprocess(text: str) -> str:
    """The harness's cleaning of WikiHow's marks (lm_eval/tasks/hellaswag/utils.py), step by step.

    >>> preprocess("How to bake [title] Preheat. [step] Set the oven")
    'How to bake. Preheat. Set the oven'
    """
    text = text.strip()
    text = text.replace(" [title]", ". ")
    text = re.sub(r"\[.*?\]", "", text)
    return text.replace("  ", " ")


def encode_pair(context: str, continuation: str, tokenizer: tiktoken.Encoding) -> tuple[list[int], list[int]]:
    """Tokens of a context and its continuation, split as the harness does (lm_eval.api.model.TemplateLM._encode_pair).

    Both are tokenized as one text, and everything after as many tokens as the context alone has is the continuation.
    Trailing spaces of the context move to the continuation, since most tokenizers join a space to the next word.
    """
    whole = encode_text(tokenizer, context + continuation).tolist()
    tokens = encode_text(tokenizer, context.rstrip()).tolist()
    return tokens, whole[len(tokens) :]


@dataclass(frozen=True)
class BenchmarkResult:
    """A model's answers, item by item."""

    labels: Answers
    """The true ending of each item.  # (n,)"""

    answers: dict[str, Answers]
    """Metric -> the chosen ending of each item.  # (n,)"""

    truncated: int
    """Items that did not fit the model's context in at least one of their questions."""

    chance: float
    """Accuracy of guessing, 0 to 1."""

    @property
    def items(self) -> int:
        return len(self.labels)

    def accuracy(self, metric: str) -> float:
        """The fraction of correct answers, 0 to 1."""
        return float(np.mean(self.answers[metric] == self.labels))

    def stderr(self, metric: str) -> float:
        """The standard error of the accuracy: that of a sample mean, as in lm-evaluation-harness."""
        accuracy = self.accuracy(metric)
        return math.sqrt(accuracy * (1 - accuracy) / max(self.items - 1, 1))

    def metrics(self, task: str) -> BenchmarkMetrics:
        """The record in metrics.json."""
        values = {metric: self.accuracy(metric) for metric in self.answers}
        errors = {f"{metric}_stderr": self.stderr(metric) for metric in self.answers}
        known = {"name": TASKS[task].name, "items": self.items, "truncated": self.truncated, "chance": self.chance}
        return BenchmarkMetrics.model_validate(known | values | errors)


def answer(
    model: GPT,
    questions: Sequence[Question],
    *,
    batch_size: int,
    dtype: torch.dtype,
    group: Group,
    progress: Progress | None = None,
) -> BenchmarkResult:
    """A model's answers to `build_questions`. Called by every rank; all return the same result.

    `batch_size`: as in `score_requests`. `dtype` of matrix products; uncertain answers in another than float32 are
    scored again in float32. `progress` is advanced by `endings(questions)`, not by rescoring. The model and the random
    state are left untouched.
    """
    score = partial(score_requests, model, batch_size=batch_size, group=group)
    scores = score([question.request for question in questions], dtype=dtype, progress=progress)
    if dtype != torch.float32:
        _rescore(scores, questions, partial(score, dtype=torch.float32))

    labels = {question.item: question.label for question in questions}
    long = {question.item for question in questions if not question.request.fits(model.config.block_size)}
    answers = answers_of(scores, questions)
    chances = [1 / len(question.request.endings) for question in questions]
    return BenchmarkResult(np.array(list(labels.values())), answers, len(long), float(np.mean(chances)))


def endings(questions: Sequence[Question]) -> int:
    """How many endings are scored."""
    return sum(len(question.request.endings) for question in questions)


def answers_of(scores: Sequence[Scores], questions: Sequence[Question]) -> dict[str, Answers]:
    """Metric -> the best ending of each item. `scores`: the summed loss of the endings of each question."""
    answers: dict[str, list[int]] = {}
    for nats, question in zip(scores, questions, strict=True):
        for metric, lengths in question.lengths.items():
            answers.setdefault(metric, []).append(_best(nats, lengths))
    return {metric: np.array(chosen) for metric, chosen in answers.items()}


def _rescore(
    scores: list[Scores], questions: Sequence[Question], in_float32: Callable[[Sequence[Request]], list[Scores]]
) -> None:
    """Replaces the scores of questions whose answers an error as large as twice the largest seen could change.

    The error is seen on the rescored requests, so a large one can make more answers uncertain.
    """
    error, rescored = BFLOAT16_ERROR, set[int]()
    while asked := [
        n for n in range(len(questions)) if n not in rescored and _uncertain(scores[n], questions[n], error)
    ]:
        for number, exact in zip(asked, in_float32([questions[number].request for number in asked]), strict=True):
            error = max(error, 2 * float(np.abs(exact - scores[number]).max()))
            scores[number] = exact
        rescored |= set(asked)


def _uncertain(nats: Scores, question: Question, error: float) -> bool:
    """Whether errors of at most `error` nats in each score could change an answer."""
    for lengths in question.lengths.values():
        best = _best(nats, lengths)
        lower = _normalized(nats - error, lengths)
        lower[best] = np.inf  # compare the best with the others only
        if lower.min() < _normalized(nats + error, lengths)[best]:
            return True
    return False


def _normalized(nats: Scores, lengths: Sequence[int]) -> Scores:
    """Nats per unit of length, infinite where the length is 0."""
    divisors = np.array(lengths)
    return np.where(divisors > 0, nats / np.maximum(divisors, 1), np.inf)


def _best(nats: Scores, lengths: Sequence[int]) -> int:
    """The ending with the smallest normalized loss, the first of equals."""
    return int(np.argmin(_normalized(nats, lengths)))
