"""Text generation: many prompts, many samples of each, token by token.

    generate(model, prompts, settings, eot_id=tokenizer.eot_token, dtype=torch.bfloat16, samples_per_prompt=2)
    for new in stream(for_inference(model, dtype), [prompt], settings, eot_id=...): ...   # token by token

A token is drawn by inverting the cumulative distribution at a uniform random number. Each sample has its own stream of
random numbers, a function of its prompt, its index among that prompt's samples, and the seed. So a sample does not
depend on the rest of the batch, and the same seed gives the same texts on the same machine.

A text may outgrow the model's context (`Architecture.context_limit`). When the window of `block_size` tokens is full,
its older half is dropped and the newer half is read again from position 0. Every other new token costs one forward pass
of one token. The start of the window depends on the number of tokens only (`window_start`), so the logits are the same
function of the text with and without a cache.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.artifacts import SampleSettings
from pipeline.inference import for_inference
from pipeline.log import UserError
from pipeline.model.gpt import GPT
from pipeline.model.kv_cache import KVCache

NUCLEUS_TOKENS = 256  # usually enough to reach top_p


@dataclass(frozen=True)
class NewToken:
    """One token of one sample."""

    prompt: int
    sample: int
    token: int
    logprob: float
    """Its natural log-probability under the model: at temperature 1, nothing filtered."""


def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    settings: SampleSettings,
    *,
    eot_id: int,
    dtype: torch.dtype,
    samples_per_prompt: int,
) -> list[list[list[int]]]:
    """For each prompt, the new tokens of each of its samples, without the end-of-text token.

    `prompts`: token ids; an empty prompt starts a document. `dtype` of matrix products. The model and the random state
    are left untouched. Raises UserError for ids outside the vocabulary, and for a model whose logits are NaN.
    """
    samples: list[list[list[int]]] = [[[] for _ in range(samples_per_prompt)] for _ in prompts]
    fast = for_inference(model, dtype)
    for new in stream(fast, prompts, settings, eot_id=eot_id, samples_per_prompt=samples_per_prompt):
        if new.token != eot_id:
            samples[new.prompt][new.sample].append(new.token)
    return samples


@torch.no_grad()
def stream(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    settings: SampleSettings,
    *,
    eot_id: int,
    samples_per_prompt: int = 1,
    first_sample: int = 0,
) -> Iterator[NewToken]:
    """Every new token as it is drawn, end-of-text included; within a step in the order of prompts and samples.

    `model`: from `for_inference`. `first_sample`: index of each prompt's first sample, to continue an earlier call.
    """
    vocabulary = model.config.text_vocab_size
    for number, prompt in enumerate(prompts):
        if invalid := [token for token in prompt if not 0 <= token < vocabulary]:
            raise UserError(f"prompt {number}: token id {invalid[0]} is outside the model's vocabulary ({vocabulary})")
    samples = [
        (prompt, sample)
        for prompt in range(len(prompts))
        for sample in range(first_sample, first_sample + samples_per_prompt)
    ]
    texts = [list(prompts[prompt]) or [eot_id] for prompt, _ in samples]
    random = [random_stream(settings.seed, prompts[prompt], sample) for prompt, sample in samples]
    longest = max(map(len, texts), default=0) + settings.max_new_tokens
    decoder = Decoder(model, texts, longest)
    active = list(range(len(samples)))  # the sample in each row of the decoder
    for step in range(settings.max_new_tokens):
        logits = decoder.logits()  # (B, V)
        uniforms = torch.tensor([random[sample].random() for sample in active], dtype=torch.float64)
        drawn = sample_token(logits, settings.temperature, settings.top_k, settings.top_p, uniforms)
        logprobs = logits.log_softmax(dim=-1).gather(-1, drawn[:, None]).squeeze(-1).tolist()
        tokens = drawn.tolist()
        if any(map(math.isnan, logprobs)):
            raise UserError("the model's logits are NaN: its weights are broken")
        for sample, token, logprob in zip(active, tokens, logprobs, strict=True):
            yield NewToken(*samples[sample], token, logprob)
        decoder.append(tokens)
        unfinished = [row for row, token in enumerate(tokens) if token != eot_id]
        if not unfinished or step == settings.max_new_tokens - 1:
            return
        if len(unfinished) < len(active):
            decoder.keep(unfinished)
            active = [active[row] for row in unfinished]


def random_stream(seed: int, prompt: Sequence[int], sample: int) -> np.random.Generator:
    """The random numbers of one sample: the same on every machine and whatever else is generated."""
    # NumPy ignores trailing zeros of a seed, so the prompt's length is part of it and the seed comes last.
    return np.random.default_rng([sample, len(prompt), *prompt, seed])


def sample_token(logits: Tensor, temperature: float, top_k: int, top_p: float, uniforms: Tensor) -> Tensor:
    """The next token of each row: logits (B, V), uniforms (B,) float64 in [0, 1) -> (B,) int64.

    Temperature 0 takes the most likely token. Otherwise: divide by the temperature, keep the `top_k` most likely tokens
    (0: all), then the fewest whose probabilities reach `top_p` (1: all; nucleus sampling, arXiv 1904.09751), and draw.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    ids = None
    if top_k:
        logits, ids = logits.topk(min(top_k, logits.size(-1)), dim=-1)
    # With the maximum at 0, the most likely token keeps its probability at any temperature.
    shifted = logits.double() - logits.amax(dim=-1, keepdim=True)
    probabilities = (shifted / temperature).softmax(dim=-1)  # (B, K)
    if top_p < 1:
        probabilities, nucleus = _nucleus(probabilities, top_p)
        ids = nucleus if ids is None else ids.gather(-1, nucleus)
    cumulative = probabilities.cumsum(dim=-1)
    thresholds = uniforms.to(cumulative)[:, None] * cumulative[:, -1:]  # (B, 1), below the total
    # The first token whose cumulative probability exceeds the threshold, so never one of probability zero.
    index = torch.searchsorted(cumulative, thresholds, right=True).clamp(max=cumulative.size(-1) - 1)
    return (index if ids is None else ids.gather(-1, index)).squeeze(-1)


