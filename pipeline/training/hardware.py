"""What the machine can do: its name, its peak rate of matrix products, and whether compiling pays."""

import os
import platform
import re
import time
from pathlib import Path

import torch

# Dense bfloat16 peaks in FLOP/s, from the vendors' data sheets (float16's where there is no bfloat16: V100, T4). The
# first whose words the device's name has is taken: "NVIDIA L40" is no L4.
GPU_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}

COMPILE_PAYS_FROM = {"cpu": 2e13, "cuda": 1e15}  # FLOPs of a run per process: about a minute of eager work


def device_name(device: torch.device) -> str:
    """What a person calls the device: "NVIDIA H200", "AMD EPYC"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s of dense matrix products in `dtype` on the device; None for a GPU that is not in the table.

    A GPU's is the data sheet's figure (`GPU_PEAKS`), whatever the dtype, as MFU is usually given. A CPU's is measured.
    """
    if device.type == "cuda":
        return gpu_peak(torch.cuda.get_device_name(device))
    return _measured_cpu_peak(dtype)


def gpu_peak(name: str) -> float | None:
    """The figure for a device of that name; None where there is none."""
    return next((peak for key, peak in GPU_PEAKS.items() if re.search(rf"\b{key}\b", name)), None)


def _measured_cpu_peak(dtype: torch.dtype, size: int = 1024, seconds: float = 0.3) -> float:
    """FLOP/s of the best of several square matrix products on all threads."""
    generator = torch.Generator().manual_seed(0)  # the global generator belongs to the run
    a = torch.randn(size, size, generator=generator).to(dtype)
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def choose_algorithms(deterministic: bool) -> None:
    """Restricts this process to algorithms that add in a fixed order, or lifts that.

    Without it, the gradient of an embedding is added up by threads in the order in which they come, also in compiled
    code on a CPU. Operations that have no such algorithm warn. See pytorch.org/docs/stable/notes/randomness.html.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # only hides reads of unset memory, at a cost


def compiling_pays(device: torch.device, flops_per_process: float) -> bool:
    """Whether a run is long enough that torch.compile wins back its half minute.

    A function of the configuration alone, so that a resumed run decides as the first one did.
    """
    return flops_per_process >= COMPILE_PAYS_FROM.get(device.type, float("inf"))
