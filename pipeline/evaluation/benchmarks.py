"""Accuracy on benchmarks, by the rules of the tools whose numbers are published.

A task turns an item into questions: endings to score after a context, and by which metrics the answer is chosen.

    lambada         "He saw the"   " cat"   the answer counts if greedy sampling gives it (acc); perplexity per word
    arc, piqa       "Question: Why?\nAnswer:"   " So."   " Not so."
    winogrande      "Jo saw that Bo" or "Jo saw that Jim"   " slept."   one ending after two contexts

All are zero-shot and follow the rules of EleutherAI's lm-evaluation-harness: context and ending are tokenized as one
text, and the answer is the ending with the highest log-likelihood (acc), or the highest per character (acc_norm).

HellaSwag (and next_lines) is scored under two protocols, whose numbers are not comparable with each other:

`acc`, `acc_norm`  lm-evaluation-harness (tasks/hellaswag, version 1.0): the activity label first, ctx_b capitalized,
                   WikiHow's brackets removed.
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
from pipeline.corpus.benchmarks import (
    TASKS,
    ArcItem,
    HellaSwagItem,
    Item,
    LambadaItem,
    PiqaItem,
    WinograndeItem,
)
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


def _lambada(number: int, item: Item, tokenizer: tiktoken.Encoding) -> Iterator[Question]:
    assert isinstance(item, LambadaItem)
    context, _, word = item.text.rpartition(" ")
    tokens, ending = encode_pair(context, f" {word}", tokenizer)
    yield Question(number, Request([tokens], [ending], margins=True), {"acc": [1]}, label=0)


def _arc(number: int, item: Item, tokenizer: tiktoken.Encoding) -> Iterator[Question]:
    assert isinstance(item, ArcItem)
    label = item.choices.label.index(item.answerKey)
    yield _multiple_choice(number, f"Question: {item.question}\nAnswer:", item.choices.text, label, tokenizer)


def _piqa(number: int, item: Item, tokenizer: tiktoken.Encoding) -> Iterator[Question]:
    assert isinstance(item, PiqaItem)
    yield _multiple_choice(number, f"Question: {item.goal}\nAnswer:", [item.sol1, item.sol2], item.label, tokenizer)


def _winogrande(number: int, item: Item, tokenizer: tiktoken.Encoding) -> Iterator[Question]:
    """Partial evaluation (https://arxiv.org/abs/1806.02847): what follows the gap, after either word in it."""
    assert isinstance(item, WinograndeItem)
    before, _, after = item.sentence.partition("_")
    contexts = [before + option for option in (item.option1, item.option2)]
    pairs = [encode_pair(context, f" {after.strip()}", tokenizer) for context in contexts]
    request = Request([context for context, _ in pairs], [ending for _, ending in pairs])
    yield Question(number, request, {"acc": [1, 1]}, int(item.answer) - 1)


QUESTIONS: dict[str, Callable[[int, Item, tiktoken.Encoding], Iterator[Question]]] = {
    "next_lines": _hellaswag,
    "hellaswag": _hellaswag,
    "lambada": _lambada,
    "arc_easy": _arc,
    "arc_challenge": _arc,
    "piqa": _piqa,
    "winogrande": _winogrande,
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

    nats: Scores | None = None
    """Of a task with perplexity: the loss of each ending.  # (n,)"""

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
        if self.nats is not None and (perplexity := np.exp(self.nats.mean())) < np.inf:
            values["perplexity"] = float(perplexity)
            error = self.nats.std(ddof=1) / math.sqrt(self.items) if self.items > 1 else 0.0
            errors["perplexity_stderr"] = float(perplexity * error)  # of the exponential of a mean, to first order
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
    chances = [0 if question.request.margins else 1 / len(question.request.endings) for question in questions]
    nats = np.array([part[0, 0] for part in scores]) if questions[0].request.margins else None
    return BenchmarkResult(np.array(list(labels.values())), answers, len(long), float(np.mean(chances)), nats)


def endings(questions: Sequence[Question]) -> int:
    """How many endings are scored."""
    return sum(len(question.request.endings) for question in questions)


def answers_of(scores: Sequence[Scores], questions: Sequence[Question]) -> dict[str, Answers]:
    """Metric -> the chosen ending of each item; -1 where the only ending is not what greedy sampling gives.

    `scores`: from `score_requests`.
    """
    answers: dict[str, list[int]] = {}
    for part, question in zip(scores, questions, strict=True):
        for metric, lengths in question.lengths.items():
            greedy = not question.request.margins or part[0, 1] > 0
            answers.setdefault(metric, []).append(_best(part[:, 0], lengths) if greedy else -1)
    return {metric: np.array(chosen) for metric, chosen in answers.items()}


def _rescore(
    scores: Sequence[Scores], questions: Sequence[Question], in_float32: Callable[[Sequence[Request]], list[Scores]]
) -> None:
    """Replaces the scores of endings by which an error as large as twice the largest seen could change an answer.

    The error is seen on the rescored endings, so a large one can make more answers uncertain.
    """
    error, exact = BFLOAT16_ERROR, [np.zeros(len(part), dtype=bool) for part in scores]
    while asked := [
        (number, rows)
        for number, question in enumerate(questions)
        if (rows := _contenders(scores[number], question, np.where(exact[number], 0.0, error)))
    ]:
        requests = [questions[number].request.only(rows) for number, rows in asked]
        for (number, rows), part in zip(asked, in_float32(requests), strict=True):
            error = max(error, 2 * float(np.abs(part - scores[number][rows]).max()))
            scores[number][rows], exact[number][rows] = part, True


def _contenders(scores: Scores, question: Question, errors: Scores) -> list[int]:
    """The endings, of those with an error, whose errors could change an answer. `errors`: the largest of each score."""
    nats = scores[:, 0]
    close = np.abs(scores[:, 1]) < errors if question.request.margins else np.zeros(len(scores), dtype=bool)
    for lengths in question.lengths.values():
        best = _best(nats, lengths)
        better = _normalized(nats - errors, lengths) < _normalized(nats + errors, lengths)[best]
        better[best] = False  # compare the best with the others only
        better[best] = better.any()
        close |= better
    return np.flatnonzero(close & (errors > 0)).tolist()


def _normalized(nats: Scores, lengths: Sequence[int]) -> Scores:
    """Nats per unit of length, infinite where the length is 0."""
    divisors = np.array(lengths)
    return np.where(divisors > 0, nats / np.maximum(divisors, 1), np.inf)


def _best(nats: Scores, lengths: Sequence[int]) -> int:
    """The ending with the smallest normalized loss, the first of equals."""
    return int(np.argmin(_normalized(nats, lengths)))
