"""SIGINT and SIGTERM during training: all ranks stop after the same step, so that they save the same state."""

import signal
import sys
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Self

import torch
import torch.distributed as dist

from pipeline.distributed import Group
from pipeline.log import UserError, logger

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(UserError):
    """Training stopped on a signal and saved its state. A non-zero exit code, so that DVC does not record the stage."""


class SignalHandler:
    """Records signals inside the block, and lets the ranks agree on them without slowing a step.

    Call `exchange()` before each step and `agreed()` after it: the exchange runs over gloo while the step computes. It
    also carries whether a checkpoint is due, which only one rank's clock decides.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._received = 0
        self._step_began = False
        self._flags = torch.zeros(2, dtype=torch.int32)  # the signal's number, whether a checkpoint is due
        self._work: dist.Work | None = None

    def exchange(self, checkpoint_due: bool) -> None:
        """Starts sending what this rank has received so far, and whether it wants a checkpoint, to the other ranks."""
        self._step_began = True
        self._flags[0], self._flags[1] = self._received, checkpoint_due
        if self._group.world_size > 1:
            self._work = dist.all_reduce(self._flags, op=dist.ReduceOp.MAX, async_op=True)

    def agreed(self) -> tuple[signal.Signals | None, bool]:
        """The signal that any rank had received at the exchange, and whether any wanted a checkpoint; equal on all."""
        if self._work is not None:
            self._work.wait()
        number = int(self._flags[0]) if self._group.world_size > 1 else self._received
        return signal.Signals(number) if number else None, bool(self._flags[1])

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        # Before the first step there is nothing to save, and compiling may take minutes: exit at once.
        if not self._step_began:
            sys.exit(128 + number)
        first, self._received = not self._received, number
        if first:  # torchrun and a terminal may each send one
            with suppress(RuntimeError):  # the signal has interrupted another print
                logger.info("%s received: stopping after this step or the next", signal.Signals(number).name)

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # torchrun sends SIGTERM as soon as one rank has exited: the others must still print their errors.
        exiting = isinstance(error, Interrupted) or (error is not None and self._group.world_size > 1)
        for number, handler in self._previous.items():
            signal.signal(number, (lambda *_: None) if exiting else handler)
