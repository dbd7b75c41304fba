"""The device: its name, its peak FLOP/s, and the algorithms that it may use."""

import os
import platform
import time
from pathlib import Path

import torch

from pipeline.model.accounting import gpu_peak


def device_name(device: torch.device) -> str:
    """The model of the device: "NVIDIA H200", "AMD EPYC"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s of dense matrix products in `dtype`; None for an unknown GPU.

    A GPU's comes from its data sheet whatever the dtype, which is how MFU is usually given. A CPU's is measured.
    """
    if device.type == "cuda":
        return gpu_peak(torch.cuda.get_device_name(device))
    return _measured_cpu_peak(dtype)


def _measured_cpu_peak(dtype: torch.dtype, size: int = 1024, seconds: float = 0.3) -> float:
    """FLOP/s of the fastest of several square matrix products on all threads."""
    generator = torch.Generator().manual_seed(0)  # leaves the run's random state alone
    a = torch.randn(size, size, generator=generator).to(dtype)
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def use_deterministic_algorithms(enabled: bool) -> None:
    """Restricts this process to algorithms with a fixed order of additions, or lifts that.

    Without it, threads add up the gradient of an embedding in the order in which they finish, also in compiled code on
    a CPU. Operations without such an algorithm only warn: https://pytorch.org/docs/stable/notes/randomness.html
    """
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(enabled, warn_only=True)
    # Filling uninitialised memory costs time and only hides reads of memory that was never written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
