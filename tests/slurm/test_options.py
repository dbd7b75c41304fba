"""slurm.yaml, and what would be submitted with it. Needs no SLURM."""

import shutil
from pathlib import Path

import pytest

from pipeline.cli.slurm import machine_options
from pipeline.config import ConfigError
from tests.dag.imports import ROOT


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """slurm.yaml in the current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "slurm.yaml"


def test_the_options_of_a_job_replace_those_of_all_jobs(machine: Path) -> None:
    machine.write_text(
        "all: {time: 24:00:00, mem: 0, exclusive: true}\ntrain: {time: 1:00:00, exclusive: false, nodes: 2}\n"
    )
    assert machine_options("train") == ["--time=1:00:00", "--mem=0", "--nodes=2"]
    assert machine_options("sweep") == ["--time=24:00:00", "--mem=0", "--exclusive"]


def test_the_example_is_valid(machine: Path) -> None:
    shutil.copy(ROOT / "recipes/slurm/slurm.yaml", machine)
    assert "--gpus-per-node=8" in machine_options("train")
    assert "--partition=cpu" in machine_options("tokenize")
    assert "--gpus-per-node=1" in machine_options("sweep")


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("train: {nodes: [1, 2]}", r"train: .*nodes \(\[1, 2\]\)"),
        ("train: {output: x.out}", r"train: .*output \(x.out\)"),
        ("training: {nodes: 1}", "training: "),
        ("train: gpu", "train: "),
        ("- train", "mapping"),
    ],
)
def test_mistakes_are_named(machine: Path, text: str, mistake: str) -> None:
    machine.write_text(text)
    with pytest.raises(ConfigError, match=f"slurm.yaml (.|\n)*{mistake}"):
        machine_options("train")


def test_without_a_slurm_yaml_the_error_names_the_example(machine: Path) -> None:
    with pytest.raises(ConfigError, match=r"recipes/slurm/slurm\.yaml"):
        machine_options("train")
