"""Training metrics: collected on the device step by step, read together, and logged as the rows of curves.csv.

Also the statistics of a run, which its checkpoints contain, and the detection of spikes and non-finite steps.
"""

import math
import statistics
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from pipeline.artifacts import Record, Resume
from pipeline.log import UserError, logger
from pipeline.model.accounting import gpu_peak
from pipeline.training.params import TrainParams

Row = dict[str, Any]
"""One step: column of curves.csv -> value, and `sample`, a text, at some steps."""

SPIKE_WINDOW = 100  # losses
SPIKE_Z = 6.0


class Logger(Protocol):
    """A destination of rows: curves.csv, samples.json or W&B."""

    def rewind(self, step: int) -> None:
        """Prepares to continue after `step`: curves.csv drops later rows, W&B sends those it lacks."""

    def record(self, rows: list[Row]) -> None:
        """Records rows, in the order of their steps."""

    def flush(self) -> None:
        """Makes the recorded rows durable, if this is a file."""


class RunStats(Record):
    """Statistics of a whole run, over all its processes."""

    model_config = ConfigDict(frozen=False)

    train_time_s: float = 0.0
    """Time in training steps alone."""
    wall_time_s: float = 0.0
    """Time in which a process of the run was training, probes and checkpoints included."""
    resumes: list[Resume] = Field(default_factory=list)
    skipped_steps: int = 0
    spikes: int = 0


class BestValidation(Record):
    """The lowest validation loss so far."""

    loss: float | None = None
    """Nats per token; None before the first."""
    step: int = 0
    evaluations_since: int = 0
    """Validation losses after it, none of them lower."""


class MetricsState(Record):
    """The state of StepMetrics in a checkpoint."""

    stats: RunStats = Field(default_factory=RunStats)
    recent_losses: list[float] = Field(default_factory=list)
    best: BestValidation = Field(default_factory=BestValidation)


class StepClock:
    """Seconds spent in training steps, without probes and checkpoints."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.elapsed = 0.0
        self._started: float | None = None

    def start(self) -> None:
        """Starts or resumes the clock."""
        if self._started is None:
            self._started = time.perf_counter()

    def stop(self) -> float:
        """Waits for the device and stops the clock; returns the seconds in steps so far, over all processes."""
        if self._started is not None:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self.elapsed += time.perf_counter() - self._started
            self._started = None
        return self.elapsed


class SpikeDetector:
    """Marks losses far above the recent ones, by a robust z-score: median and median absolute deviation."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=SPIKE_WINDOW)

    def is_spike(self, loss: float) -> bool:
        """Whether `loss` is a spike; then adds it to the recent losses."""
        spike = False
        if len(self.recent) == SPIKE_WINDOW:
            median = statistics.median(self.recent)
            deviation = statistics.median(abs(other - median) for other in self.recent)
            # 1.4826 scales the median absolute deviation of a normal distribution to its standard deviation.
            spike = (loss - median) > SPIKE_Z * 1.4826 * max(deviation, 1e-6)
        self.recent.append(loss)
        return spike


@dataclass(frozen=True)
class StepReading:
    """One step's metrics on the host."""

    step: int
    """Optimizer steps done, this one included."""
    lr: float
    losses: list[float]
    """Loss of each rank's part of the batch; their mean is that of the step, nats per token that counts."""
    grad_norm: float
    """Norm of the averaged gradient, before clipping."""

    @property
    def loss(self) -> float:
        """Mean over all ranks and micro-batches."""
        return sum(self.losses) / len(self.losses)

    @property
    def is_finite(self) -> bool:
        """Whether the update was made: the same test as in the training loop, there on the device."""
        return all(map(math.isfinite, (*self.losses, self.grad_norm)))

    def problem(self) -> str:
        """What is not finite: the losses with their ranks, or else the gradient."""
        losses = [f"loss {loss} on rank {rank}" for rank, loss in enumerate(self.losses) if not math.isfinite(loss)]
        return ", ".join(losses) or f"gradient norm {self.grad_norm} with finite losses"


