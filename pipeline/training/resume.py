"""The state of a run to and from its checkpoints, over all ranks."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pipeline.distributed import Group
from pipeline.log import logger
from pipeline.model.gpt import GPT
from pipeline.runtime import RuntimeParams
from pipeline.training.checkpoint import CheckpointStore
from pipeline.training.hardware import device_name
from pipeline.training.optim import Optimizer
from pipeline.training.parallel import gathered, share_like

SENT_IN_PIECES = ("weights", "optimizer")  # tensor by tensor, so that no rank need hold what it takes a share of
PARTS = (*SENT_IN_PIECES, "rng")


def collect(model: GPT, optimizer: Optimizer, group: Group) -> dict[str, Any]:
    """The parts of a checkpoint, whole on rank 0. Every rank must call it: each has random numbers of its own."""
    states: list[dict[str, Tensor] | None] = [None] * group.world_size
    if group.world_size > 1:
        dist.all_gather_object(states, _rng_state(group.device))
    else:
        states = [_rng_state(group.device)]
    parts = {"weights": model.state_dict(), "optimizer": optimizer.state_dict()}
    return {**{name: gathered(tree, group) for name, tree in parts.items()}, "rng": states}


def restore(
    store: CheckpointStore, model: GPT, optimizer: Optimizer, group: Group
) -> tuple[int, dict[str, Any]] | None:
    """Brings model, optimizer and random numbers to the newest checkpoint; returns its step and counters.

    None where there is no checkpoint. Rank 0 alone reads the disk, so the machines need not share one. Raises Stop, on
    every rank, when all checkpoints are damaged.
    """
    found: list[Any] = [None]
    parts: dict[str, Any] = {}
    if group.is_main:
        try:
            if checkpoint := store.newest():
                parts = {name: checkpoint.load(name) for name in PARTS}
                outline = {name: tree_map_only(Tensor, lambda t: t.to("meta"), parts[name]) for name in SENT_IN_PIECES}
                found = [(checkpoint.step, checkpoint.counters, {**parts, **outline})]
        except Exception as error:
            found = [error]  # told to all, so that none waits for a rank that is gone
    if group.world_size > 1:
        dist.broadcast_object_list(found, src=0)
    if isinstance(found[0], Exception):
        raise found[0]
    if found[0] is None:
        return None
    step, counters, outlines = found[0]
    parts = parts or outlines
    own = model.state_dict()
    model.load_state_dict({name: _received(weight, own[name], group) for name, weight in parts["weights"].items()})
    for state, parameters in zip(parts["optimizer"], optimizer.indexed_parameters(), strict=True):
        for index, values in state["state"].items():
            values.update({name: _received(value, parameters[index], group) for name, value in values.items()})
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


def bits_depend_on(runtime: RuntimeParams, dtype: torch.dtype, micro_batch_size: int, group: Group) -> dict[str, Any]:
    """What may be otherwise when a run goes on, and changes the last bits of its results; ranks are told of apart."""
    return {
        "micro_batch_size": micro_batch_size,
        "dtype": str(dtype).removeprefix("torch."),
        "compile": runtime.compile,
        "sharding": runtime.sharding,
        "deterministic": runtime.deterministic,
        "threads": torch.get_num_threads(),
        "device": device_name(group.device),
        "torch": torch.__version__,
    }


def tell_changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """One line where something that bits depend on is not as it was."""
    changed = [f"{key} {value} after {before[key]}" for key, value in now.items() if before.get(key, value) != value]
    if changed:
        logger.info("the run goes on with %s: the same batches, but other last digits", ", ".join(changed))


def _received(tensor: Tensor, like: Tensor, group: Group) -> Tensor:
    """What rank 0 has read, on every rank; this rank's share of it where `like` is sharded.

    `tensor`: elsewhere than on rank 0 its outline, on the meta device.
    """
    if group.world_size > 1:
        if not group.is_main:
            tensor = torch.empty_like(tensor, device="cpu")
        dist.broadcast(tensor, src=0)
    return share_like(tensor, like)


def _rng_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
