"""HellaSwag accuracy, under two protocols whose numbers are not comparable with each other.

`harness`     EleutherAI's lm-evaluation-harness (tasks/hellaswag, version 1.0): the activity label first, ctx_b
              capitalized, WikiHow's brackets removed, context and ending tokenized as one text. Gives `acc` (the ending
              with the highest log-likelihood) and `acc_norm` (the highest per character).
`token_mean`  build-nanogpt, llm.c, nanochat: the raw ctx, endings tokenized separately. Gives `acc_norm_token` (the
              highest log-likelihood per token).

    item        activity_label "Roofing", ctx_a "A man is on a roof.", ctx_b "he", an ending "is up [substeps] there."
    harness     "Roofing: A man is on a roof. He"   " is up there."
    token_mean  "A man is on a roof. he"            " is up [substeps] there."

Where the protocols leave a choice:
- Of endings with the same score, the first wins.
- An ending without characters (acc_norm) or without tokens (all metrics) cannot win.
- Items that do not fit the model's context are truncated (`score_requests`) and counted in `truncated`.
- The answers are those of float32, as in the reference tools. In bfloat16 a log-likelihood is off by some tenths of a
  nat. So every request whose answer could be changed by twice the largest error seen is scored again in float32.
"""

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import tiktoken
import torch

from pipeline.corpus.hellaswag import Item
from pipeline.corpus.tokenizer import encode_text
from pipeline.distributed import Group
from pipeline.evaluation.surprisal import summed_nats
from pipeline.inference import for_inference
from pipeline.model.gpt import GPT
from pipeline.progress import Progress

HARNESS, TOKEN_MEAN = "harness", "token_mean"
PROTOCOLS = (HARNESS, TOKEN_MEAN)
METRICS = {"acc": HARNESS, "acc_norm": HARNESS, "acc_norm_token": TOKEN_MEAN}
BFLOAT16_ERROR = 0.5  # assumed error of a bfloat16 log-likelihood, in nats; docs/evaluation.md has a measurement
SUBSET_SEED = 20190519  # fixed, so that every run scores the same items

Answers = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Request:
    """An item under one protocol: a context of at least one token, and the endings to score after it."""

    context: list[int]
    endings: list[list[int]]
    protocol: str
    characters: list[int]
    """Length of each ending's text, without the space before it."""
    label: int
    """The true ending."""

    def fits(self, block_size: int) -> bool:
        """Whether the context and the longest ending fit the window. The last token is never an input."""
        return len(self.context) + max(len(ending) for ending in self.endings) - 1 <= block_size


def build_request(item: Item, protocol: str, tokenizer: tiktoken.Encoding) -> Request:
    """The tokens of an item under `protocol`, one of PROTOCOLS."""
    if protocol == HARNESS:
        text = preprocess(f"{item.activity_label}: {item.ctx_a} {item.ctx_b.capitalize()}")
        texts = [preprocess(ending) for ending in item.endings]
        pairs = [encode_pair(text, f" {ending}", tokenizer) for ending in texts]
        context, endings = pairs[0][0], [ending for _, ending in pairs]  # the context's tokens do not depend on endings
    else:
        texts = list(item.endings)
        context = encode_text(tokenizer, item.ctx).tolist()
        endings = [encode_text(tokenizer, f" {ending}").tolist() for ending in texts]
    characters = [len(ending) for ending in texts]
    return Request(context or [tokenizer.eot_token], endings, protocol, characters, item.label)


def build_requests(items: Sequence[Item], tokenizer: tiktoken.Encoding) -> list[Request]:
    """All items under the first protocol, then all under the second."""
    return [build_request(item, protocol, tokenizer) for protocol in PROTOCOLS for item in items]


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
class HellaswagResult:
    """A model's answers, item by item."""

    labels: Answers
    """The true ending of each item.  # (n,)"""

    answers: dict[str, Answers]
    """Metric (acc, acc_norm, acc_norm_token) -> the chosen ending of each item.  # (n,)"""

    truncated: int
    """Items that did not fit the model's context under at least one protocol."""

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


