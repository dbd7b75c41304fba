"""Ranks, devices and collectives: what torchrun started, as values.

with distributed.start(timeout_s=600) as group:
    group.rank, group.world_size, group.device
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Group:
    """This process's place among the ranks of a run."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    def sum_(self, values: torch.Tensor) -> torch.Tensor:
        """Adds `values` over all ranks, in place; returns it. Any dtype and device; identity on one rank."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Waits for every rank."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def start(timeout_s: float) -> Iterator[Group]:
    """Joins the process group that torchrun's environment describes; one rank, with no group, outside torchrun.

    CPU tensors go through gloo and CUDA tensors through NCCL. A collective that hangs raises after `timeout_s` seconds.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    if world_size > 1:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    try:
        yield Group(rank, world_size, local_rank, device)
    finally:
        if world_size > 1:
            dist.destroy_process_group()


def autocast_dtype(choice: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products: `choice` itself, or for "auto" bfloat16 where the hardware multiplies in it."""
    if choice != "auto":
        return torch.bfloat16 if choice == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """The context that computes matrix products in `dtype`; off for float32."""
    # A forward pass casts each weight once: a cache would only hold the copies of all blocks until its end.
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False)
