"""Training on a GPU: every option learns as on a CPU in float32, resumes bit for bit, and skips non-finite steps."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from pipeline.distributed import Group
from pipeline.training import parallel
from pipeline.training import trainer as trainer_module
from tests.training.conftest import ONE_RANK, MemoryLogger, before_each_step, state_of, trainer
from tests.training.test_trainer import stop_after_step_7

BFLOAT16 = {"dtype": "bfloat16"}
COMPILED = {"compile": "on"}
RECOMPUTED = {"activation_checkpointing": True}
MUON = {"optimizer": "muon"}
LLAMA = {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "n_kv_head": 1, "bias": False}
# Runtime, train, model
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "float32": ({}, {}, {}),
    "bfloat16": (BFLOAT16, {}, {}),
    "compiled": (COMPILED, {}, {}),
    "compiled, bfloat16, recomputed": (COMPILED | BFLOAT16 | RECOMPUTED, {}, {}),
    "not deterministic": ({"deterministic": False}, {}, {}),
    "attention eager": ({"attention": "eager"}, {}, {}),
    "attention auto": ({"attention": "auto"}, {}, {}),
    "recomputed": (RECOMPUTED, {}, {}),
    "accumulation": ({"micro_batch_size": 2}, {}, {}),
    "muon": (BFLOAT16, MUON, {}),
    "llama": (BFLOAT16, MUON, LLAMA),
    "alibi, compiled": (BFLOAT16 | COMPILED, {}, {"position": "alibi", "norm_placement": "post"}),
}


def losses_of(
    shards: Path, state: Path, group: Group, runtime: dict[str, Any], train: dict[str, Any], config: dict[str, Any]
) -> list[float]:
    log = MemoryLogger()
    train, config = {"max_steps": 8, **train}, {"dropout": 0.0, **config}  # dropout masks differ between devices
    run = trainer(shards, state, log, group, train=train, runtime=runtime, config=config)
    run.run()
    assert run.compiled == (runtime.get("compile") == "on")
    assert all(parameter.device.type == group.device.type for parameter in run.model.parameters())
    return [row["train/loss"] for row in log.rows]


def check(shards: Path, tmp_path: Path, group: Group, option: str, **more: Any) -> None:
    """The losses of a few steps are those of an eager float32 run on the CPU."""
    runtime, train, config = OPTIONS[option]
    expected = losses_of(shards, tmp_path / "expected", ONE_RANK, {}, train, config)
    losses = losses_of(shards, tmp_path / "losses", group, runtime | more, train, config)
    assert losses == pytest.approx(expected, rel=1e-2 if runtime.get("dtype") == "bfloat16" else 1e-4)
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_learns_as_on_a_cpu(shards: Path, tmp_path: Path, group: Group, option: str) -> None:
    check(shards, tmp_path, group, option)


@pytest.fixture
def modules(group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[nn.Module]]:
    """A process group of one rank, in which DDP and FSDP are used as if it had more; the modules that were trained."""
    modules = []

    def mesh(kind: str, _: tuple[int, ...]) -> DeviceMesh:
        return init_device_mesh(kind, (1,))

    def parallelize(model: Any, sharding: str, group: Group) -> None:
        parallel.parallelize(model, sharding, replace(group, world_size=2))

    def data_parallel(module: nn.Module, group: Group) -> nn.Module:
        modules.append(parallel.data_parallel(module, replace(group, world_size=2)))
        return modules[-1]

    monkeypatch.setattr(parallel, "init_device_mesh", mesh)
    monkeypatch.setattr(trainer_module, "parallelize", parallelize)
    monkeypatch.setattr(trainer_module, "data_parallel", data_parallel)
    backend = "cpu:gloo,cuda:nccl" if group.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield modules
    dist.destroy_process_group()


@pytest.mark.parametrize("option", ["accumulation", "compiled, bfloat16, recomputed", "muon"])
@pytest.mark.parametrize(("sharding", "kind"), [("ddp", DistributedDataParallel), ("fsdp", FSDPModule)])
def test_ddp_and_fsdp_learn_as_on_a_cpu(
    shards: Path, tmp_path: Path, group: Group, modules: list[nn.Module], sharding: str, kind: type, option: str
) -> None:
    check(shards, tmp_path, group, option, sharding=sharding)
    *_, module = modules
    assert isinstance(getattr(module, "_orig_mod", module), kind)


@pytest.mark.parametrize("option", ["float32", "compiled, bfloat16, recomputed", "muon", "attention eager"])
def test_a_deterministic_run_resumes_bit_for_bit(shards: Path, tmp_path: Path, group: Group, option: str) -> None:
    """With dropout, and sequences so long that a kernel that adds in any order would show."""
    runtime, train, _ = OPTIONS[option]
    options: dict[str, Any] = {
        "group": group,
        "runtime": {**runtime, "micro_batch_size": 2, "deterministic": True},
        "train": {**train, "total_batch_size": 2048},
        "config": {"block_size": 512, "n_embd": 64},
    }
    log, expected_log = MemoryLogger(), MemoryLogger()
    expected = trainer(shards, tmp_path / "uninterrupted", expected_log, **options)
    expected.run()
    stop_after_step_7(shards, tmp_path / "stopped", **options)  # the last checkpoint is that of step 5
    resumed = trainer(shards, tmp_path / "stopped", log, **options)
    resumed.run()
    assert [resume.step for resume in resumed.metrics.stats.resumes] == [5]
    assert log.curve() == expected_log.curve()[5:]
    assert all(map(torch.equal, state_of(resumed), state_of(expected)))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_device_skips_a_non_finite_step(shards: Path, tmp_path: Path, group: Group, optimizer: str) -> None:
    run = trainer(shards, tmp_path, group=group, train={"max_steps": 4, "optimizer": optimizer})
    assert run.optimizer.skips_on_host == (group.device.type == "cpu")
    run.optimizer.skips_on_host = False
    forward, states = run.model.forward, {}

    def before(step: int) -> None:
        states[step] = state_of(run)
        factor = torch.nan if step == 3 else 1.0
        run.model.forward = lambda *batch: forward(*batch) * factor  # type: ignore[method-assign]

    with before_each_step(before):
        run.run()
    assert run.metrics.stats.skipped_steps == 1
    assert all(map(torch.equal, states[3], states[4]))
    assert not all(map(torch.equal, states[4], state_of(run)))


def test_the_host_does_not_wait_for_the_device_in_a_step(shards: Path, tmp_path: Path, group: Group) -> None:
    if group.device.type == "cpu":
        pytest.skip("only a GPU runs behind the host")
    run = trainer(shards, tmp_path, group=group, train={"max_steps": 9}, runtime={"checkpoint_interval": 100})
    with before_each_step(lambda step: torch.cuda.set_sync_debug_mode("error" if 2 < step < 9 else "default")):
        run.run()
