"""A model that is sharded over the ranks (FSDP) trains as one that every rank holds (DDP)."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from pipeline.corpus.shards import open_split
from pipeline.corpus.tokenizer import bytes_tokenizer
from pipeline.distributed import Group
from pipeline.evaluation.val_loss import validation_loss
from pipeline.model.config import Architecture, GPTConfig, ModelParams
from pipeline.model.gpt import GPT
from pipeline.model_directory import save_model
from pipeline.runtime import RuntimeParams
from pipeline.training.checkpoint import CheckpointStore
from pipeline.training.metrics import Row
from pipeline.training.params import TrainParams
from pipeline.training.trainer import Probe
from stages.train import make_trainer
from tests.ranks import on_ranks
from tests.training.conftest import (
    CONFIG,
    RUNTIME,
    TRAIN,
    MemoryLogger,
    same,
    trainer,
    weights_of,
    write_shards,
)
from tests.training.test_masked_loss import ragged
from tests.training.test_trainer import stop_after_step_7

FSDP = {"sharding": "fsdp"}
# The gradient of a key's bias is zero up to rounding, so an optimizer's step on it may go anywhere.
NO_BIAS = {"bias": False}


def trained(
    group: Group, shards: Path, state: Path, runtime: dict[str, Any], **options: Any
) -> tuple[dict[str, Tensor], list[tuple[Any, ...]]]:
    """Weights and curve."""
    log = MemoryLogger()
    run = trainer(shards, state, log, group, runtime=runtime, **options)
    run.run()
    return weights_of(run), log.curve()


def assert_close(run: tuple[Any, Any], expected: tuple[Any, Any], tolerance: float = 2e-5) -> None:
    """Weights and curves are equal up to rounding."""
    assert run[0].keys() == expected[0].keys()
    for name, weight in expected[0].items():
        torch.testing.assert_close(run[0][name], weight, rtol=1e-4, atol=tolerance)
    for row, expected_row in zip(run[1], expected[1], strict=True):
        assert row == pytest.approx(expected_row, rel=1e-3)


def train_both_ways(
    group: Group, shards: Path, state: Path, runtime: dict[str, Any], options: dict[str, Any], tolerance: float
) -> None:
    options = {**options, "train": {"max_steps": 6, **options.get("train", {})}}
    ddp = trained(group, shards, state / "ddp", runtime, **options)
    fsdp = trained(group, shards, state / "fsdp", {**runtime, **FSDP}, **options)
    assert_close(fsdp, ddp, tolerance)
    torch.save(fsdp[0], state / f"rank{group.rank}.pt")


# Runtime, other options, tolerance: bfloat16 has three digits, and Muon computes in it.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "accumulation, dropout and recomputing": ({"micro_batch_size": 1, "activation_checkpointing": True}, {}, 2e-5),
    "another model, no clipping": (
        {},
        {
            "config": {"tie_embeddings": False, "position": "rope", "norm": "rmsnorm", "mlp": "swiglu"},
            "train": {"grad_clip": 0.0},
        },
        2e-5,
    ),
    "bfloat16": ({"dtype": "bfloat16"}, {"config": NO_BIAS}, 5e-4),
    "muon": ({"micro_batch_size": 2}, {"train": {"optimizer": "muon"}, "config": NO_BIAS}, 1e-3),
    "normuon, skips": (
        {"activation_checkpointing": True},
        {
            "train": {"optimizer": "normuon", "cautious_decay": True, "momentum_warmup_steps": 4, "head_lr": 1e-2},
            "config": {**NO_BIAS, "embedding_skip": True, "value_residual": True, "tie_embeddings": False},
        },
        1e-3,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_sharded_model_trains_as_a_replicated_one(shards: Path, tmp_path: Path, case: str) -> None:
    on_ranks(2, train_both_ways, shards, tmp_path, *CASES[case])
    assert same(*(torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)))


def start_from_weights(group: Group, project: Path) -> None:
    """As the train stage does, with model.init_from."""
    os.chdir(project)
    config = GPTConfig.model_validate(CONFIG)
    fields = {key: getattr(config, key) for key in Architecture.model_fields}
    model = ModelParams.model_validate({**fields, "init_from": "base", "vocab_multiple": 64})
    train, trained = TrainParams.model_validate({**TRAIN, "max_steps": 2}), []
    for sharding in ("ddp", "fsdp"):
        runtime = RuntimeParams.model_validate({**RUNTIME, "sharding": sharding})
        run = make_trainer(model, train, runtime, group, CheckpointStore(project / sharding, 1, {}), loggers=[])
        run.run()
        trained.append((weights_of(run), []))
    assert_close(*trained)


def test_a_sharded_model_starts_from_the_weights_that_rank_0_has_read(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/shards").symlink_to(shards)
    (tmp_path / "params.yaml").symlink_to(Path(__file__).parents[2] / "params.yaml")
    save_model(tmp_path / "models/base", GPT(GPTConfig.model_validate(CONFIG)), None)
    on_ranks(2, start_from_weights, tmp_path)


@pytest.mark.slow
def test_a_sharded_model_can_be_compiled(shards: Path, tmp_path: Path) -> None:
    on_ranks(2, train_both_ways, shards, tmp_path, {"compile": "on"}, {"config": {"dropout": 0.0}}, 2e-5)


def hold_a_shard(group: Group, shards: Path, state: Path) -> None:
    run = trainer(shards, state, None, group, runtime=FSDP, train={"max_steps": 3})
    whole = sum(parameter.numel() for parameter in run.model.parameters())
    run.run()
    tensors = [*run.optimizer.parameters]
    for adamw in run.optimizer.state_dict():
        tensors += [value for values in adamw["state"].values() for value in values.values() if value.dim() > 0]
    held = [tensor.to_local().nbytes for tensor in tensors if isinstance(tensor, DTensor)]
    assert len(held) == 3 * len(run.optimizer.parameters)
    assert sum(held) == 3 * 4 * whole / 2


def test_each_rank_holds_its_shard_of_weights_and_moments(shards: Path, tmp_path: Path) -> None:
    on_ranks(2, hold_a_shard, shards, tmp_path)


def stop_and_resume(group: Group, shards: Path, states: Path) -> None:
    """Stopped after step 7, two steps after the checkpoint; resumed with each sharding."""
    uninterrupted = trained(group, shards, states / "uninterrupted", FSDP)
    stop_after_step_7(shards, states / "fsdp", group=group, runtime=FSDP)
    if group.is_main:
        shutil.copytree(states / "fsdp", states / "ddp")
    group.barrier()
    for sharding in ("fsdp", "ddp"):
        log = MemoryLogger()
        again = trainer(shards, states / sharding, log, group, runtime={"sharding": sharding})
        again.run()
        assert [resume.step for resume in again.metrics.stats.resumes] == [5]
        expected = uninterrupted[0], uninterrupted[1][5:]
        assert_close((weights_of(again), log.curve()), expected)
        if sharding == "fsdp":
            assert same(weights_of(again), expected[0])
            assert log.curve() == expected[1]


@pytest.mark.parametrize("data", ["texts", "conversations"])
def test_a_stopped_run_resumes_bit_for_bit_and_with_the_other_sharding(shards: Path, tmp_path: Path, data: str) -> None:
    if data == "conversations":
        shards = write_shards(tmp_path / "shards", mask=ragged)
    on_ranks(2, stop_and_resume, shards, tmp_path)


def probe_both_ways(group: Group, shards: Path, states: Path) -> None:
    """Validation losses over windows that cannot be divided evenly among the ranks."""
    stream, tokenizer = open_split(shards, "val"), bytes_tokenizer()

    def run(sharding: str, interval: int) -> tuple[dict[str, Tensor], list[float]]:
        losses = []

        def measure(model: GPT, _step: int) -> Row:
            loss = validation_loss(
                model, stream, tokenizer, tokens=80, stride=None, batch_size=1, dtype=torch.float32, group=group
            )
            losses.append(loss.nats_per_token)
            return {}

        state, runtime = states / f"{sharding}{interval}", {"sharding": sharding}
        probes, train = (Probe(interval, measure),), {"max_steps": 4}
        training = trainer(shards, state, None, group, runtime=runtime, probes=probes, train=train)
        training.run()
        return weights_of(training), losses

    _, ddp_losses = run("ddp", 2)
    weights, losses = run("fsdp", 2)
    assert same(weights, run("fsdp", 0)[0])
    assert len(losses) == 3  # steps 0, 2 and 4
    assert losses == pytest.approx(ddp_losses, rel=1e-5)


def test_probes_see_the_whole_model_and_leave_its_weights_alone(shards: Path, tmp_path: Path) -> None:
    on_ranks(2, probe_both_ways, shards, tmp_path)
