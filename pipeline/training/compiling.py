"""torch.compile where it pays and works, eager everywhere else."""

import logging
from collections.abc import Callable
from typing import cast

import torch
import torch.distributed as dist
from torch import nn

from pipeline.distributed import Group
from pipeline.log import logger
from pipeline.training.hardware import compiling_pays
from pipeline.training.parallel import forget_pass
from pipeline.training.step import TrainStep

NOT_THE_COMPILERS = (torch.OutOfMemoryError, dist.DistError)  # eager training would meet them too


def compiled(
    model: nn.Module,
    choice: str,
    flops_per_process: float,
    group: Group,
    step_of: Callable[[nn.Module], TrainStep],
    rehearse: Callable[[TrainStep], None],
) -> tuple[TrainStep, bool]:
    """A training step over `model` compiled, and True; or over `model` itself, and False. The same on every rank.

    `choice`: "on", "off", or "auto", which compiles a run of enough FLOPs. `step_of` makes a step, with what the ranks
    need around the model. `rehearse` runs one forward and backward pass: it is here that the compiler is found missing
    or failing, and its time is not counted as training. Raises what is not the compiler's fault.
    """
    wanted = choice == "on" or (choice == "auto" and compiling_pays(group.device, flops_per_process))
    if not wanted:
        return step_of(model), False
    logger.info("compiling the model: about a minute on two CPU cores, less on a GPU host")
    logging.getLogger("torch._inductor").setLevel(logging.ERROR)
    step = step_of(cast(nn.Module, torch.compile(model)))
    failure = None
    try:
        # Dropout in the rehearsal must not move the run's random numbers.
        with torch.random.fork_rng([group.device] if group.device.type == "cuda" else []):
            rehearse(step)
    except NOT_THE_COMPILERS:
        raise
    except Exception as error:  # whatever the compiler raises: eager training is the answer
        failure = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    forget_pass(model)
    failures = torch.tensor([failure is not None], dtype=torch.int32)
    if not group.sum_(failures).item():
        return step, True
    if choice == "on" and failure:
        logger.warning("runtime.compile is on, but compiling failed (%s)", failure)
    logger.info("training without torch.compile: %s", failure or "it failed on another rank")
    step.averaged.close()
    return step_of(model), False
