"""Runs a function on several ranks: real processes, joined over gloo as torchrun would join them."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from pipeline import distributed

# Ranks are forked from one server that has imported what takes seconds; none of its threads have started by then.
torch.multiprocessing.set_forkserver_preload(["pipeline.training.trainer"])


def on_ranks(world_size: int, function: Callable[..., None], *arguments: Any, timeout_s: float = 60.0) -> None:
    """Calls `function(group, *arguments)` on every rank; raises if one of them fails. `function` must be importable."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _on_one_rank,
            (world_size, Path(folder) / "store", timeout_s, function, arguments),
            nprocs=world_size,
            join=True,
            start_method="forkserver",
        )


def _on_one_rank(
    rank: int, world_size: int, store: Path, timeout_s: float, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    torch.set_num_threads(1)
    with distributed.start(timeout_s, dist.FileStore(str(store), world_size)) as group:
        function(group, *arguments)
