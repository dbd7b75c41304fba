"""The state of a run to and from its checkpoints, over all ranks."""

from typing import Any

import torch
import torch.distributed as dist

from pipeline.distributed import Group
from pipeline.log import logger
from pipeline.model.gpt import GPT
from pipeline.training.checkpoint import Checkpoint, CheckpointStore
from pipeline.training.optim import Optimizer


def collect(model: GPT, optimizer: Optimizer, group: Group) -> dict[str, Any]:
    """The parts of a checkpoint. Every rank must call it: each has random numbers of its own."""
    states: list[dict[str, torch.Tensor] | None] = [None] * group.world_size
    if group.world_size > 1:
        dist.all_gather_object(states, _rng_state(group.device))
    else:
        states = [_rng_state(group.device)]
    return {"weights": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": states}


def restore(
    store: CheckpointStore, model: GPT, optimizer: Optimizer, group: Group
) -> tuple[int, dict[str, Any]] | None:
    """Brings model, optimizer and random numbers to the newest checkpoint; returns its step and counters.

    None where there is no checkpoint. Rank 0 alone reads the disk, so the machines need not share one. Raises Stop, on
    every rank, when all checkpoints are damaged.
    """
    found: list[Any] = [None]
    if group.is_main:
        try:
            checkpoint = store.newest()
            found = [checkpoint and _read(checkpoint)]
        except Exception as error:
            found = [error]  # told to all, so that none waits for a rank that is gone
    if group.world_size > 1:
        dist.broadcast_object_list(found, src=0)
    if isinstance(found[0], Exception):
        raise found[0]
    if found[0] is None:
        return None
    step, counters, parts = found[0]
    model.load_state_dict(parts["weights"])
    optimizer.load_state_dict(parts["optimizer"])
    if len(parts["rng"]) == group.world_size:
        _set_rng_state(parts["rng"][group.rank], group.device)
    else:
        logger.info(
            "the run goes on with %d ranks after %d: the same batches, but other dropout and order of additions",
            group.world_size,
            len(parts["rng"]),
        )
    return step, counters


def _read(checkpoint: Checkpoint) -> tuple[int, dict[str, Any], dict[str, Any]]:
    parts = {name: checkpoint.load(name) for name in ("weights", "optimizer", "rng")}
    return checkpoint.step, checkpoint.counters, parts


def _rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_rng_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
