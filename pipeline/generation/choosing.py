"""From logits to the next token: temperature, top-k, top-p, and one random number for each token.

A token is chosen by inverting the cumulative distribution at a uniform random number. So the choices of a sample are a
function of its own numbers, and no other sample in the batch, finished or added, can shift them.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def random_stream(seed: int, prompt: Sequence[int], sample: int) -> np.random.Generator:
    """The random numbers of one sample: the same whatever else is generated beside it, and on every machine."""
    # NumPy takes numbers that differ in zeros at their end for the same. The length says where the prompt ends.
    return np.random.default_rng([sample, len(prompt), *prompt, seed])


def choose(logits: Tensor, temperature: float, top_k: int, top_p: float, uniforms: Tensor) -> Tensor:
    """The next token of each row: logits (B, V), uniforms (B,) float64 in [0, 1) -> (B,) int64.

    Temperature 0 takes the likeliest token. Otherwise: divide by the temperature, keep the `top_k` likeliest tokens (0:
    all), then the fewest of these whose probabilities reach `top_p` of theirs (1: all; arXiv 1904.09751), and draw.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    ids = None
    if top_k or top_p < 1:
        logits, ids = logits.topk(min(top_k or logits.size(-1), logits.size(-1)), dim=-1)  # likeliest first
    below = logits.double() - logits.amax(dim=-1, keepdim=True)  # 0 for the likeliest: so it stays at any temperature
    probabilities = (below / temperature).softmax(dim=-1)  # (B, K)
    if top_p < 1:
        before = probabilities.cumsum(dim=-1) - probabilities  # of the likelier ones: 0 for the first, which stays
        probabilities = probabilities.where(before < top_p, 0.0)
    cumulative = probabilities.cumsum(dim=-1)
    drawn = uniforms.to(cumulative)[:, None] * cumulative[:, -1:]  # (B, 1), below the total
    # The first token whose cumulative probability exceeds the number: never one of probability zero.
    found = torch.searchsorted(cumulative, drawn, right=True).clamp(max=cumulative.size(-1) - 1)
    return (found if ids is None else ids.gather(-1, found)).squeeze(-1)
