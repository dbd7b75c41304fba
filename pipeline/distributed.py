"""Ranks, devices and collectives: what torchrun started, as values.

with distributed.start(timeout_s=600) as group:
    group.rank, group.world_size, group.device
"""

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from pipeline.log import Stop

ROLL_CALL_S = 5.0  # ranks that wait for the same rank give up within moments of each other


@dataclass(frozen=True)
class Group:
    """This process's place among the ranks of a run."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    timeout_s: float = 0.0
    """Seconds that a collective waits for a rank."""
    store: Store | None = None
    """What all ranks reach also when a collective hangs; None outside torchrun."""

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
        """Waits for every rank, on the host: a rank that hangs raises here, where a wait for the GPU would not end."""
        self.sum_(torch.zeros(1))

    @contextmanager
    def naming_absent(self, doing: Callable[[], str]) -> Iterator[None]:
        """Raises Stop that names the ranks which did not join a collective, where one fails inside. `doing`: a step."""
        try:
            yield
        except RuntimeError as error:
            text = str(error)
            if self.store is None or not (isinstance(error, dist.DistError) or "gloo" in text):
                raise
            timed_out = "timed out" in text.lower() or "timeout" in text.lower()
            absent = self._roll_call(self.store, timed_out)
            if not absent:  # a rank is gone, or this one was: the others have called the roll without it
                raise Stop(f"{doing()}: the ranks have lost each other ({text.splitlines()[0]})") from error
            ranks = f"rank{'s' * (len(absent) > 1)} {', '.join(map(str, absent))}"
            raise Stop(
                f"{ranks} did not join {doing()} within {self.timeout_s:g} s (runtime.collective_timeout)"
            ) from error

    def _roll_call(self, store: Store, timed_out: bool) -> list[int]:
        """The ranks that do not answer.

        None where no collective has timed out: some ranks may not know yet that it failed. Nor where the store is gone.
        """
        absent = set(range(self.world_size))
        try:
            store.set(f"present/{self.rank}", "")
            if timed_out:
                store.set("timed_out", "")
            else:
                time.sleep(1.0)  # the rank that closed the connection may be about to say that it timed out
            if not store.check(["timed_out"]):
                return []
            ending = time.monotonic() + ROLL_CALL_S
            while absent and time.monotonic() < ending:
                absent -= {rank for rank in absent if store.check([f"present/{rank}"])}
                time.sleep(0.1)
            return sorted(absent)
        except dist.DistError:
            return []


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
    store = None
    if local_rank == 0:
        check_first_machine(os.environ)
    if world_size > 1:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        timeout = timedelta(seconds=timeout_s)
        store, _, _ = next(rendezvous("env://", timeout=timeout))
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
        if device.type == "cuda" and dist.group.WORLD is not None:
            # NCCL ends the process when it has waited for too long: gloo is to notice first, and to say who is absent.
            dist.group.WORLD._get_backend(device)._set_default_timeout(timeout + timedelta(seconds=4 * ROLL_CALL_S))
    try:
        yield Group(rank, world_size, local_rank, device, timeout_s, store)
    finally:
        if world_size > 1:
            dist.destroy_process_group()


def check_first_machine(environment: Mapping[str, str]) -> None:
    """Raises Stop where rank 0, which keeps checkpoints and model, is not on the machine that was called the first.

    torchrun numbers machines by their names (GROUP_RANK). NODE_RANK, which says where DVC runs, is nothing to it.
    """
    called, number = environment.get("NODE_RANK"), environment.get("GROUP_RANK")
    alone = environment.get("GROUP_WORLD_SIZE", "1") == "1"
    if alone or called is None or number is None or (called == "0") == (number == "0"):
        return
    where = "on the machine whose full host name sorts first" if called == "0" else "here"
    raise Stop(
        f"NODE_RANK ({called}) must be 0 on the machine that torchrun numbers 0, by host names, and on no other; this "
        f"one, {socket.getfqdn()}, has number {number}: run DVC, with NODE_RANK=0, {where}"
    )


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