def _nucleus(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The fewest tokens of each row (B, V) that reach `top_p`: probabilities in descending order, then zeros; and ids.

    Selecting some tokens is faster than sorting the vocabulary.
    """
    vocabulary = probabilities.size(-1)
    values, ids = probabilities.topk(min(NUCLEUS_TOKENS, vocabulary), dim=-1)
    if bool((values.sum(dim=-1) < top_p).any()):
        # All tokens below this add up to at most (1 - top_p) / 2, so the others reach top_p.
        threshold = (1 - top_p) / (2 * vocabulary)
        values, ids = probabilities.topk(int((probabilities >= threshold).sum(dim=-1).max()), dim=-1)
    before = values.cumsum(dim=-1) - values  # of more likely tokens; 0 for the first, which stays
    return values.where(before < top_p, 0.0), ids


def window_start(tokens: int, limit: int | None) -> int:
    """Index of the first token that the model sees of a text of `tokens` tokens. `limit`: its context; None: unlimited.

    >>> [window_start(n, 4) for n in (3, 4, 5, 6, 7)]
    [0, 0, 2, 2, 4]
    """
    if limit is None or tokens <= limit:
        return 0
    hop = limit - limit // 2
    return -(-(tokens - limit) // hop) * hop


class Decoder:
    """Growing texts in one batch. `rows` holds their tokens, at least one each."""

    def __init__(self, model: GPT, rows: Sequence[Sequence[int]], longest: int) -> None:
        """`longest`: maximum tokens that a row will have, for the size of the cache."""
        self.model = model
        self.rows = [list(row) for row in rows]
        self.limit = model.config.context_limit
        self.slots = longest if self.limit is None else min(longest, self.limit)
        self.device = model.transformer.wte.weight.device
        self.cache: KVCache | None = None
        self.starts: list[int] = []
        self._unread = 0  # tokens at the end of each row that are not in the cache

    def logits(self) -> Tensor:
        """The next token's logits for each row, (B, V) float32.

        Between two calls, `append` must add one token to each row, or `extend` several to the only one.
        """
        before, self.starts = self.starts, [window_start(len(row), self.limit) for row in self.rows]
        unread, self._unread = self._unread, 0
        moved = [row for row, start in enumerate(self.starts) if before and start != before[row]]
        if self.cache is None or (moved and unread > 1):
            hidden = self._prefill([row[start:] for row, start in zip(self.rows, self.starts, strict=True)])
        else:
            if moved:
                self._reread(moved, self.cache)
            if self.cache.length + unread > self.slots:
                self.cache.trim()
            ids = torch.tensor([row[-unread:] for row in self.rows], device=self.device)
            hidden = self.model.hidden(ids, self.cache)
        return self.model.logits(hidden[:, -1]).float()

    def append(self, tokens: Sequence[int]) -> None:
        """Adds one token to each row."""
        self._unread += 1
        for row, token in zip(self.rows, tokens, strict=True):
            row.append(token)

    def extend(self, tokens: Sequence[int], longest: int) -> None:
        """Adds tokens to the only row. `longest`: maximum tokens that it will have before the next call."""
        (row,) = self.rows
        row += tokens
        self._unread += len(tokens)
        if self.limit is None and longest > self.slots:  # read again, into a cache with room for later turns too
            self.slots, self.cache = 2 * longest, None

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all rows except these (current indices)."""
        self.rows = [self.rows[row] for row in rows]
        self.starts = [self.starts[row] for row in rows]
        if self.cache is not None:
            self.cache = self.cache.take(torch.tensor(rows, device=self.device))

    def _prefill(self, texts: list[list[int]]) -> Tensor:
        """Fills a new cache; equal texts are computed once. Hidden states, the newest last.  # (B, T, C)"""
        distinct = list(dict.fromkeys(map(tuple, texts)))
        width = max(map(len, distinct))
        lengths = torch.tensor([len(text) for text in distinct], device=self.device)
        padding = None if bool((lengths == width).all()) else width - lengths
        idx = torch.tensor([[0] * (width - len(text)) + list(text) for text in distinct], device=self.device)
        self.cache = self.model.new_cache(len(distinct), self.slots, padding)
        hidden = self.model.hidden(idx, self.cache)
        if len(distinct) < len(texts):
            row_of = {text: row for row, text in enumerate(distinct)}
            rows = torch.tensor([row_of[tuple(text)] for text in texts], device=self.device)
            self.cache, hidden = self.cache.take(rows), hidden[rows]
        return hidden

    def _reread(self, moved: list[int], cache: KVCache) -> None:
        """Replaces the cached tokens of rows whose windows moved by their new windows, without the newest token.

        A window moves when it is full, so these texts have the same length, and are shorter than what the cache holds.
        """
        texts = [self.rows[row][self.starts[row] : -1] for row in moved]
        fresh = self.model.new_cache(len(texts), len(texts[0]))
        self.model.hidden(torch.tensor(texts, dtype=torch.int64, device=self.device), fresh)
        cache.replace(torch.tensor(moved, device=self.device), fresh)
