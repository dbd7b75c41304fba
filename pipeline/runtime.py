"""How a run is executed: the `runtime` section, which no stage lists as params; this machine's cores and processes.

Nothing here changes what a run computes beyond the order of floating-point additions. So moving from one GPU to eight,
or halving the micro-batch, retrains nothing.
"""

import ctypes
import os
import select
import signal
import threading
import time
from contextlib import suppress
from typing import ClassVar, Literal

from pydantic import Field

from pipeline.config import Section
from pipeline.files import is_running


def cores() -> int:
    """Cores that this process may use; a scheduler may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reuse_memory() -> None:
    """Makes glibc keep freed memory for the next allocation. No effect with another C library.

    By default it returns large blocks to the kernel, which zeroes each page again: for the activations of every
    micro-batch, that is up to a tenth of a training step on a CPU.
    """
    with suppress(AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no blocks of their own for large allocations
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD, bytes


def stop_with(pid: int) -> None:
    """Sends SIGTERM to this process when process `pid`, which started it, ends or has ended."""

    def wait() -> None:
        try:
            select.select([os.pidfd_open(pid)], [], [])
        except ProcessLookupError:
            pass  # it has ended already
        except (AttributeError, OSError):  # not Linux, or a kernel without pidfd_open
            while is_running(pid):
                time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name=f"wait for {pid}", daemon=True).start()


class RuntimeParams(Section):
    """Choices that depend on the machine."""

    section: ClassVar[str] = "runtime"

    micro_batch_size: int = Field(ge=1, le=2**16)
    """Sequences per rank and forward pass, at most: the largest divisor of a rank's part of the batch is used."""

    dtype: Literal["auto", "float32", "bfloat16"]
    """Of matrix products. auto: bfloat16 if the hardware multiplies in it, else float32."""

    attention: Literal["auto", "sdpa", "eager"]
    """How training computes attention. sdpa: PyTorch's fused scaled_dot_product_attention. eager: matrix products and a
    softmax. auto: eager on a CPU at short contexts, where it is faster; else sdpa."""

    compile: Literal["auto", "on", "off", "max-autotune"]
    """torch.compile. auto: for runs long enough to pay for it. max-autotune: it also times several kernels for each
    matrix product and takes the fastest, which adds minutes to the start. Where the compiler fails, training is
    eager."""

    deterministic: bool
    """Only algorithms that give the same bits each time, so that a resumed run equals an uninterrupted one bit for bit.
    On CUDA, an operation without such an algorithm ends training with an error. false: faster algorithms where they
    exist, whose order of additions varies."""

    sharding: Literal["ddp", "fsdp"]
    """How several ranks hold the model. ddp: each holds all of it. fsdp: each holds a shard of every weight, gradient
    and moment, and gathers a block to compute it; for models that do not fit."""

    activation_checkpointing: bool
    """Keep only the input of each block for the backward pass and recompute the rest there: the same numbers, much less
    memory, about a third more computation."""

    resume: Literal["auto", "same-code", "never"]
    """Whether to resume from a checkpoint of the same params, data and initial weights, or continue a shorter run.
    auto: yes, with a warning if the code has changed since. same-code: start over if it has. never: always start over.
    Starting over keeps the old state in `.runs/old-train-<key>/`."""

    checkpoint_interval: int | None = Field(ge=1)
    """Optimizer steps between checkpoints; null: about ten minutes."""

    checkpoints_kept: int = Field(ge=1)
    """Newest checkpoints to keep."""

    milestone_interval: int = Field(ge=0)
    """Optimizer steps between checkpoints that are never removed, in `.runs/milestones-<key>/`. 0: none."""

    collective_timeout: float = Field(ge=1, le=7 * 24 * 3600)
    """Seconds that ranks wait for each other; then the run ends with an error that names the absent rank."""

    workers: int = Field(ge=0, le=1024)
    """Processes that tokenize; 0: one per core."""
