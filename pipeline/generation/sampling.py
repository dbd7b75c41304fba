"""Text generation: many prompts, many samples of each, token by token.

    generate(model, prompts, settings, eot_id=tokenizer.eot_token, dtype=torch.bfloat16, samples_per_prompt=2)
    for new in stream(for_inference(model, dtype), [prompt], settings, eot_id=...): ...   # token by token

A token is drawn by inverting the cumulative distribution at a uniform random number. Each sample has its own stream of
random numbers, a function of its prompt, its index among that prompt's samples, and the seed. So a sample does not
depend on the rest of the batch, and the same seed gives the same texts on the same machine.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.generation.decoder import Decoder
from pipeline.inference import for_inference
from pipeline.log import UserError
from pipeline.model.gpt import GPT


@dataclass(frozen=True)
class Settings:
    """How to sample: keys of the `sample` section, with the same meaning. Raises UserError for values out of range."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int

    def __post_init__(self) -> None:
        for name, rule, valid in (
            ("max_new_tokens", "at least 1", self.max_new_tokens >= 1),
            ("temperature", "at least 0 and finite", 0 <= self.temperature < math.inf),
            ("top_k", "at least 0", self.top_k >= 0),
            ("top_p", "above 0 and at most 1", 0 < self.top_p <= 1),
            ("seed", "at least 0", self.seed >= 0),
        ):
            if not valid:
                raise UserError(f"{name} ({getattr(self, name)}) must be {rule}")


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
    settings: Settings,
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
    settings: Settings,
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
    if top_k or top_p < 1:
        logits, ids = logits.topk(min(top_k or logits.size(-1), logits.size(-1)), dim=-1)  # in descending order
    # With the maximum at 0, the most likely token keeps its probability at any temperature.
    shifted = logits.double() - logits.amax(dim=-1, keepdim=True)
    probabilities = (shifted / temperature).softmax(dim=-1)  # (B, K)
    if top_p < 1:
        before = probabilities.cumsum(dim=-1) - probabilities  # of more likely tokens; 0 for the first, which stays
        probabilities = probabilities.where(before < top_p, 0.0)
    cumulative = probabilities.cumsum(dim=-1)
    thresholds = uniforms.to(cumulative)[:, None] * cumulative[:, -1:]  # (B, 1), below the total
    # The first token whose cumulative probability exceeds the threshold, so never one of probability zero.
    index = torch.searchsorted(cumulative, thresholds, right=True).clamp(max=cumulative.size(-1) - 1)
    return (index if ids is None else ids.gather(-1, index)).squeeze(-1)
