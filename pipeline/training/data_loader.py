"""The blocks of the token stream that a step sees, and the batches of one rank.

Text is cut every `block_size` tokens, across documents. Conversations are packed: a block is as many whole ones in a
row as fit, and only those longer than a block are cut.

The blocks of a step depend only on seed, shuffle, sequences per step, number of blocks and step, not on the world size
or the micro-batch size. So the step is the loader's whole state. The permutation of an epoch is computed, not stored: a
Feistel network over the next power of four, applied again until the result is inside the range (cycle walking; Black
and Rogaway, "Ciphers with arbitrary finite domains", 2002). It needs no memory for any number of blocks.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.artifacts import COUNTS, STARTS
from pipeline.corpus.shards import TokenStream
from pipeline.distributed import Group
from pipeline.log import UserError
from pipeline.model.gpt import IGNORE_INDEX
from pipeline.runtime import RuntimeParams
from pipeline.training.params import TrainParams

ROUNDS = 6  # of the Feistel network

Indices = npt.NDArray[np.int64]


def blocks_of_step(step: int, sequences: int, n_blocks: int, shuffle: bool, seed: int) -> Indices:
    """The block indices of step `step`, counted from 0: (sequences,) int64, each in [0, n_blocks).

    Steps take consecutive positions in an endless sequence of epochs; a step may span several. Within an epoch every
    block occurs exactly once: in the order of the stream or, with `shuffle`, in a new order each epoch.
    """
    positions = np.arange(step * sequences, (step + 1) * sequences, dtype=np.int64)
    epochs, indices = np.divmod(positions, n_blocks)
    if not shuffle:
        return indices
    blocks = np.empty_like(indices)
    for epoch in np.unique(epochs):
        in_epoch = epochs == epoch
        blocks[in_epoch] = permute(indices[in_epoch], n_blocks, seed, int(epoch))
    return blocks


def permute(indices: Indices, size: int, seed: int, epoch: int) -> Indices:
    """Applies the permutation of range(size) that (seed, epoch) selects to `indices`; int64 of the same shape."""
    half_bits = max(1, -(-(size - 1).bit_length() // 2))  # the network's domain: 2 ** (2 * half_bits) >= size
    keys = np.random.SeedSequence((seed, epoch)).generate_state(ROUNDS, np.uint64).astype(np.uint64)
    values = indices.astype(np.uint64)
    outside = np.ones(values.shape, dtype=bool)
    while outside.any():
        values[outside] = _feistel(values[outside], half_bits, keys)
        outside = values >= size
    return values.astype(np.int64)


def _feistel(values: npt.NDArray[np.uint64], half_bits: int, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A bijection of [0, 2 ** (2 * half_bits)): each round can be undone, whatever the round function."""
    bits, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right, key) & mask)
    return (left << bits) | right


def _mix(values: npt.NDArray[np.uint64], key: np.uint64) -> npt.NDArray[np.uint64]:
    """A keyed hash of 64-bit integers: SplitMix64's finaliser (Steele et al., OOPSLA 2014)."""
    mixed = (values + np.uint64(0x9E3779B97F4A7C15)) ^ key  # uint64 arithmetic wraps around, which the hash needs
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def pack(starts: Indices, tokens: int, block_size: int) -> Indices:
    """The blocks [begin, end) of documents: (blocks, 2), each with at most block_size + 1 tokens, targets included.

    `starts`: of the documents in a stream of `tokens` tokens. A longer document is cut; the last token of a cut is only
    a target, and the first input of the next.
    """
    blocks = []
    begin = end = 0  # of the block that is being filled
    for start, stop in pairwise([*starts.tolist(), tokens]):
        if stop - begin > block_size + 1:
            if end > begin:
                blocks.append((begin, end))
            begin = start
            while stop - begin > block_size + 1:
                blocks.append((begin, begin + block_size + 1))
                begin += block_size
        end = stop
    return np.array([*blocks, (begin, end)], np.int64)


class MicroBatch(NamedTuple):
    """What one forward and backward pass of a rank computes."""

    inputs: Tensor
    """(B, T) int64."""
    targets: Tensor
    """(B, T) int64, -1 where they do not count in the loss."""
    documents: Tensor | None
    """With train.document_mask: the number of each input's document, (B, T) int64."""
    divisor: float
    """What to divide this micro-batch's mean loss by. Summed over micro-batches and averaged over ranks, the result is
    the mean over all counted targets of the step. Equals the number of micro-batches where every target counts.
    Infinite where none does: `targets` are then unmasked, so that the loss is finite, and contribute zero."""


class Step(NamedTuple):
    """A rank's share of a step, on the host."""

    tokens: Tensor
    """(accumulation steps, B, T + 1) int32."""
    mask: Tensor | None
    """The same shape in uint8, with the bits of pipeline.artifacts; None: all count, and attend to each other."""
    divisors: list[float]
    """Of each micro-batch."""


