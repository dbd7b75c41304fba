"""The energy that this process's device uses, where the device tells it.

A GPU counts its millijoules (NVML, Volta and newer). A CPU's packages count theirs on Linux (RAPL, the powercap files,
which most machines let only root read). What neither counts, memory, fans and losses, is left out: an estimate from
below.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from pipeline.log import logger

RAPL = Path("/sys/class/powercap")
WRAPS_NEVER = float("inf")


class EnergyMeter:
    """Joules used between readings, or None where the device does not tell."""

    def __init__(self, device: torch.device, local_rank: int, rapl: Path = RAPL) -> None:
        """A GPU is read by the rank that computes on it, a machine's CPU packages by its first rank alone."""
        if device.type == "cuda":
            counters = _gpu_counters(device)
        else:
            counters = _cpu_counters(rapl) if local_rank == 0 else []
        self._counters = counters
        self._tells = bool(counters) or (device.type == "cpu" and local_rank > 0)
        self._last = self._readings()

    def used(self) -> float | None:
        """Joules since the last call. Call it more often than a counter wraps: some do within half an hour."""
        if not self._tells:
            return None
        before = self._last
        try:
            self._last = self._readings()
        except Exception as error:  # a driver's hiccup costs this number, and not the training
            self._tells = False
            logger.warning("energy is counted no more: %s", error)
            return None
        return sum(
            now - then if now >= then else now + limit - then
            for (_, limit), then, now in zip(self._counters, before, self._last, strict=True)
        )

    def _readings(self) -> list[float]:
        return [read() for read, _ in self._counters]


Counter = tuple[Callable[[], float], float]  # reads joules since some moment; joules at which it wraps


def _gpu_counters(device: torch.device) -> list[Counter]:
    try:
        import pynvml

        pynvml.nvmlInit()
        # By UUID: CUDA_VISIBLE_DEVICES changes torch's numbers and not NVML's.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")

        def joules() -> float:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3

        joules()
    except Exception:  # no NVML, no permission, a part of a GPU, an old one: it does not tell
        return []
    return [(joules, WRAPS_NEVER)]


def _cpu_counters(rapl: Path) -> list[Counter]:
    found: list[Counter] = []
    for package in sorted(rapl.glob("*-rapl:[0-9]")):  # packages alone: cores and memory are counted within them
        read = partial(_joules, package / "energy_uj")
        try:
            read()
            found.append((read, _joules(package / "max_energy_range_uj")))
        except (OSError, ValueError):
            return []
    return found


def _joules(file: Path) -> float:
    return int(file.read_text()) / 1e6
