"""What a run writes down: the rows of the curves, and the counters that a checkpoint carries on."""

import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.distributed import Group
from pipeline.log import Stop, logger
from pipeline.training.energy import EnergyMeter
from pipeline.training.metrics import Row, SpikeDetector, StepClock, StepMetrics, StepReading


@dataclass
class Counters:
    """What a run counts over all its resumptions."""

    train_time_s: float = 0.0
    """In training steps alone."""
    wall_time_s: float = 0.0
    """While a process of the run was training, probes and checkpoints included."""
    resumed_at: list[int] = field(default_factory=list)
    """The steps that checkpoints were taken up after."""
    skipped_steps: int = 0
    spikes: int = 0
    energy_j: float | None = 0.0
    """Joules that the devices of all ranks used, probes and checkpoints included; None where one does not tell."""


class Journal:
    """Turns the metrics of steps into rows; counts, marks and stops what has gone bad."""

    def __init__(
        self,
        clock: StepClock,
        meter: EnergyMeter,
        total_batch_size: int,
        flops_per_token: int,
        peak_flops: float | None,
        max_skipped: int,
    ) -> None:
        """`peak_flops`: FLOP/s of all ranks together; None where it is unknown."""
        self.clock, self.counters = clock, Counters()
        self._meter, self._joules = meter, 0.0  # of this rank, since they were last added to all ranks'
        self.total_batch_size, self.flops_per_token, self.peak = total_batch_size, flops_per_token, peak_flops
        self.max_skipped = max_skipped
        self.last: StepReading | None = None
        self.last_skipped: StepReading | None = None
        self.tokens_per_sec = 0.0
        self._metrics, self._spikes = StepMetrics(), SpikeDetector()
        self._read_at = (0, 0.0)  # step, seconds of training
        self._began = time.monotonic()

    def take_up(self, state: dict[str, Any], step: int) -> None:
        """Goes on from what `state` gave at `step`."""
        self.counters = Counters(**state["counters"])
        self._spikes.recent.extend(state["recent_losses"])
        self.clock.elapsed = self.counters.train_time_s
        self._read_at = (step, self.clock.elapsed)
        self._began = time.monotonic() - self.counters.wall_time_s

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the journal, as JSON."""
        self.counters.train_time_s = self.clock.elapsed
        self.counters.wall_time_s = time.monotonic() - self._began
        return {"counters": asdict(self.counters), "recent_losses": list(self._spikes.recent)}

    def count_energy(self, group: Group) -> None:
        """Adds the joules that all ranks have used since the last call; every rank must call it."""
        joules = group.sum_(torch.tensor(self._joules, dtype=torch.float64)).item()
        before, self._joules = self.counters.energy_j, 0.0
        self.counters.energy_j = None if before is None or math.isnan(joules) else before + joules

    def add(self, step: int, lr: float, losses: Tensor, local_norms: Tensor, grad_norm: Tensor) -> None:
        """Notes a step's numbers without waiting for the device."""
        self._metrics.add(step, lr, losses, local_norms, grad_norm)

    def read(self) -> list[Row]:
        """The rows of the steps since the last reading; waits for the device once."""
        elapsed = self.clock.stop()
        used = self._meter.used()
        self._joules += math.nan if used is None else used
        readings = self._metrics.read()
        if readings:
            steps, seconds = readings[-1].step - self._read_at[0], elapsed - self._read_at[1]
            self.tokens_per_sec = steps * self.total_batch_size / max(seconds, 1e-9)
            self._read_at = (readings[-1].step, elapsed)
            self.last = readings[-1]
        return [self._row(reading, elapsed) for reading in readings]

    @property
    def final_loss(self) -> float:
        """Mean of the last losses, at most as many as the spike window holds: one batch alone is noisy."""
        recent = self._spikes.recent
        return sum(recent) / len(recent) if recent else float("nan")

    def stop_if_too_many_skipped(self) -> None:
        """Raises Stop once more steps were skipped than train.max_skipped_steps allows; the same on every rank."""
        if self.counters.skipped_steps > self.max_skipped and self.last_skipped is not None:
            raise Stop(
                f"{self.counters.skipped_steps} steps had a loss or gradient that is not finite, more than "
                f"train.max_skipped_steps ({self.max_skipped}); the last was step {self.last_skipped.step}: "
                f"{self.last_skipped.what_is_wrong()}. The newest checkpoint stands. "
                "Mend the cause (a lower train.max_lr, more warmup) and run again",
                agreed=True,
            )

    def mfu(self, tokens_per_sec: float) -> float | None:
        """Model FLOPs utilisation (PaLM, arXiv:2204.02311, appendix B), 0 to 1; None where the peak is unknown."""
        return None if self.peak is None else tokens_per_sec * self.flops_per_token / self.peak

    def _row(self, reading: StepReading, elapsed: float) -> Row:
        mfu = self.mfu(self.tokens_per_sec)
        return {
            "step": reading.step,
            "tokens": reading.step * self.total_batch_size,
            "time_s": round(elapsed, 3),
            "train/loss": reading.loss,
            "train/lr": reading.lr,
            "train/grad_norm": reading.grad_norm,
            "train/tokens_per_sec": round(self.tokens_per_sec, 1),
            "train/mfu": None if mfu is None else round(mfu, 4),
            "event": self._event(reading),
        }

    def _event(self, reading: StepReading) -> str:
        if not reading.is_finite:
            self.counters.skipped_steps += 1
            self.last_skipped = reading
            logger.info("step %d skipped: %s", reading.step, reading.what_is_wrong())  # once: all ranks read the same
            return "skipped"
        if self._spikes.is_spike(reading.loss):
            self.counters.spikes += 1
            return "spike"
        return ""