def answer(
    model: GPT,
    requests: Sequence[Request],
    *,
    batch_size: int,
    dtype: torch.dtype,
    group: Group,
    progress: Progress | None = None,
) -> HellaswagResult:
    """A model's answers to `build_requests`. Called by every rank; all return the same result.

    `batch_size`: full sequences per forward pass of a rank; on a GPU, as many shorter ones as have that many tokens.
    `dtype` of matrix products; uncertain answers in another than
    float32 are scored again in float32. `progress` is advanced by 8 endings per item, not by rescoring. The model and
    the random state are left untouched.
    """
    score = partial(score_requests, model, batch_size=batch_size, group=group)
    nats = score(requests, dtype=dtype, progress=progress)
    if dtype != torch.float32:
        _rescore(nats, requests, partial(score, dtype=torch.float32))

    fits = np.array([request.fits(model.config.block_size) for request in requests]).reshape(len(PROTOCOLS), -1)
    labels = np.array([request.label for request in requests[: fits.shape[1]]])
    return HellaswagResult(labels, answers_of(nats, requests), truncated=int((~fits.all(axis=0)).sum()))


def subset(items: Sequence[Item], count: int | None) -> list[Item]:
    """A fixed choice of `count` items (None: all) in their order; a smaller one is part of every larger one."""
    order = list(range(len(items)))
    random.Random(SUBSET_SEED).shuffle(order)
    return [items[index] for index in sorted(order[:count])]


def answers_of(nats: Scores, requests: Sequence[Request]) -> dict[str, Answers]:
    """Metric -> the best ending of each of its protocol's requests. `nats`: summed loss of each ending.  # (n, 4)"""
    return {metric: _best(nats[rows], lengths) for metric, rows, lengths in _by_metric(requests)}


def _rescore(nats: Scores, requests: Sequence[Request], in_float32: Callable[[Sequence[Request]], Scores]) -> None:
    """Replaces the scores of requests whose answers an error as large as twice the largest seen could change.

    The error is seen on the rescored requests, so a large one can make more requests uncertain.
    """
    error, rescored = BFLOAT16_ERROR, np.zeros(len(requests), dtype=bool)
    while uncertain := np.flatnonzero(~rescored & _uncertain(nats, requests, error)).tolist():
        exact = in_float32([requests[row] for row in uncertain])
        error = max(error, 2 * float(np.abs(exact - nats[uncertain]).max()))
        nats[uncertain], rescored[uncertain] = exact, True


def _uncertain(nats: Scores, requests: Sequence[Request], error: float) -> npt.NDArray[np.bool_]:
    """Whether errors of at most `error` nats in each score could change an answer to a request.  # (n,)"""
    uncertain = np.zeros(len(requests), dtype=bool)
    for _, rows, lengths in _by_metric(requests):
        row, best = np.arange(len(rows)), _best(nats[rows], lengths)
        upper, lower = _normalized(nats[rows] + error, lengths), _normalized(nats[rows] - error, lengths)
        lower[row, best] = np.inf  # compare the best with the others only
        uncertain[rows] |= lower.min(axis=1) < upper[row, best]
    return uncertain


def _by_metric(requests: Sequence[Request]) -> Iterator[tuple[str, Answers, Answers]]:
    """(metric, its protocol's requests, what the loss of each ending is divided by (n, 4)); 0: it cannot win."""
    tokens = np.array([[len(ending) for ending in request.endings] for request in requests])
    characters = np.array([request.characters for request in requests])
    divisors = {"acc": np.ones_like(tokens), "acc_norm": characters, "acc_norm_token": tokens}
    for metric, protocol in METRICS.items():
        rows = np.flatnonzero([request.protocol == protocol for request in requests])
        yield metric, rows, np.where(tokens > 0, divisors[metric], 0)[rows]


def _normalized(nats: Scores, lengths: Answers) -> Scores:
    """Nats per unit of length, infinite where the length is 0."""
    return np.where(lengths > 0, nats / np.maximum(lengths, 1), np.inf)


def _best(nats: Scores, lengths: Answers) -> Answers:
    """The ending with the smallest normalized loss, the first of equals.  # (n,)"""
    return np.argmin(_normalized(nats, lengths), axis=1)


# Scoring. The endings of a request share their context, so it goes through the model once and its keys and values are
# reused. The lm_head, a third of the work of a small model, sees only the positions that predict a token of an ending.
# Requests of similar length share a batch, and so do endings of similar length. Nothing is padded on the left:
#
#   contexts   the first tokens of each: one fewer than the batch's shortest context    (B, shared)
#   endings    the rest of the context, then the ending                                 (rows, width)


