"""How the ranks share a model's training: each holds all of it (DDP), and their gradients are averaged once a step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from pipeline.distributed import Group


class Averaged:
    """A module whose gradients are averaged over the ranks, and which notes how large each rank's own were."""

    def __init__(self, module: nn.Module, group: Group) -> None:
        """`module(inputs, targets)`: as the model, or the model compiled. On one rank nothing is averaged or noted."""
        self._group, self.module = group, module
        self._squares = torch.zeros((), device=group.device)
        if group.world_size > 1:
            devices = [group.device] if group.device.type == "cuda" else None
            self.module = DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)
            self.module.register_comm_hook(None, self._note_and_average)

    @contextmanager
    def backward(self, last: bool) -> Iterator[None]:
        """Around forward and backward of one micro-batch: gradients are averaged behind the last of a step alone."""
        if last:
            self._squares.zero_()
        if isinstance(self.module, DistributedDataParallel) and not last:
            with self.module.no_sync():
                yield
        else:
            yield

    def local_norm(self) -> Tensor:
        """The norm of this rank's own gradient in the last step, before averaging: a scalar on the device."""
        return self._squares.sqrt()

    def _note(self, gradient: Tensor) -> None:
        """Adds up on the device what the host reads later, if ever."""
        self._squares += torch.linalg.vector_norm(gradient) ** 2

    def _note_and_average(self, group: dist.ProcessGroup, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """What DDP does by itself, behind a look at the gradients of this rank."""
        self._note(bucket.buffer())
        return allreduce_hook(group, bucket)
