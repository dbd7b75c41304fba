"""How the ranks share the training of a model; everything that differs between the two ways stands here.

    ddp     each rank holds all of it, and gradients are averaged once a step
    fsdp    each rank holds its share of every weight, gradient and moment, and a block's weights are gathered while it
            computes (PyTorch's fully_shard)

Checkpoints, probes and the finished model know none of this: sharded tensors are made whole for them.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from inspect import signature
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
        """`module(inputs, targets)`: a model that was placed, or the same in torch.compile. It need not have run yet: a
        compiler that finds DDP around it cuts its graph, so that gradients travel while others are still computed.

        One rank alone notes nothing.
        """
        self.module, self._own = module, _OwnGradient(group)
        self._shards = [part for part in module.modules() if isinstance(part, FSDPModule)]
        for shard in self._shards:
            shard.set_custom_reduce_scatter(_ReduceScatter(self._own))  # type: ignore[arg-type] # its base is private
        if group.world_size > 1 and not self._shards:
            self.module = DistributedDataParallel(
                module,
                device_ids=[group.device] if group.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                **_KEEP_BUFFERS,
            )
            self.module.register_comm_hook(self._own, _note_and_average)

    @contextmanager
    def backward(self, last: bool) -> Iterator[None]:
        """Around forward and backward of one micro-batch: gradients are averaged behind the last of a step alone."""
        if last:
            self._own.squares.zero_()
        for shard in self._shards:
            shard.set_requires_gradient_sync(last, recurse=False)
        with nullcontext() if last else self.rehearsal():
            yield

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Around a forward and backward pass in which, with DDP, no rank waits for another."""
        alone = isinstance(self.module, DistributedDataParallel)
        with self.module.no_sync() if alone else nullcontext():  # type: ignore[operator]
            yield

    def close(self) -> None:
        """Lets go of DDP and its hooks on the weights; nothing can be computed any more.

        Else DDP would be the last to hold the process group when the interpreter ends, and wait, with Python's lock in
        its hand, for a thread of gloo's that needs it.
        """
        del self.module
        gc.collect()

    def local_norm(self) -> Tensor:
        """The norm of this rank's own gradient in the last step, before averaging: a scalar on the device."""
        return self._own.squares.sqrt()


class _OwnGradient:
    """How large the gradient of this rank was: added up on the device, for the host to read later, if ever."""

    def __init__(self, group: Group) -> None:
        self.ranks, self.squares = group.world_size, torch.zeros((), device=group.device)

    def note(self, gradient: Tensor) -> None:
        self.squares += torch.linalg.vector_norm(gradient) ** 2


def _note_and_average(own: _OwnGradient, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """What DDP does by itself, to the last bit, behind a look at the gradients of this rank.

    A function of no object that holds the DDP: that would be a ring through C++, which nothing could ever free.
    """
    gradients = bucket.buffer()
    own.note(gradients)
    gradients.mul_(1 / own.ranks)
    return dist.all_reduce(gradients, async_op=True).get_future().then(lambda done: done.value()[0])


# PyTorch 2.13 has new names for these and warns of the old ones.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_OPTIONS = signature(DistributedDataParallel).parameters
_SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _OPTIONS else "broadcast_buffers"
_KEEP_BUFFERS: dict[str, Any] = {_SYNC_BUFFERS: False}  # tables of positions are the same on every rank


class _ReduceScatter:
    """What FSDP does by itself, behind a look at the gradients of this rank."""

    def __init__(self, own: _OwnGradient) -> None:
        self._own = own

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
        self._own.note(input_tensor)
        work: dist.Work | None = _reduce_scatter(output_tensor, input_tensor, op, group, async_op)
        return work


def whole(tensor: Tensor) -> Tensor:
    """A tensor, with the shares of all ranks where it is sharded; then every rank must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_share(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds, in the same memory; all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


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
    if isinstance(model, FSDPModule) and hasattr(model, "reset_iter_state"):  # since PyTorch 2.13
        model.reset_iter_state()
    model.zero_grad(set_to_none=True)
