"""A long text cut into windows that a model can see at once, and the model's loss on every token of them.

Windows start every `stride` tokens. Each token is scored once, in the first window that reaches it; the very first
token of the text has nothing before it and is never scored. With a context of 4:

    tokens      0 1 2 3 4 5 6 7 8
    stride 4    ^[0 1 2 3]            inputs 0-3 score tokens 1-4
                        ^[4 5 6 7]    inputs 4-7 score tokens 5-8
    stride 2    ^[0 1 2 3]            inputs 0-3 score tokens 1-4
                    ^[2 3 4 5]        inputs 2-5 score tokens 5-6, which have 3 and 4 tokens before them
                        ^[4 5 6 7]    inputs 4-7 score tokens 7-8
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.model.gpt import GPT

# Logits that are held at a time: what stays in a CPU's cache; on a GPU, 1 GiB of float32.
LOGITS_ON_CPU, LOGITS_ON_GPU = 2**22, 2**28


@dataclass(frozen=True)
class Window:
    """Inputs are the tokens [start, start + length); their targets stand one further. The last `scored` ones count."""

    start: int
    length: int
    scored: int


def windows(tokens: int, block_size: int, stride: int) -> Iterator[Window]:
    """The windows that score each of `tokens` tokens but the first exactly once, in order; see the module."""
    scored_to = 0  # the last token that has been scored
    for start in range(0, tokens, stride):
        end = min(start + block_size, tokens - 1)
        if end <= scored_to:
            return
        yield Window(start, end - start, end - scored_to)
        scored_to = end


def token_nats(model: GPT, hidden: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of each target, in nats: hidden (N, C), targets (N,) int64 -> (N,) float32.

    The logits are computed for a few rows at a time and never exist as a whole; the softmax is computed in float32.
    """
    nats = torch.empty(len(targets), device=hidden.device)
    held = LOGITS_ON_CPU if hidden.device.type == "cpu" else LOGITS_ON_GPU
    rows = max(1, held // model.config.vocab_size)
    for start in range(0, len(targets), rows):
        part = slice(start, start + rows)
        nats[part] = F.cross_entropy(model.logits(hidden[part]).float(), targets[part], reduction="none")
    return nats
