"""A tiny training run: the train stage as a process of its own, without DVC."""

import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.artifacts import RunSummary
from pipeline.config import load_yaml
from pipeline.training.checkpoint import Checkpoint, CheckpointStore
from tests.evaluation.small import many_items, write_benchmarks
from tests.training.conftest import write_shards

ROOT = Path(__file__).parents[2]
SMALL = {
    "model": {"block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16, "dropout": 0.1},
    "train": {
        "total_batch_size": 128,
        "max_steps": 24,
        "warmup_steps": 2,
        "eval_interval": 8,
        "eval_tokens": 64,
        "benchmark_interval": 12,
        "benchmark_items": 2,
        "sample_interval": 0,
    },
    "runtime": {
        "micro_batch_size": 2,
        "dtype": "float32",
        "compile": "off",
        "checkpoint_interval": 4,
        "collective_timeout": 60,
    },
    "tracking": {"mode": "disabled"},
}
TIMES = ("time_s", "train/tokens_per_sec", "train/mfu")  # what may differ between equal runs


Process = subprocess.Popen[str]


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    code: int
    output: str


class SmallRun:
    """A directory with params, data and what training left there."""

    def __init__(self, path: Path, data: Path, **changes: Mapping[str, Any]) -> None:
        """`data`: as `write_data` makes it. `changes`: keys of params.yaml that are to differ, by section."""
        self.path = path
        (path / "data").mkdir(parents=True)
        for name in ("shards", "benchmarks"):
            (path / "data" / name).symlink_to(data / name)
        (path / "models").mkdir()
        (path / "models/scratch").write_text("random weights\n")
        (path / "stages").mkdir()
        (path / "stages/code.py").write_text("version = 1\n")  # in place of the stage's code
        (path / "dvc.yaml").write_text('{"stages": {"train": {"deps": ["stages/code.py", "data/shards"]}}}')
        self.set(**changes)
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "DVC_STAGE": "train",  # so that a finished run keeps its last checkpoint, as it does under DVC
        }
        for name in ("RANK", "WORLD_SIZE", "NPROC_PER_NODE", "WANDB_MODE", "MAX_RESTARTS"):
            self.environment.pop(name, None)

    def set(self, **changes: Mapping[str, Any]) -> None:
        """Writes params.yaml: this repository's, made small, with `changes`."""
        values = load_yaml(ROOT / "params.yaml")
        for source in (SMALL, changes):
            for section, keys in source.items():
                values[section] |= keys
        (self.path / "params.yaml").write_text(json.dumps(values), encoding="utf-8")

    def start(
        self,
        *faults: str,
        ranks: int = 1,
        file_limit: int | None = None,
        on: Sequence[str] = (),
        **environment: str,
    ) -> Process:
        """Starts training with faults as tests.faults.faulty knows them.

        `file_limit`: bytes that a file may have. `on`: the words before a command that runs it on another host.
        """
        module = "tests.faults.faulty" if faults else "stages.train"

        def limit() -> None:
            if file_limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

        return subprocess.Popen(
            [*on, sys.executable, "-m", "pipeline", "launch", module, *faults],
            cwd=self.path,
            env={**self.environment, "NPROC_PER_NODE": str(ranks), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=limit,
        )

    def train(
        self,
        *faults: str,
        ok: bool = True,
        ranks: int = 1,
        file_limit: int | None = None,
        timeout_s: float = 240,
        on: Sequence[str] = (),
        **environment: str,
    ) -> Ended:
        """Trains until the process ends. Fails the test where its exit code is not as expected."""
        process = self.start(*faults, file_limit=file_limit, ranks=ranks, on=on, **environment)
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert (process.returncode == 0) == ok, f"exit code {process.returncode}\n{output}"
        return Ended(process.returncode, output)

    @property
    def state(self) -> Path:
        """The directory of the unfinished run, of which there must be one."""
        (state,) = (self.path / ".runs").glob("train-*/")
        return state

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.state / "checkpoints").iterdir())

    def newest(self) -> Checkpoint:
        found = CheckpointStore(self.state / "checkpoints", kept=9).newest()
        assert found is not None
        return found

    def result(self) -> dict[str, Any]:
        """All that two equal runs have in common, bit for bit: the model, the optimizer and the curves."""
        newest = self.newest()
        return {
            "weights": self.weights(),
            "optimizer": newest.load("optimizer"),
            "step": newest.step,
            "curve": self.curve(),
        }

    def weights(self) -> dict[str, Tensor]:
        return load_file(self.path / "data/model/model.safetensors")

    def summary(self) -> RunSummary:
        return RunSummary.read(self.path / "reports/train/summary.json")

    def resumed_at(self) -> list[int]:
        return [resume.step for resume in self.summary().resumes]

    def curve(self) -> list[dict[str, str]]:
        with (self.path / "reports/train/curves.csv").open(newline="") as file:
            return [{name: cell for name, cell in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def same(a: Any, b: Any) -> bool:
    """Whether two trees are equal, tensors bit for bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def write_data(directory: Path) -> Path:
    """Shards and multiple-choice items for `SmallRun`."""
    write_shards(directory / "shards")
    write_benchmarks(directory / "benchmarks", next_lines=many_items(4))
    return directory


def corrupted_copy(run: SmallRun, name: str) -> Path:
    """Replaces the shards that `run` shares with others by a copy, and returns the path of one of its files."""
    link = run.path / "data/shards"
    original = link.resolve()
    link.unlink()
    shutil.copytree(original, link)
    return link / name
