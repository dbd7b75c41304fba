"""Validation loss: every token of a split once, summed in float64, the same for any batch and world size.

    loss = validation_loss(model, open_split(shards, "val"), encoding, tokens=None, stride=None, batch_size=32, ...)
    loss.nats_per_token, loss.perplexity, loss.bits_per_byte

Batches are cut before they are dealt to the ranks, and the ranks exchange the sum of every window and not their totals.
So each window is computed by the same operations on any number of ranks, and the total, which is rounded once
(`math.fsum`), has no order: world sizes agree bit for bit. Another batch size may choose other routines for the matrix
products, and agrees within their rounding.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tiktoken
import torch
from torch import Tensor

from pipeline.corpus.encodings import token_byte_lengths
from pipeline.corpus.shards import TokenStream
from pipeline.distributed import Group
from pipeline.evaluation.windows import Window, token_nats, windows
from pipeline.model.gpt import GPT
from pipeline.model.inference import for_inference
from pipeline.progress import Progress


@dataclass(frozen=True)
class ValLoss:
    """The loss on a range of a split."""

    nats: float
    """Of all tokens scored, end-of-text tokens too."""

    tokens: int
    """Scored: all in the range but the first, which has nothing before it."""

    utf8_bytes: int
    """Of text that the scored tokens decode to."""

    @property
    def nats_per_token(self) -> float:
        """The loss that training reports. Depends on the encoding: fewer, longer tokens are harder each."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp of the loss per token; infinite where that is too large for a float."""
        return math.exp(self.nats_per_token) if self.nats_per_token < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """The loss as bits per byte of text, comparable across encodings. The ends of documents are part of it."""
        return self.nats / math.log(2) / self.utf8_bytes if self.utf8_bytes else math.inf


@torch.no_grad()
def validation_loss(
    model: GPT,
    stream: TokenStream,
    encoding: tiktoken.Encoding,
    *,
    tokens: int | None,
    stride: int | None,
    batch_size: int,
    dtype: torch.dtype,
    group: Group,
    progress: Progress | None = None,
) -> ValLoss:
    """The loss of `model` on a split: on its first `tokens` tokens that can be scored, or on all (None).

    Called by every rank alike; all get the same result. `stride` in tokens, None: the context
    (pipeline.evaluation.windows). `batch_size`: windows per forward pass of a rank. `dtype` of matrix products.
    `progress`: advanced by the tokens of every rank's batch when this rank has finished its own, so to all on rank 0.

    Touches nothing of the model, nor any random state. Raises ValueError where the range holds nothing to score, or ids
    that the vocabulary has not.
    """
    count = len(stream) if tokens is None else min(tokens + 1, len(stream))
    if count < 2:
        raise ValueError(f"{stream.directory}: {stream.split} split of {len(stream)} tokens: at least 2 are needed")
    if encoding.n_vocab > model.config.text_vocab_size:
        raise ValueError(
            f"encoding {encoding.name} ({encoding.n_vocab} ids) exceeds the model's vocabulary "
            f"({model.config.text_vocab_size})"
        )
    block_size = model.config.block_size
    stride = block_size if stride is None else stride
    if not 1 <= stride <= block_size:
        raise ValueError(f"evaluate.stride ({stride}) must be 1 to the model's block_size ({block_size})")

    fast = for_inference(model, dtype)
    byte_lengths = token_byte_lengths(encoding)
    plan = list(windows(count, block_size, stride))
    nats = torch.zeros(len(plan), dtype=torch.float64)
    utf8_bytes = torch.zeros(1, dtype=torch.int64)
    at_once = group.world_size * batch_size  # a batch for each rank
    for first in range(group.rank * batch_size, len(plan), at_once):
        batch = plan[first : first + batch_size]
        texts = [stream.read(window.start, window.length + 1).astype(np.int64) for window in batch]
        nats[first : first + len(batch)] = _window_nats(fast, batch, texts, group.device).cpu()
        for window, text in zip(batch, texts, strict=True):
            utf8_bytes += int(byte_lengths[text[-window.scored :]].sum())
        if progress is not None:
            begin = first - group.rank * batch_size
            progress.advance(sum(window.scored for window in plan[begin : begin + at_once]))
    group.sum_(nats)  # every window is nonzero on one rank alone, so this addition is exact
    group.sum_(utf8_bytes)
    return ValLoss(math.fsum(nats.tolist()), count - 1, int(utf8_bytes))


def _window_nats(model: GPT, batch: list[Window], texts: list[npt.NDArray[np.int64]], device: torch.device) -> Tensor:
    """The summed nats of each window's scored tokens, (B,) float64. `texts`: each window's inputs and last target."""
    width = max(window.length for window in batch)
    idx = torch.zeros(len(batch), width, dtype=torch.int64)  # a short window is padded behind, where no token looks
    targets = torch.zeros_like(idx)
    scored = torch.zeros_like(idx, dtype=torch.bool)
    for row, (window, text) in enumerate(zip(batch, texts, strict=True)):
        idx[row, : window.length] = torch.from_numpy(text[:-1])
        targets[row, : window.length] = torch.from_numpy(text[1:])
        scored[row, window.length - window.scored : window.length] = True
    idx, targets, scored = idx.to(device), targets.to(device), scored.to(device)
    hidden = model.hidden(idx)[scored]  # (N, C)
    nats = torch.zeros(idx.shape, dtype=torch.float64, device=device)
    nats[scored] = token_nats(model, hidden, targets[scored]).double()
    return nats.sum(dim=1)
