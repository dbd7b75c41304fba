"""Data parallelism: all that differs between one rank, DDP and FSDP.

    ddp    every rank holds the whole model; gradients are averaged once per step
    fsdp   every rank holds a shard of each weight, gradient and moment; a block's weights are gathered to compute it

Checkpoints, probes and the finished model see whole tensors.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

from pipeline.distributed import Group
from pipeline.model.gpt import GPT


def parallelize(model: GPT, sharding: str, group: Group) -> None:
    """Moves a model to this rank's device, in place: all of it, or with "fsdp" this rank's shard of rank 0's weights.

    With "fsdp", only rank 0's model needs memory before: on other ranks it may be on the meta device.
    """
    if not is_sharded(sharding, group):
        model.to(group.device)
        return
    weights, buffers = model.state_dict(), dict(model.named_buffers())
    model.to("meta").tie_weights()
    mesh = init_device_mesh(group.device.type, (group.world_size,))
    for module in (*model.transformer.h, model):
        fully_shard(module, mesh=mesh)
    model.to_empty(device=group.device)
    sharded = model.state_dict()
    model.load_state_dict({name: receive(weight, sharded[name], group) for name, weight in weights.items()})
    for name, buffer in model.named_buffers():  # position tables, which are not in the state dict
        buffer.copy_(receive(buffers[name], buffer, group))


def is_sharded(sharding: str, group: Group) -> bool:
    """Whether `runtime.sharding` shards a model over these ranks."""
    return sharding == "fsdp" and group.world_size > 1


def data_parallel(module: nn.Module, group: Group) -> nn.Module:
    """`module`, a parallelized model or torch.compile of one, with DDP around it where it needs that.

    A compiled module must not have run yet: a compiler that sees DDP splits the graph, so that gradients are averaged
    while others are still being computed.
    """
    if group.world_size == 1 or any(isinstance(part, FSDPModule) for part in module.modules()):
        return module
    return DistributedDataParallel(
        module,
        device_ids=[group.device] if group.device.type == "cuda" else None,
        forward_sync_buffers=False,  # position tables are the same on every rank
        gradient_as_bucket_view=True,
    )


def set_gradient_sync(module: nn.Module, enabled: bool) -> None:
    """Whether the next forward and backward pass averages gradients over the ranks, or only accumulates this rank's."""
    if isinstance(module, DistributedDataParallel):
        module.require_backward_grad_sync = enabled  # what no_sync() sets
        return
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_requires_gradient_sync(enabled, recurse=False)


def reset_grads(model: nn.Module) -> None:
    """Drops all gradients, also what a backward pass that failed has left in FSDP."""
    if isinstance(model, FSDPModule):
        model.reset_iter_state()
    model.zero_grad(set_to_none=True)


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded; every rank must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_like(local: Tensor, other: Tensor) -> Tensor:
    """The whole tensor of which `local` is this rank's shard, where `other` is sharded; every rank must call it."""
    if not isinstance(other, DTensor):
        return local
    return DTensor.from_local(
        local, other.device_mesh, other.placements, shape=other.shape, stride=other.stride()
    ).full_tensor()


def to_local(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor, sharing its memory; the tensor itself where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, other: Tensor) -> Tensor:
    """This rank's shard of a whole tensor where `other`, of the same shape, is sharded; else the tensor itself."""
    if isinstance(other, DTensor) and tensor.shape == other.shape:
        # Every rank has the whole tensor, so none needs to send it (src_data_rank).
        return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)
    return tensor


def receive(tensor: Tensor, like: Tensor, group: Group) -> Tensor:
    """Rank 0's `tensor` on every rank; where `like` is sharded, this rank's shard of it. Every rank must call it.

    `tensor`: on other ranks than 0, one on the meta device with the same shape and dtype.
    """
    if group.world_size > 1:
        if not group.is_main:
            tensor = torch.empty_like(tensor, device="cpu")
        dist.broadcast(tensor, src=0)
    return shard_like(tensor, like)


def gather(tree: Any, group: Group) -> Any:
    """A tree whose sharded tensors are whole, in rank 0's CPU memory; None in their place on other ranks.

    Every rank must call it. One tensor at a time is gathered, so a GPU never holds the whole model.
    """

    def on_rank_0(tensor: DTensor) -> Tensor | None:
        full = tensor.full_tensor()
        return full.cpu() if group.is_main else None

    return tree_map_only(DTensor, on_rank_0, tree)


def whole_model(model: GPT, dtype: torch.dtype = torch.float32) -> GPT:
    """The model itself; of a sharded one, a copy with all weights on this rank's device. Every rank must call it.

    `dtype`: of the copy's matrices inside the blocks: half the memory where they are multiplied in bfloat16 anyway.
    """
    if not isinstance(model, FSDPModule):
        return model

    def gathered(name: str, weight: Tensor) -> Tensor:
        is_matrix = weight.dim() == 2 and name.startswith("transformer.h.")
        return full_tensor(weight.to(dtype) if is_matrix else weight)

    with torch.device("meta"):
        copy = GPT(model.config)
    copy.load_state_dict({name: gathered(name, weight) for name, weight in model.state_dict().items()}, assign=True)
    copy.tie_weights()
    for name, buffer in model.named_buffers():  # position tables, which are not in the state dict
        owner, _, key = name.rpartition(".")
        copy.get_submodule(owner).register_buffer(key, buffer, persistent=False)
    return copy
