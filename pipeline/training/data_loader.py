"""The blocks of the token stream that a step sees, and the batches of one rank.

The blocks of a step depend only on seed, shuffle, sequences per step, number of blocks and step, not on the world size
or the micro-batch size. So the step is the loader's whole state. The permutation of an epoch is computed, not stored: a
Feistel network over the next power of four, applied again until the result is inside the range (cycle walking; Black
and Rogaway, "Ciphers with arbitrary finite domains", 2002). It needs no memory for any number of blocks.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.corpus.shards import TokenStream
from pipeline.distributed import Group
from pipeline.log import UserError
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
        self.n_blocks = (len(stream) - 1) // block_size  # the last block needs one more token, its final target
        if self.n_blocks < 1:
            raise UserError(
                f"data/shards: the train split ({len(stream)} tokens) must hold model.block_size ({block_size}) + 1"
            )
        self.micro_batch_size = largest_divisor(self.sequences // group.world_size, runtime.micro_batch_size)
        self.accumulation_steps = self.sequences // group.world_size // self.micro_batch_size
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._ahead: tuple[int, Future[Tensor]] | None = None

    def micro_batches(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets of a step, counted from 0: `accumulation_steps` pairs of (B, T) int64 on the device.

        Meanwhile, the next step is read in the background.
        """
        if self._ahead is not None and self._ahead[0] == step:
            tokens = self._ahead[1].result()
        else:
            tokens = self._read(step)
        self._ahead = (step + 1, self._pool.submit(self._read, step + 1))
        for block in tokens:  # (B, T + 1)
            # Converted on the device: a copy that also converts goes through unpinned memory and blocks the host.
            block = block.to(self.group.device, non_blocking=True).long()
            yield block[:, :-1], block[:, 1:]

    def close(self) -> None:
        """Ends the background thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, step: int) -> Tensor:
        """This rank's blocks of a step: (accumulation steps, B, T + 1) int32, in pinned memory for a GPU.

        Micro-batch m of rank r holds rows [(m x world + r) B, ...) of the step. Without shuffling, this matches the
        order of build-nanogpt's DataLoaderLite within a shard: neighbouring ranks read neighbouring chunks of B x T
        tokens, and all advance by B x T x world size.
        """
        blocks = blocks_of_step(step, self.sequences, self.n_blocks, self.train.shuffle, self.train.seed)
        mine = blocks.reshape(self.accumulation_steps, self.group.world_size, self.micro_batch_size)[:, self.group.rank]
        length = self.block_size + 1
        tokens = np.empty((mine.size, length), dtype=np.int32)
        for row, block in enumerate(mine.ravel()):
            tokens[row] = self.stream.read(int(block) * self.block_size, length)
        batch = torch.from_numpy(tokens.reshape(*mine.shape, length))
        return batch.pin_memory() if self.group.device.type == "cuda" else batch


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`."""
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)
