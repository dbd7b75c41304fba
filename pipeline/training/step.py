"""One optimizer step: forward and backward over the micro-batches, one reduction over the ranks, one update."""

from collections.abc import Iterable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.distributed import Group, autocast
from pipeline.training.optim import Optimizer


class TrainStep:
    """Trains a module by one batch at a time."""

    def __init__(
        self, module: nn.Module, optimizer: Optimizer, grad_clip: float, dtype: torch.dtype, group: Group
    ) -> None:
        """`module(inputs, targets)` gives (logits, mean loss). It is wrapped for the ranks of `group` here."""
        self.optimizer, self.grad_clip, self.dtype, self.group = optimizer, grad_clip, dtype, group
        self.module = module
        if group.world_size > 1:
            devices = [group.device] if group.device.type == "cuda" else None
            self.module = DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)

    def __call__(self, micro_batches: Iterable[tuple[Tensor, Tensor]], count: int, lr: float) -> tuple[Tensor, Tensor]:
        """Updates the weights once from `count` pairs of inputs and targets, each (B, T) int64.

        Returns the mean loss of every rank's share, (world size,), and the gradient's norm before clipping, a scalar,
        both on the device and the same on every rank. Where any of them is not finite, the update is left out.
        """
        losses = torch.zeros(self.group.world_size, device=self.group.device)
        for index, (inputs, targets) in enumerate(micro_batches, start=1):
            losses[self.group.rank] += self._accumulate(inputs, targets, count, last=index == count)
        self.group.sum_(losses)
        grad_norm = nn.utils.clip_grad_norm_(self.optimizer.parameters, self.grad_clip or float("inf"))
        # Losses and gradients are reduced by now: every rank sees the same values and takes the same decision.
        self.optimizer.step(lr, skip=~(losses.isfinite().all() & grad_norm.isfinite()))
        self.optimizer.zero_grad()
        return losses, grad_norm

    def _accumulate(self, inputs: Tensor, targets: Tensor, count: int, last: bool) -> Tensor:
        """Adds one micro-batch's share to the gradients; returns its share of the loss, detached.

        The ranks' gradients are averaged behind the last micro-batch alone; forward and backward both stand inside
        no_sync, which DDP asks for.
        """
        accumulating = isinstance(self.module, DistributedDataParallel) and not last
        with self.module.no_sync() if accumulating else nullcontext():  # type: ignore[operator]
            loss = forward_loss(self.module, inputs, targets, self.dtype) / count
            loss.backward()
        return loss.detach()


def forward_loss(module: nn.Module, inputs: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """The mean loss of a (B, T) micro-batch, its matrix products computed in `dtype`."""
    with autocast(inputs.device, dtype):
        loss: Tensor = module(inputs, targets)[1]
    return loss
