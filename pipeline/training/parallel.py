"""How the ranks share the training of a model; everything that differs between the two ways stands here.

    ddp     each rank holds all of it, and gradients are averaged once a step
    fsdp    each rank holds its share of every weight, gradient and moment, and a block's weights are gathered while it
            computes (PyTorch's fully_shard)

Checkpoints, probes and the finished model know none of this: sharded tensors are made whole for them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

from pipeline.distributed import Group
from pipeline.model.gpt import GPT


def place(model: GPT, sharding: str, group: Group) -> None:
    """Moves a model to this rank's device, in place: all of it, or with "fsdp" its share, block by block."""
    if sharding == "fsdp" and group.world_size > 1:
        mesh = init_device_mesh(group.device.type, (group.world_size,))
        for part in (*model.transformer.h, model):
            fully_shard(part, mesh=mesh)
    model.to(group.device)


class Averaged:
    """A module whose gradients are averaged over the ranks, and which notes how large each rank's own were."""

    def __init__(self, module: nn.Module, group: Group) -> None:
        """`module(inputs, targets)`: a model that was placed, or the same compiled. One rank alone notes nothing."""
        self.module, self._ranks = module, group.world_size
        self._squares = torch.zeros((), device=group.device)
        self._shards = [part for part in module.modules() if isinstance(part, FSDPModule)]
        for shard in self._shards:
            shard.set_custom_reduce_scatter(_ReduceScatter(self._note))  # type: ignore[arg-type] # its base is private
        if group.world_size > 1 and not self._shards:
            devices = [group.device] if group.device.type == "cuda" else None
            self.module = DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)
            self.module.register_comm_hook(None, self._note_and_average)

    @contextmanager
    def backward(self, last: bool) -> Iterator[None]:
        """Around forward and backward of one micro-batch: gradients are averaged behind the last of a step alone."""
        if last:
            self._squares.zero_()
        for shard in self._shards:
            shard.set_requires_gradient_sync(last, recurse=False)
        accumulating = isinstance(self.module, DistributedDataParallel) and not last
        with self.module.no_sync() if accumulating else nullcontext():  # type: ignore[operator]
            yield

    def local_norm(self) -> Tensor:
        """The norm of this rank's own gradient in the last step, before averaging: a scalar on the device."""
        return self._squares.sqrt()

    def _note(self, gradient: Tensor) -> None:
        """Adds up on the device what the host reads later, if ever."""
        self._squares += torch.linalg.vector_norm(gradient) ** 2

    def _note_and_average(self, group: dist.ProcessGroup, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """What DDP does by itself, to the last bit, behind a look at the gradients of this rank."""
        gradients = bucket.buffer()
        self._note(gradients)
        gradients.mul_(1 / self._ranks)
        return dist.all_reduce(gradients, async_op=True).get_future().then(lambda done: done.value()[0])


class _ReduceScatter:
    """What FSDP does by itself, behind a look at the gradients of this rank."""

    def __init__(self, note: Callable[[Tensor], None]) -> None:
        self._note = note

    def allocate(self, size: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: dist.ReduceOp.RedOpType,
        async_op: bool = False,
    ) -> dist.Work | None:
        self._note(input_tensor)
        return dist.reduce_scatter_single(output_tensor, input_tensor, op, group, async_op)


def whole(tensor: Tensor) -> Tensor:
    """A tensor, with the shares of all ranks where it is sharded; then every rank must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share_like(tensor: Tensor, other: Tensor) -> Tensor:
    """This rank's share of a whole tensor where `other`, of the same shape, is sharded; else the tensor itself."""
    if isinstance(other, DTensor) and tensor.shape == other.shape:
        # Every rank has it all: no rank need send (src_data_rank).
        return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)
    return tensor


def gathered(tree: Any, group: Group) -> Any:
    """A tree with its sharded tensors made whole, one by one, in the CPU memory of rank 0.

    Every rank must call it; None stands for those tensors on the others.
    """

    def on_rank_0(tensor: DTensor) -> Tensor | None:
        full = tensor.full_tensor()
        return full.cpu() if group.is_main else None

    return tree_map_only(DTensor, on_rank_0, tree)


def whole_model(model: GPT) -> GPT:
    """The model itself; or where it is sharded, a copy on this rank's device with all of its weights.

    Every rank must call it, and each gets the copy.
    """
    if not isinstance(model, FSDPModule):
        return model
    with torch.device("meta"):
        copy = GPT(model.config)
    copy.load_state_dict({name: whole(weight) for name, weight in model.state_dict().items()}, assign=True)
    if model.config.tie_head:
        copy.lm_head.weight = copy.transformer.wte.weight
    for name, buffer in model.named_buffers():  # tables of positions, which no state holds
        owner, _, key = name.rpartition(".")
        copy.get_submodule(owner).register_buffer(key, buffer, persistent=False)
    return copy


def forget_pass(model: nn.Module) -> None:
    """Drops the gradients of a forward and backward pass, and what one that failed on its way has left."""
    if isinstance(model, FSDPModule):
        model.reset_iter_state()
    model.zero_grad(set_to_none=True)