class StepMetrics:
    """Collects the metrics of steps, returns them as rows, and stops a run that skips too many steps."""

    def __init__(
        self,
        train: TrainParams,
        device: torch.device,
        flops_per_token: int,
        peak_flops: float | None,
    ) -> None:
        """`peak_flops`: FLOP/s of all ranks together; None if unknown."""
        self.train, self.flops_per_token, self.peak_flops = train, flops_per_token, peak_flops
        self.clock, self.stats, self.best = StepClock(device), RunStats(), BestValidation()
        self.last: StepReading | None = None
        self.last_skipped: StepReading | None = None
        self._pending: list[tuple[int, float, Tensor]] = []
        self._spikes = SpikeDetector()
        self._tokens_per_sec = 0.0
        self._last_read = (0, 0.0)  # step, seconds of training
        self._began = time.monotonic()

    def load_state_dict(self, state: MetricsState, resume: Resume) -> None:
        """Restores what `state_dict` returned after `resume.step`."""
        self.stats, self.best = state.stats.model_copy(deep=True), state.best
        self.stats.resumes.append(resume)
        self._spikes.recent.extend(state.recent_losses)
        self.clock.elapsed = self.stats.train_time_s
        self._last_read = (resume.step, self.clock.elapsed)
        self._began = time.monotonic() - self.stats.wall_time_s

    def state_dict(self) -> MetricsState:
        """A copy of the updated statistics and of the recent losses, for spike detection."""
        self.stats.train_time_s = self.clock.elapsed
        self.stats.wall_time_s = time.monotonic() - self._began
        stats, recent_losses = self.stats.model_copy(deep=True), list(self._spikes.recent)
        return MetricsState(stats=stats, recent_losses=recent_losses, best=self.best)

    def add(self, step: int, lr: float, losses: Tensor, grad_norm: Tensor) -> None:
        """Stores a step's (world size,) losses and scalar gradient norm, on the device, without waiting for them."""
        self._pending.append((step, lr, torch.cat([losses, grad_norm.reshape(1)])))

    def read(self) -> list[Row]:
        """The rows of the steps since the last call; waits for the device once."""
        elapsed = self.clock.stop()
        if not self._pending:
            return []
        values = torch.stack([metrics for _, _, metrics in self._pending]).tolist()
        readings = [
            StepReading(step, lr, losses=row[:-1], grad_norm=row[-1])
            for (step, lr, _), row in zip(self._pending, values, strict=True)
        ]
        self._pending.clear()
        self.last = readings[-1]
        steps, seconds = self.last.step - self._last_read[0], elapsed - self._last_read[1]
        self._tokens_per_sec = steps * self.train.total_batch_size / max(seconds, 1e-9)
        self._last_read = (self.last.step, elapsed)
        return [self._row(reading, elapsed) for reading in readings]

    def check_skipped_steps(self) -> None:
        """Raises UserError, on every rank alike, if more than train.max_skipped_steps steps were skipped."""
        skipped, limit = self.stats.skipped_steps, self.train.max_skipped_steps
        if skipped > limit and self.last_skipped is not None:
            raise UserError(
                f"{skipped} steps were skipped for a non-finite loss or gradient, more than train.max_skipped_steps "
                f"({limit}); the last was step {self.last_skipped.step}: {self.last_skipped.problem()}. The newest "
                "checkpoint is intact. Fix the cause (lower train.max_lr, longer warmup) and run again",
                all_ranks=True,
            )

    def is_best(self, step: int, val_loss: float) -> bool:
        """Records a validation loss, the same on all ranks. Returns whether it is the lowest so far."""
        best = self.best
        if not val_loss < (math.inf if best.loss is None else best.loss):  # a NaN is not lower
            self.best = best.model_copy(update={"evaluations_since": best.evaluations_since + 1})
            return False
        self.best = BestValidation(loss=val_loss, step=step)
        return True

    @property
    def out_of_patience(self) -> bool:
        """Whether train.patience ends the run."""
        return self.train.patience is not None and self.best.evaluations_since >= self.train.patience

    def mfu(self, tokens_per_sec: float) -> float | None:
        """Model FLOPs utilisation (PaLM, arXiv:2204.02311, appendix B), 0 to 1; None if the peak is unknown."""
        return None if self.peak_flops is None else tokens_per_sec * self.flops_per_token / self.peak_flops

    def _row(self, reading: StepReading, elapsed: float) -> Row:
        mfu = self.mfu(self._tokens_per_sec)
        return {
            "step": reading.step,
            "tokens": reading.step * self.train.total_batch_size,
            "time_s": round(elapsed, 3),
            "train/loss": reading.loss,
            "train/lr": reading.lr,
            "train/grad_norm": reading.grad_norm,
            "train/tokens_per_sec": round(self._tokens_per_sec, 1),
            "train/mfu": None if mfu is None else round(mfu, 4),
            "event": self._event(reading),
        }

    def _event(self, reading: StepReading) -> str:
        if not reading.is_finite:
            self.stats.skipped_steps += 1
            self.last_skipped = reading
            logger.info("step %d skipped: %s", reading.step, reading.problem())  # printed by rank 0: all read the same
            return "skipped"
        if self._spikes.is_spike(reading.loss):
            self.stats.spikes += 1
            return "spike"
        return ""


def peak_flops(device: torch.device) -> float | None:
    """FLOP/s of a GPU by its data sheet, whatever the dtype, which is how MFU is usually given.

    None for a GPU that is not listed and for a CPU, whose peak under load can be neither looked up nor measured.
    """
    return gpu_peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
