"""Energy: counted where the device counts it, unknown elsewhere."""

from pathlib import Path

import torch

from pipeline.training.energy import EnergyMeter

CPU = torch.device("cpu")


def write_package(rapl: Path, number: int, microjoules: int) -> Path:
    package = rapl / f"intel-rapl:{number}"
    package.mkdir(parents=True, exist_ok=True)
    (package / "max_energy_range_uj").write_text("1000000000\n")
    (package / "energy_uj").write_text(f"{microjoules}\n")
    return package / "energy_uj"


def test_the_joules_of_all_packages_since_the_last_reading_are_told(tmp_path: Path) -> None:
    first, second = write_package(tmp_path, 0, 5_000_000), write_package(tmp_path, 1, 900_000_000)
    meter = EnergyMeter(CPU, 0, tmp_path)
    first.write_text("25000000")
    second.write_text("910000000")
    assert meter.used() == 30.0
    assert meter.used() == 0.0


def test_a_counter_that_wraps_goes_on(tmp_path: Path) -> None:
    file = write_package(tmp_path, 0, 999_000_000)
    meter = EnergyMeter(CPU, 0, tmp_path)
    file.write_text("4000000")
    assert meter.used() == 5.0


def test_a_device_that_does_not_tell_gives_none(tmp_path: Path) -> None:
    assert EnergyMeter(CPU, 0, tmp_path / "absent").used() is None


def test_only_the_first_rank_of_a_machine_counts_its_packages(tmp_path: Path) -> None:
    file = write_package(tmp_path, 0, 1_000_000)
    meter = EnergyMeter(CPU, 1, tmp_path)
    file.write_text("9000000")
    assert meter.used() == 0.0
