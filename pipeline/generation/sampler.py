"""Generation: many prompts, many samples of each, token by token.

    generate(model, prompts, settings, eot_id=encoding.eot_token, dtype=torch.bfloat16, samples_per_prompt=2)
    for new in stream(for_inference(model, dtype), [prompt], settings, eot_id=...): ...   # as they come

The same seed gives the same texts on the same machine. A sample depends on its prompt, its number among the samples of
that prompt, and the seed; not on what else is in the batch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pipeline.generation.choosing import choose, random_stream
from pipeline.generation.decoder import Decoder
from pipeline.model.gpt import GPT
from pipeline.model.inference import for_inference


@dataclass(frozen=True)
class Settings:
    """How to sample: the keys of the `sample` section, with the same meaning."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int

    def __post_init__(self) -> None:
        for name, rule, holds in (
            ("max_new_tokens", "at least 1", self.max_new_tokens >= 1),
            ("temperature", "at least 0 and finite", 0 <= self.temperature < math.inf),
            ("top_k", "at least 0", self.top_k >= 0),
            ("top_p", "above 0 and at most 1", 0 < self.top_p <= 1),
            ("seed", "at least 0", self.seed >= 0),
        ):
            if not holds:
                raise ValueError(f"{name} ({getattr(self, name)}) must be {rule}")


@dataclass(frozen=True)
class NewToken:
    """One token of one sample."""

    prompt: int
    sample: int
    token: int
    logprob: float
    """Its natural log-probability under the model itself: at temperature 1, nothing filtered."""


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

    `prompts`: token ids; an empty one starts a document. `dtype` of matrix products. Touches nothing of the model, nor
    any random state. Raises ValueError for ids that the model has not, and where its logits are no numbers.
    """
    found: list[list[list[int]]] = [[[] for _ in range(samples_per_prompt)] for _ in prompts]
    fast = for_inference(model, dtype)
    for new in stream(fast, prompts, settings, eot_id=eot_id, samples_per_prompt=samples_per_prompt):
        if new.token != eot_id:
            found[new.prompt][new.sample].append(new.token)
    return found


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
    """Every new token as it is chosen, in the order of prompts and samples within a step; end-of-text too.

    `model`: as `for_inference` makes it. `first_sample`: the number of the first sample of each prompt, to go on where
    an earlier call ended.
    """
    for number, prompt in enumerate(prompts):
        if wrong := [token for token in prompt if not 0 <= token < model.config.text_vocab_size]:
            size = model.config.text_vocab_size
            raise ValueError(f"prompt {number}: token id {wrong[0]} is outside the model's vocabulary ({size})")
    samples = [
        (prompt, sample)
        for prompt in range(len(prompts))
        for sample in range(first_sample, first_sample + samples_per_prompt)
    ]
    texts = [list(prompts[prompt]) or [eot_id] for prompt, _ in samples]
    random = [random_stream(settings.seed, prompts[prompt], sample) for prompt, sample in samples]
    longest = max(map(len, texts), default=0) + settings.max_new_tokens
    decoder = Decoder(model, texts, longest)
    active = list(range(len(samples)))
    for step in range(settings.max_new_tokens):
        logits = decoder.logits()  # (B, V)
        uniforms = torch.tensor([random[row].random() for row in active], dtype=torch.float64)
        chosen = choose(logits, settings.temperature, settings.top_k, settings.top_p, uniforms)
        logprobs = logits.log_softmax(dim=-1).gather(-1, chosen[:, None]).squeeze(-1).tolist()
        tokens = chosen.tolist()
        if any(map(math.isnan, logprobs)):
            raise ValueError("the model's logits are no numbers (NaN): its weights are broken")
        for row, token, logprob in zip(active, tokens, logprobs, strict=True):
            yield NewToken(*samples[row], token, logprob)
        decoder.append(tokens)
        going = [place for place, token in enumerate(tokens) if token != eot_id]
        if not going or step == settings.max_new_tokens - 1:
            return
        if len(going) < len(active):
            decoder.keep(going)
            active = [active[place] for place in going]
