"""Validation loss: every token of a split scored once, the same for any world size.

Of conversations, only the tokens that count are scored, and each conversation is read alone, as in generation.

    loss = validation_loss(model, open_split(shards, "val"), tokenizer, tokens=None, stride=None, batch_size=32, ...)
    loss.nats_per_token, loss.perplexity, loss.bits_per_byte

Windows are batched before the batches are assigned to ranks, and ranks exchange the sum of each window rather than
totals. So each window is computed by the same operations on any number of ranks, and the total is rounded once
(`math.fsum`): world sizes agree bit for bit. Another batch size may select other matrix kernels and agrees within their
rounding.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import tiktoken
import torch

from pipeline.artifacts import COUNTS
from pipeline.corpus.shards import TokenStream
from pipeline.corpus.tokenizer import token_byte_lengths
from pipeline.distributed import Group
from pipeline.evaluation.surprisal import Window, summed_nats, windows
from pipeline.inference import for_inference
from pipeline.log import UserError
from pipeline.model.gpt import GPT, IGNORE_INDEX
from pipeline.progress import Progress


@dataclass(frozen=True)
class ValLoss:
    """The loss on a range of a split."""

    nats: float
    """Sum over all scored tokens, end-of-text tokens included."""

    tokens: int
    """Tokens scored: all in the range except the first, which has no context; of conversations, those that count."""

    utf8_bytes: int
    """Bytes of text that the scored tokens decode to."""

    @property
    def nats_per_token(self) -> float:
        """The loss that training reports. Not comparable across tokenizers: longer tokens are harder to predict."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp of the loss per token; infinite where that overflows a float."""
        return math.exp(self.nats_per_token) if self.nats_per_token < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """The loss in bits per byte of text, comparable across tokenizers. End-of-text tokens have no bytes."""
        return self.nats / math.log(2) / self.utf8_bytes if self.utf8_bytes else math.inf


@torch.no_grad()
def validation_loss(
    model: GPT,
    stream: TokenStream,
    tokenizer: tiktoken.Encoding,
    *,
    tokens: int | None,
    stride: int | None,
    batch_size: int,
    dtype: torch.dtype,
    group: Group,
    progress: Progress | None = None,
) -> ValLoss:
    """The loss of `model` on the first `tokens` tokens of a split that can be scored, or on all (None).

    Of conversations, on those that begin within the first `tokens` tokens.

    Called by every rank; all return the same result. `stride`: tokens from one window to the next, None: the context
    (pipeline.evaluation.surprisal). `batch_size`: windows per forward pass of a rank. `dtype` of matrix products.
    `progress` is advanced by the tokens of all ranks' batches when this rank has finished its own.

    The model and the random state are left untouched. Raises UserError where the split has nothing to score, the stride
    exceeds the context, or an id is outside the vocabulary.
    """
    count = len(stream) if tokens is None else min(tokens + 1, len(stream))
    if count < 2:
        raise UserError(f"{stream.directory}: {stream.split} split of {len(stream)} tokens: at least 2 are needed")
    block_size = model.config.block_size
    stride = block_size if stride is None else stride
    if not 1 <= stride <= block_size:
        raise UserError(f"evaluate.stride ({stride}) must be 1 to the model's block_size ({block_size})")

    fast = for_inference(model, dtype)
    byte_lengths = token_byte_lengths(tokenizer)
    plan = list(_plan(stream, count, block_size, stride))
    nats = torch.zeros(len(plan), dtype=torch.float64)
    sizes = torch.zeros(2, dtype=torch.int64)  # tokens scored, and their bytes
    at_once = group.world_size * batch_size  # a batch for each rank
    for begin in range(0, len(plan), at_once):
        mine = slice(begin + group.rank * batch_size, begin + (group.rank + 1) * batch_size)
        rows = []
        for window in plan[mine]:
            text = stream.read(window.start, window.length + 1).astype(np.int64)
            targets = text[-window.scored :]
            if stream.has_mask:
                mask = stream.mask(window.start, window.length + 1)[-window.scored :]
                targets = np.where(mask & COUNTS, targets, IGNORE_INDEX)
            rows.append((text[:-1], targets))
            scored = targets[targets >= 0]
            sizes += torch.tensor([len(scored), int(byte_lengths[scored].sum())])
        if rows:
            nats[mine] = summed_nats(fast, rows, group.device).cpu()
        if progress is not None:
            progress.advance(sum(window.scored for window in plan[begin : begin + at_once]))
    group.sum_(nats)  # each window is nonzero on one rank only, so this sum is exact
    scored_tokens, utf8_bytes = group.sum_(sizes).tolist()
    if scored_tokens == 0:
        raise UserError(f"{stream.directory}: {stream.split} split: no token counts in the loss")
    return ValLoss(math.fsum(nats.tolist()), scored_tokens, utf8_bytes)


def _plan(stream: TokenStream, count: int, block_size: int, stride: int) -> Iterator[Window]:
    """The windows over the first `count` tokens; of conversations, over each that begins there."""
    if not stream.has_mask:
        yield from windows(count, block_size, stride)
        return
    for begin, end in pairwise([*stream.document_starts.tolist(), len(stream)]):
        if begin >= count:
            break
        for window in windows(end - begin, block_size, stride):
            yield replace(window, start=begin + window.start)
