"""Energy: counted where the device counts it, unknown elsewhere."""

from pathlib import Path

import pytest
import torch

from pipeline.training.energy import EnergyMeter
from pipeline.training.journal import Journal
from pipeline.training.metrics import StepClock

from .conftest import ONE_RANK

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


def test_a_counter_that_fails_later_costs_the_number_and_not_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_package(tmp_path, 0, 1_000_000)
    meter = EnergyMeter(CPU, 0, tmp_path)
    file.unlink()
    assert meter.used() is None
    assert "energy is counted no more: [Errno 2]" in capsys.readouterr().out
    file.write_text("9000000")
    assert meter.used() is None


class Told(EnergyMeter):
    """A device that used so many joules between readings."""

    def __init__(self, *joules: float | None) -> None:
        self._left = list(joules)

    def used(self) -> float | None:
        return self._left.pop(0)


def journal(meter: EnergyMeter) -> Journal:
    return Journal(StepClock(CPU), meter, total_batch_size=1, flops_per_token=1, peak_flops=None, max_skipped=0)


def test_a_runs_energy_goes_on_over_a_resumption() -> None:
    first = journal(Told(5.0, 2.0))
    first.read()
    first.read()
    first.count_energy(ONE_RANK)
    second = journal(Told(10.0))
    second.take_up(first.state(), step=1)
    second.read()
    second.count_energy(ONE_RANK)
    assert second.counters.energy_j == 17.0


def test_energy_that_was_not_told_once_is_unknown_for_the_whole_run() -> None:
    first = journal(Told(5.0, None, 2.0))
    for _ in range(3):
        first.read()
        first.count_energy(ONE_RANK)
    assert first.counters.energy_j is None
