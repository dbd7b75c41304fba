"""The numbers of each step: kept on the device while it works, read together, turned into the rows of a curve."""

import math
import statistics
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Row = dict[str, Any]

SPIKE_WINDOW = 100
SPIKE_Z = 6.0


class StepClock:
    """Seconds spent in training steps, without probes and checkpoints."""

    def __init__(self, device: torch.device, elapsed: float = 0.0) -> None:
        self._device = device
        self.elapsed = elapsed
        self._began: float | None = None

    def start(self) -> None:
        """Goes on measuring; nothing happens if it does already."""
        if self._began is None:
            self._began = time.perf_counter()

    def stop(self) -> float:
        """Waits for the device, stops measuring and returns the seconds since the beginning of the run."""
        if self._began is not None:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self.elapsed += time.perf_counter() - self._began
            self._began = None
        return self.elapsed


@dataclass
class SpikeDetector:
    """Marks losses far above the recent ones: a robust z-score over a window, from median and absolute deviation."""

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=SPIKE_WINDOW))

    def is_spike(self, loss: float) -> bool:
        """Whether `loss` is a spike among those before it, which it then joins."""
        spike = False
        if len(self.recent) == SPIKE_WINDOW:
            median = statistics.median(self.recent)
            deviation = statistics.median(abs(other - median) for other in self.recent)
            # 1.4826 makes the median absolute deviation of a normal distribution its standard deviation.
            spike = (loss - median) > SPIKE_Z * 1.4826 * max(deviation, 1e-6)
        self.recent.append(loss)
        return spike


class StepMetrics:
    """Collects each step's losses and gradient norms as device tensors, and reads them many steps at a time."""

    def __init__(self) -> None:
        self._pending: list[tuple[int, float, Tensor]] = []

    def add(self, step: int, lr: float, losses: Tensor, local_norms: Tensor, grad_norm: Tensor) -> None:
        """What `TrainStep` returned: (world size,), (world size,) and a scalar. Nothing waits for them here."""
        self._pending.append((step, lr, torch.cat([losses, local_norms, grad_norm.reshape(1)])))

    def read(self) -> list["StepReading"]:
        """All that was collected since the last reading; waits for the device once."""
        if not self._pending:
            return []
        values = torch.stack([seen for _, _, seen in self._pending]).tolist()
        ranks = len(values[0]) // 2
        readings = [
            StepReading(step, lr, losses=row[:ranks], local_norms=row[ranks:-1], grad_norm=row[-1])
            for (step, lr, _), row in zip(self._pending, values, strict=True)
        ]
        self._pending.clear()
        return readings


@dataclass(frozen=True)
class StepReading:
    """One step as the host sees it."""

    step: int
    """Optimizer steps done, this one included."""
    lr: float
    losses: list[float]
    """Mean loss of each rank's share of the batch, nats per token."""
    local_norms: list[float]
    """Of each rank's own gradient, before averaging; zero on one rank."""
    grad_norm: float
    """Of the averaged gradient, before clipping."""

    @property
    def loss(self) -> float:
        """Mean over all ranks and micro-batches."""
        return sum(self.losses) / len(self.losses)

    @property
    def is_finite(self) -> bool:
        """Whether the step was taken: the same test as the loop makes on the device."""
        return all(map(math.isfinite, (*self.losses, self.grad_norm)))

    def what_is_wrong(self) -> str:
        """Names the ranks whose loss, or else whose own gradient, is not finite."""
        bad = []
        for rank, (loss, norm) in enumerate(zip(self.losses, self.local_norms, strict=True)):
            if not math.isfinite(loss):
                bad.append(f"loss {loss} on rank {rank}")
            elif not math.isfinite(norm):
                bad.append(f"gradient norm {norm} on rank {rank}")
        return ", ".join(bad) or f"gradient norm {self.grad_norm} with finite losses"
