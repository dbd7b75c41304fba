"""Batches for one rank: the blocks of each step read from the token stream, the next step's on the way."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from pipeline.corpus.shards import TokenStream
from pipeline.training.order import blocks_of_step


class Loader:
    """Yields the micro-batches of any step; its whole state is the step that it is asked for."""

    def __init__(
        self,
        stream: TokenStream,
        block_size: int,
        total_batch_size: int,
        micro_batch_size: int,
        order: str,
        seed: int,
        rank: int,
        world_size: int,
        device: torch.device,
    ) -> None:
        """`total_batch_size` in tokens. Raises ValueError where the batch or the corpus does not divide as needed."""
        self.stream, self.block_size, self.order, self.seed = stream, block_size, order, seed
        self.rank, self.world_size, self.device = rank, world_size, device
        self.sequences = total_batch_size // block_size
        if self.sequences % world_size:
            raise ValueError(
                f"train.total_batch_size ({total_batch_size}) must be a multiple of "
                f"model.block_size ({block_size}) x world size ({world_size})"
            )
        self.n_blocks = (len(stream) - 1) // block_size  # the last target needs one token more
        if self.n_blocks < 1:
            raise ValueError(
                f"the train split has {len(stream)} tokens: fewer than one block of model.block_size ({block_size}) + 1"
            )
        self.micro_batch_size = largest_divisor(self.sequences // world_size, micro_batch_size)
        self.micro_batches = self.sequences // world_size // self.micro_batch_size
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._ahead: tuple[int, Future[Tensor]] | None = None

    def micro_batches_of(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The inputs and targets of a step on this rank, each (B, T) int64 on the device, one pair per micro-batch.

        Reads the step after it in the background meanwhile.
        """
        if self._ahead is not None and self._ahead[0] == step:
            tokens = self._ahead[1].result()
        else:
            tokens = self._read(step)
        self._ahead = (step + 1, self._pool.submit(self._read, step + 1))
        for block in tokens:  # (B, T + 1)
            # Widened on the device: a copy that also converts would go through unpinned memory and make the host wait.
            block = block.to(self.device, non_blocking=True).long()
            yield block[:, :-1], block[:, 1:]

    def close(self) -> None:
        """Ends the background thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, step: int) -> Tensor:
        """This rank's blocks of a step: (micro-batches, B, T + 1) int32, pinned where the device is a GPU.

        Micro-batch m of rank r holds rows [(m x world + r) B, ...) of the step: in sequential order that is the classic
        chunked stream, where the ranks read side by side and all advance by B x T x world.
        """
        blocks = blocks_of_step(step, self.sequences, self.n_blocks, self.order, self.seed)
        mine = blocks.reshape(self.micro_batches, self.world_size, self.micro_batch_size)[:, self.rank]
        length = self.block_size + 1
        tokens = np.empty((mine.size, length), dtype=np.int32)
        for row, block in enumerate(mine.ravel()):
            tokens[row] = self.stream.read(int(block) * self.block_size, length)
        batch = torch.from_numpy(tokens.reshape(*mine.shape, length))
        return batch.pin_memory() if self.device.type == "cuda" else batch


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`."""
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)
