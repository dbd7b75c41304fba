"""Ranks, devices and collectives: what torchrun started, as values.

    with distributed.start(timeout_s=600) as group:
        group.rank, group.world_size, group.device

Ranks that do not respond are named through torchrun's store: monitored_barrier cannot name rank 0.
"""

import atexit
import ipaddress
import os
import platform
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from pipeline.log import UserError, environment_int
from pipeline.runtime import reuse_memory, stop_with

REPORT_S = 5.0  # ranks that wait for the same rank time out within moments of each other


@dataclass(frozen=True)
class Group:
    """The ranks of a run, seen from one of them."""

    rank: int
    world_size: int
    device: torch.device
    timeout_s: float = 0.0
    """Seconds that a collective waits for a rank."""
    store: Store | None = None
    """Key-value store that also works when a collective hangs; None outside torchrun."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and logs."""
        return self.rank == 0

    def sum_(self, values: torch.Tensor) -> torch.Tensor:
        """Adds `values` over all ranks, in place, and returns it. Any dtype and device."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Waits on the host for every rank. Raises if one hangs, where waiting for the GPU would never end."""
        self.sum_(torch.zeros(1))

    def check_same(self, values: Mapping[str, str]) -> None:
        """Raises UserError on all ranks if `values` (name -> value) differ between two: the names, and which rank."""
        if self.world_size == 1:
            return
        gathered: list[Mapping[str, str]] = [{}] * self.world_size
        with self.name_absent_ranks(lambda: "the start"):
            dist.all_gather_object(gathered, dict(values))
        first = gathered[0]
        for rank, other in enumerate(gathered):
            names = sorted(name for name in first.keys() | other.keys() if first.get(name) != other.get(name))
            if names:
                differences = [
                    f"{name} ({other.get(name, 'missing')}; rank 0: {first.get(name, 'missing')})" for name in names
                ]
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                raise UserError(
                    f"rank {rank} differs from rank 0 in {', '.join(differences[:3])}{more}", all_ranks=True
                )

    @contextmanager
    def name_absent_ranks(self, activity: Callable[[], str]) -> Iterator[None]:
        """Turns a failed collective inside into a UserError that names the ranks which did not take part.

        `activity`: what the ranks were doing, for example "step 12".
        """
        try:
            yield
        except RuntimeError as error:
            text = str(error)
            if self.store is None or not (isinstance(error, dist.DistError) or "gloo" in text):
                raise
            absent = self._absent_ranks(self.store)
            if not absent:  # this rank came too late, or the store is gone
                raise UserError(f"{activity()}: lost connection to the other ranks ({text.splitlines()[0]})") from error
            raise UserError(
                f"rank{'s' * (len(absent) > 1)} {', '.join(map(str, absent))} did not join {activity()}: exited, or "
                f"hung for more than {self.timeout_s:g} s (runtime.collective_timeout)"
            ) from error

    def _absent_ranks(self, store: Store) -> list[int]:
        """The ranks that do not report to the store after a failed collective; none if the store is gone."""
        absent = set(range(self.world_size))
        deadline = time.monotonic() + REPORT_S
        try:
            store.set(f"present/{self.rank}", "")
            while absent and time.monotonic() < deadline:
                absent -= {rank for rank in absent if store.check([f"present/{rank}"])}
                time.sleep(0.1)
        except dist.DistError:
            return []
        return sorted(absent)


@contextmanager
def start(timeout_s: float, store: Store | None = None) -> Iterator[Group]:
    """Joins the process group that torchrun's environment describes; a single rank outside torchrun.

    CPU tensors go through gloo, CUDA tensors through NCCL. A collective that hangs raises after `timeout_s` seconds.
    `store`: in place of the one that the environment describes. A rank of several whose block raises exits without
    waiting for the others, after the error has been printed.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:  # a killed torchrun, ours or started by hand, leaves its ranks alone
        stop_with(environment_int("LAUNCHER_PID", default=os.getppid(), minimum=1))
    world_size = environment_int("WORLD_SIZE", default=1, minimum=1)
    rank = environment_int("RANK", default=0, minimum=0)
    local_rank = environment_int("LOCAL_RANK", default=0, minimum=0)
    if rank >= world_size:
        raise UserError(f"RANK ({rank}) must be below WORLD_SIZE ({world_size})")
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    else:
        reuse_memory()
    if local_rank == 0:
        check_first_machine(os.environ)
        check_address(os.environ)
    if world_size > 1:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        timeout = timedelta(seconds=timeout_s)
        if store is None:
            store, _, _ = next(rendezvous("env://", timeout=timeout))
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
        if device.type == "cuda" and dist.group.WORLD is not None:
            # NCCL ends the process when it times out: gloo must time out first and name the absent ranks.
            dist.group.WORLD._get_backend(device)._set_default_timeout(timeout + timedelta(seconds=4 * REPORT_S))
    try:
        yield Group(rank, world_size, device, timeout_s, store)
    except BaseException as error:
        if world_size > 1:
            # destroy_process_group, or NCCL as the interpreter exits, may wait for kernels that wait for another rank.
            # Runs after the error has been printed and a checkpoint that is being written is complete.
            atexit.register(os._exit, getattr(error, "exit_code", getattr(error, "code", 1)))
        raise
    if world_size > 1:
        dist.destroy_process_group()


def check_first_machine(environment: Mapping[str, str]) -> None:
    """Raises UserError if rank 0, which writes checkpoints and the model, is not on the machine with NODE_RANK 0.

    DVC runs where NODE_RANK is 0. torchrun ignores it and numbers machines by host name (GROUP_RANK).
    """
    node, group = environment.get("NODE_RANK"), environment.get("GROUP_RANK")
    single = environment.get("GROUP_WORLD_SIZE", "1") == "1"
    if single or node is None or group is None or (node == "0") == (group == "0"):
        return
    where = "on the machine whose full host name sorts first" if node == "0" else "here"
    raise UserError(
        f"NODE_RANK ({node}) must be 0 on the machine that torchrun numbers 0, by host names, and on no other; this "
        f"one, {socket.getfqdn()}, has number {group}: run DVC, with NODE_RANK=0, {where}"
    )


def check_address(environment: Mapping[str, str]) -> None:
    """Raises UserError if gloo would listen where other machines cannot reach it: at a host name's loopback address."""
    if environment.get("GROUP_WORLD_SIZE", "1") == "1" or "GLOO_SOCKET_IFNAME" in environment:
        return
    host = socket.gethostname()
    try:
        address = str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except socket.gaierror:  # then gloo takes this one
        address = "127.0.0.1"
    if ipaddress.ip_address(address).is_loopback:
        raise UserError(
            f"GLOO_SOCKET_IFNAME is not set, and {host} is {address} here, where other machines cannot reach it: set "
            "it to the network interface that connects the machines (`ip address` lists them)"
        )


def device_name(device: torch.device) -> str:
    """The model of the device: "NVIDIA H200", "AMD EPYC"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def total_memory(device: torch.device) -> int:
    """Bytes of memory that the device has; of the machine for a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def autocast_dtype(choice: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products: `choice`, or for "auto" bfloat16 if the hardware multiplies in it."""
    if choice != "auto":
        return torch.bfloat16 if choice == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """The context that computes matrix products in `dtype`; disabled for float32."""
    # A forward pass casts each weight once, so a cache would only keep the copies of all blocks until its end.
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False)
