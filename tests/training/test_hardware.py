"""What a machine can do, by its name."""

import pytest

from pipeline.training.hardware import gpu_peak


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("Tesla T4", 65),
    ],
)
def test_a_gpu_is_known_by_its_name(name: str, tera: int) -> None:
    assert gpu_peak(name) == tera * 1e12


@pytest.mark.parametrize("name", ["NVIDIA T400", "NVIDIA A1000", "NVIDIA GH200 480GB"])
def test_a_name_that_only_looks_like_another_is_not_known(name: str) -> None:
    assert gpu_peak(name) is None
