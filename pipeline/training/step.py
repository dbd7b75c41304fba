"""One optimizer step: forward and backward over the micro-batches, one reduction over the ranks, one update."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pipeline.distributed import Group, autocast
from pipeline.training.optim import Optimizer
from pipeline.training.parallel import Averaged, whole


class TrainStep:
    """Trains a module by one batch at a time."""

    def __init__(
        self, module: nn.Module, optimizer: Optimizer, grad_clip: float, dtype: torch.dtype, group: Group
    ) -> None:
        """`module(inputs, targets)` gives (logits, mean loss). It is wrapped for the ranks of `group` here."""
        self.optimizer, self.grad_clip, self.dtype, self.group = optimizer, grad_clip, dtype, group
        self.averaged = Averaged(module, group)

    def rehearse(self, inputs: Tensor, targets: Tensor) -> None:
        """Forward and backward of a (B, T) micro-batch for their own sake; leaves gradients that mean nothing."""
        with self.averaged.rehearsal():
            self._loss(inputs, targets).backward()

    def __call__(
        self, micro_batches: Iterable[tuple[Tensor, Tensor]], count: int, lr: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Updates the weights once from `count` pairs of inputs and targets, each (B, T) int64.

        Returns the mean loss of every rank's share, (world size,); the norm of every rank's own gradient, (world
        size,), zero on one rank; and the norm of their average before clipping, a scalar. All are on the device and the
        same on every rank. Where a loss or the last norm is not finite, the update is left out.
        """
        seen = torch.zeros(2, self.group.world_size, device=self.group.device)
        losses, local_norms = seen
        for index, (inputs, targets) in enumerate(micro_batches, start=1):
            with self.averaged.backward(last=index == count):
                loss = self._loss(inputs, targets) / count
                loss.backward()
            losses[self.group.rank] += loss.detach()
        local_norms[self.group.rank] = self.averaged.local_norm()
        self.group.sum_(seen)
        grad_norm = whole(nn.utils.clip_grad_norm_(self.optimizer.parameters, self.grad_clip or float("inf")))
        # Losses and gradients are reduced by now: every rank sees the same values and takes the same decision.
        self.optimizer.step(lr, skip=~(losses.isfinite().all() & grad_norm.isfinite()))
        self.optimizer.zero_grad()
        return losses, local_norms, grad_norm

    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a micro-batch, its matrix products computed in this step's dtype."""
        with autocast(inputs.device, self.dtype):
            loss: Tensor = self.averaged.module(inputs, targets)[1]
        return loss