class Loader:
    """Yields the micro-batches of any step on one rank."""

    def __init__(
        self, stream: TokenStream, block_size: int, train: TrainParams, runtime: RuntimeParams, group: Group
    ) -> None:
        """Raises UserError if the batch cannot be divided among the ranks, or the split is shorter than one block."""
        self.stream, self.block_size, self.train, self.group = stream, block_size, train, group
        self.sequences = train.total_batch_size // block_size
        if self.sequences % group.world_size:
            raise UserError(
                f"train.total_batch_size ({train.total_batch_size}) must be a multiple of "
                f"model.block_size ({block_size}) x world size ({group.world_size})"
            )
        self.blocks: Indices | None = None  # of conversations
        self.n_blocks = (len(stream) - 1) // block_size  # the last block needs one more token, its final target
        if stream.has_mask:
            self.blocks = pack(stream.document_starts, len(stream), block_size)
            self.n_blocks = len(self.blocks)
            # of each block, the targets that count
            masks = (stream.mask(begin + 1, end - begin - 1) for begin, end in self.blocks.tolist())
            self.counted = np.array([np.count_nonzero(mask & COUNTS) for mask in masks])
        if self.n_blocks < 1:
            raise UserError(
                f"data/shards: the train split ({len(stream)} tokens) must hold model.block_size ({block_size}) + 1"
            )
        self.micro_batch_size = largest_divisor(self.sequences // group.world_size, runtime.micro_batch_size)
        self.accumulation_steps = self.sequences // group.world_size // self.micro_batch_size
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._ahead: tuple[int, Future[Step]] | None = None

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        """The micro-batches of a step, counted from 0: `accumulation_steps` of them, on the device.

        Meanwhile, the next step is read in the background.
        """
        if self._ahead is not None and self._ahead[0] == step:
            read = self._ahead[1].result()
        else:
            read = self._read(step)
        self._ahead = (step + 1, self._pool.submit(self._read, step + 1))
        for number, divisor in enumerate(read.divisors):
            # Converted on the device: a copy that also converts goes through unpinned memory and blocks the host.
            block = read.tokens[number].to(self.group.device, non_blocking=True).long()  # (B, T + 1)
            inputs, targets, documents = block[:, :-1], block[:, 1:], None
            if read.mask is not None:
                mask = read.mask[number].to(self.group.device, non_blocking=True)  # (B, T + 1)
                if divisor < np.inf:
                    targets = targets.masked_fill(mask[:, 1:] & COUNTS == 0, IGNORE_INDEX)
                if self.train.document_mask:
                    documents = (mask[:, :-1] & STARTS != 0).cumsum(dim=1)
            yield MicroBatch(inputs, targets, documents, divisor)

    def close(self) -> None:
        """Ends the background thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, step: int) -> Step:
        """This rank's blocks of a step, in pinned memory for a GPU.

        Micro-batch m of rank r holds rows [(m x world + r) B, ...) of the step. Without shuffling, this matches the
        order of build-nanogpt's DataLoaderLite within a shard: neighbouring ranks read neighbouring chunks of B x T
        tokens, and all advance by B x T x world size.
        """
        blocks = blocks_of_step(step, self.sequences, self.n_blocks, self.train.shuffle, self.train.seed)
        ranks = blocks.reshape(self.accumulation_steps, self.group.world_size, self.micro_batch_size)
        mine = ranks[:, self.group.rank]
        length = self.block_size + 1
        tokens = np.empty((mine.size, length), dtype=np.int32)
        for row, block in enumerate(mine.ravel()):
            start, count = self._range(int(block))
            tokens[row, :count] = self.stream.read(start, count)
            tokens[row, count:] = tokens[row, 0]  # padding: neither counted nor, with a document mask, attended to
        mask, divisors = None, [float(self.accumulation_steps)] * self.accumulation_steps
        if self.stream.has_mask:
            masks = np.zeros((mine.size, length), dtype=np.uint8)
            for row, block in enumerate(mine.ravel()):
                start, count = self._range(int(block))
                masks[row, :count] = self.stream.mask(start, count)
                masks[row, count : count + 1] = STARTS
            mask = self._pinned(masks.reshape(*mine.shape, length))
            counted = self.counted[ranks].sum(axis=2)  # (accumulation steps, ranks)
            total = int(counted.sum())
            own = (counted[:, self.group.rank] * self.group.world_size).tolist()
            divisors = [total / count if count else np.inf for count in own]
        elif self.train.document_mask:  # every token of a text counts
            masks = np.where(tokens == self.stream.manifest.eot_id, COUNTS | STARTS, COUNTS).astype(np.uint8)
            mask = self._pinned(masks.reshape(*mine.shape, length))
        return Step(self._pinned(tokens.reshape(*mine.shape, length)), mask, divisors)

    def _range(self, block: int) -> tuple[int, int]:
        """The first token of a block, and its number of tokens, targets included."""
        if self.blocks is None:
            return block * self.block_size, self.block_size + 1
        start, end = self.blocks[block].tolist()
        return start, end - start

    def _pinned(self, array: npt.NDArray[np.int32 | np.uint8]) -> Tensor:
        batch = torch.from_numpy(np.ascontiguousarray(array))
        return batch.pin_memory() if self.group.device.type == "cuda" else batch


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`."""
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)