@dataclass(frozen=True)
class _Task:
    """A request, or a part of one, that fits the model's window."""

    context: list[int]
    endings: list[list[int]]
    rows: list[int]
    """Where the score of each ending goes."""


@torch.no_grad()
def score_requests(
    model: GPT,
    requests: Sequence[Request],
    *,
    batch_size: int,
    dtype: torch.dtype,
    group: Group,
    progress: Progress | None = None,
) -> Scores:
    """The summed cross entropy of every ending, in nats: its negative log-likelihood.  # (requests, endings)

    All requests have the same number of endings. Called by every rank; all return the same result. `batch_size`:
    as in `answer`. `progress` is advanced by the endings of all ranks' batches when this rank has
    finished its own. Batches are cut before they are assigned to ranks, so the scores do not depend on the world size.

    An ending of no tokens has 0 nats. Where a request does not fit the model's window, each ending is scored after the
    newest part of the context that fits, as in lm-evaluation-harness; of an ending longer than the window, the last
    `block_size` tokens are scored.
    """
    endings = len(requests[0].endings) if requests else 0
    tasks = [
        task
        for number, request in enumerate(requests)
        for task in _split(request, number * endings, model.config.block_size)
    ]
    # The longest contexts first: if memory does not suffice, that shows at once.
    tasks.sort(key=lambda task: (-len(task.context), sum(map(len, task.endings)), task.rows))
    batches: list[list[_Task]] = []
    while tasks:
        size = rows_at_once(batch_size, model.config.block_size, len(tasks[0].context), group.device)
        batches.append(tasks[:size])
        del tasks[:size]

    fast = for_inference(model, dtype)
    nats = torch.zeros(len(requests) * endings, dtype=torch.float64)
    for begin in range(0, len(batches), group.world_size):
        at_once = batches[begin : begin + group.world_size]  # a batch for each rank
        if group.rank < len(at_once):
            for row, value in _score_batch(fast, at_once[group.rank], batch_size, group.device):
                nats[row] = value
        if progress is not None:
            progress.advance(sum(len(task.rows) for batch in at_once for task in batch))
    group.sum_(nats)  # each row is nonzero on one rank only, so this sum is exact
    return nats.view(len(requests), endings).numpy()


def rows_at_once(batch_size: int, block_size: int, length: int, device: torch.device) -> int:
    """How many rows of `length` tokens to compute at once: on a GPU, `batch_size` times `block_size` tokens."""
    if device.type == "cpu":
        return batch_size  # the activations of small batches stay in its cache
    return max(batch_size, batch_size * block_size // length)


def _split(request: Request, first_row: int, block_size: int) -> Iterator[_Task]:
    """The request as one task if it fits the window, else as one task for each ending."""
    rows = list(range(first_row, first_row + len(request.endings)))
    if request.fits(block_size):
        yield _Task(request.context, request.endings, rows)
        return
    for row, ending in zip(rows, request.endings, strict=True):
        text = (request.context + ending)[-(block_size + 1) :]  # the last token is a target only
        cut = max(1, len(text) - len(ending))
        yield _Task(text[:cut], [text[cut:]], [row])


def _score_batch(
    model: GPT, tasks: Sequence[_Task], batch_size: int, device: torch.device
) -> Iterator[tuple[int, float]]:
    """(row, nats) of every ending with tokens, `rows_at_once` at a time."""
    shared = min(len(task.context) for task in tasks) - 1
    cache = None
    if shared:
        cache = model.new_cache(len(tasks), shared)
        model.hidden(torch.tensor([task.context[:shared] for task in tasks], device=device), cache)
    endings = [
        ([*task.context[shared:], *ending][:-1], ending, context, row)
        for context, task in enumerate(tasks)
        for ending, row in zip(task.endings, task.rows, strict=True)
        if ending
    ]
    endings.sort(key=lambda ending: len(ending[0]))
    longest = shared + max((len(inputs) for inputs, *_ in endings), default=1)
    size = rows_at_once(batch_size, model.config.block_size, longest, device)
    for first in range(0, len(endings), size):
        inputs, targets, contexts, rows = zip(*endings[first : first + size], strict=True)
        part = None
        if cache is not None:
            part = cache.take(torch.tensor(contexts, device=device), cache.length + max(map(len, inputs)))
        nats = summed_nats(model, list(zip(inputs, targets, strict=True)), device, part)
        yield from zip(rows, nats.tolist(), strict=True)
