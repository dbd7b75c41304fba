"""Runs a function on several ranks: real processes, joined over gloo as torchrun would join them."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing

from pipeline import distributed

# Ranks are forked from one server that has imported what takes seconds; none of its threads have started by then.
torch.multiprocessing.set_forkserver_preload(["pipeline.training.trainer"])


def on_ranks(world_size: int, function: Callable[..., None], *arguments: Any, timeout_s: float = 60.0) -> None:
    """Calls `function(group, *arguments)` on every rank; raises if one of them fails. `function` must be importable."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(
        _on_one_rank,
        (world_size, port, timeout_s, function, arguments),
        nprocs=world_size,
        join=True,
        start_method="forkserver",
    )


def _on_one_rank(
    rank: int, world_size: int, port: int, timeout_s: float, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    with distributed.start(timeout_s) as group:
        function(group, *arguments)
