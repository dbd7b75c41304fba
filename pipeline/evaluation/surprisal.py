"""The surprisal of tokens: the cross entropy of each, in nats, given the tokens before it.

Validation loss and the scores of benchmarks are sums of surprisals. A text that is longer than the model's context is
read in windows, one every `stride` tokens. Each token is scored once, in the first window that reaches it; the first
token of the text has no context and is not scored. With a context of 4:

    tokens      0 1 2 3 4 5 6 7 8
    stride 4    ^[0 1 2 3]            inputs 0-3 score tokens 1-4
                        ^[4 5 6 7]    inputs 4-7 score tokens 5-8
    stride 2    ^[0 1 2 3]            inputs 0-3 score tokens 1-4
                    ^[2 3 4 5]        inputs 2-5 score tokens 5-6, with 3 and 4 tokens before them
                        ^[4 5 6 7]    inputs 4-7 score tokens 7-8
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tiktoken
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.corpus.tokenizer import token_texts
from pipeline.inference import for_inference
from pipeline.model.gpt import GPT
from pipeline.model.kv_cache import KVCache

# Logits held in memory at a time: what fits a CPU's cache; on a GPU, 1 GiB of float32.
LOGITS_ON_CPU, LOGITS_ON_GPU = 2**22, 2**28


@dataclass(frozen=True)
class Window:
    """Inputs are the tokens [start, start + length), targets are one further; the last `scored` count."""

    start: int
    length: int
    scored: int


def windows(tokens: int, block_size: int, stride: int) -> Iterator[Window]:
    """The windows that score each of `tokens` tokens except the first exactly once, in order."""
    scored_to = 0  # the last token scored so far
    for start in range(0, tokens, stride):
        end = min(start + block_size, tokens - 1)
        if end <= scored_to:
            return
        yield Window(start, end - start, end - scored_to)
        scored_to = end


def token_nats(model: GPT, hidden: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of each target, in nats: hidden (N, C), targets (N,) int64 -> (N,) float32.

    The logits are computed for a few rows at a time, so they never exist as a whole. The softmax is in float32.
    """
    nats = torch.empty(len(targets), device=hidden.device)
    limit = LOGITS_ON_CPU if hidden.device.type == "cpu" else LOGITS_ON_GPU
    rows = max(1, limit // model.config.vocab_size)
    for start in range(0, len(targets), rows):
        part = slice(start, start + rows)
        nats[part] = F.cross_entropy(model.logits(hidden[part]).float(), targets[part], reduction="none")
    return nats


def token_margins(model: GPT, hidden: Tensor, targets: Tensor) -> Tensor:
    """How far the logit of each target is above all others: hidden (N, C), targets (N,) int64 -> (N,) float32.

    Positive where the target is the most likely token.
    """
    logits = model.logits(hidden).float()  # (N, V)
    own = logits.gather(1, targets[:, None])
    return (own - logits.scatter(1, targets[:, None], -torch.inf).amax(dim=1, keepdim=True))[:, 0]


Tokens = Sequence[int] | npt.NDArray[np.int64]


def summed_nats(model: GPT, rows: Sequence[tuple[Tokens, Tokens]], device: torch.device) -> Tensor:
    """The summed cross entropy of each row's targets, (B,) float64, from one forward pass.

    Each row is (inputs, targets): the targets follow the last inputs; those of -1 are not scored.
    """
    hidden, targets, scored = target_hidden(model, rows, device)
    return row_sums(token_nats(model, hidden, targets), scored)


def target_hidden(
    model: GPT, rows: Sequence[tuple[Tokens, Tokens]], device: torch.device, cache: KVCache | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """One forward pass over rows of (inputs, targets): hidden (N, C) where a target is predicted, the targets (N,), and
    where they are in the padded rows, (B, T) bool.

    `cache`: keys and values of the tokens before.
    """
    width = max(len(inputs) for inputs, _ in rows)
    idx = torch.zeros(len(rows), width, dtype=torch.int64)  # padded on the right: causal attention never looks there
    expected = torch.zeros_like(idx)
    scored = torch.zeros_like(idx, dtype=torch.bool)
    for row, (inputs, targets) in enumerate(rows):
        end = len(inputs)
        idx[row, :end] = torch.as_tensor(inputs)
        expected[row, end - len(targets) : end] = torch.as_tensor(targets)
        scored[row, end - len(targets) : end] = torch.as_tensor(targets) >= 0
    idx, expected, scored = idx.to(device), expected.to(device), scored.to(device)
    return model.hidden(idx, cache)[scored], expected[scored], scored


def row_sums(values: Tensor, scored: Tensor) -> Tensor:
    """The sum of the values (N,) of each row, (B,) float64. `scored`: as from `target_hidden`."""
    padded = torch.zeros(scored.shape, dtype=torch.float64, device=values.device)
    padded[scored] = values.double()
    return padded.sum(dim=1)


@torch.no_grad()
def surprisal(
    model: GPT, tokenizer: tiktoken.Encoding, tokens: Sequence[int], dtype: torch.dtype
) -> list[tuple[str, float]]:
    """The surprisal of each token of a text, which is read as the beginning of a document: (the token's text, nats).

    Beyond the context, each token is scored with at least half a context before it. Tokens that share a character are
    returned as one, with the sum of their nats.
    """
    fast = for_inference(model, dtype)
    ids = torch.tensor([tokenizer.eot_token, *tokens], device=model.transformer.wte.weight.device)
    block_size = model.config.block_size
    nats: list[float] = []
    for window in windows(len(ids), block_size, stride=max(1, block_size // 2)):
        end = window.start + window.length
        hidden = fast.hidden(ids[None, window.start : end])[0]  # (T, C)
        nats += token_nats(fast, hidden[-window.scored :], ids[end - window.scored + 1 : end + 1]).tolist()
    scored_texts: list[tuple[str, float]] = []
    pending = 0.0
    for token_text, value in zip(token_texts(tokenizer, tokens), [*nats, 0.0], strict=True):
        pending += value
        if token_text:
            scored_texts.append((token_text, pending))
            pending = 0.0
    return scored_texts
