"""A model that the ranks share out among them (FSDP) trains as one that each of them holds (DDP)."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from pipeline.corpus import encodings
from pipeline.corpus.shards import TokenStream, open_split
from pipeline.distributed import Group
from pipeline.evaluation.val_loss import validation_loss
from pipeline.model.gpt import GPT, Block
from pipeline.training.metrics import Row
from pipeline.training.trainer import Trainer
from tests.ranks import on_ranks
from tests.training.conftest import MemoryRecorder, same, trainer, weights_of
from tests.training.test_trainer import StopAt

FSDP = {"sharding": "fsdp"}
# With the gradient of a key's bias, which is zero but for rounding, an optimizer's step goes anywhere.
NO_BIAS = {"bias": False}


def trained(
    group: Group, shards: Path, state: Path, runtime: dict[str, Any], **options: Any
) -> tuple[dict[str, Tensor], list[tuple[Any, ...]]]:
    """Weights and curve."""
    recorder = MemoryRecorder()
    run = trainer(shards, state, recorder, group, runtime=runtime, **options)
    run.run()
    return weights_of(run), recorder.curve()


def assert_equal_but_for_rounding(ours: tuple[Any, Any], theirs: tuple[Any, Any], tolerance: float = 2e-5) -> None:
    assert ours[0].keys() == theirs[0].keys()
    for name, weight in theirs[0].items():
        torch.testing.assert_close(ours[0][name], weight, rtol=1e-4, atol=tolerance)
    for mine, other in zip(ours[1], theirs[1], strict=True):
        assert mine == pytest.approx(other, rel=1e-3)


def train_both_ways(
    group: Group, shards: Path, state: Path, runtime: dict[str, Any], options: dict[str, Any], tolerance: float
) -> None:
    theirs = trained(group, shards, state / "ddp", runtime, **options)
    ours = trained(group, shards, state / "fsdp", {**runtime, **FSDP}, **options)
    assert_equal_but_for_rounding(ours, theirs, tolerance)
    torch.save(ours[0], state / f"rank{group.rank}.pt")


# Runtime, other options, tolerance: bfloat16 has three digits, and Muon computes in it.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "accumulation and dropout": ({"micro_batch_size": 1}, {}, 2e-5),
    "activation checkpointing": ({"activation_checkpointing": True}, {}, 2e-5),
    "another model": (
        {},
        {"config": {"tie_head": False, "position": "rope", "norm": "rmsnorm", "mlp": "swiglu"}},
        2e-5,
    ),
    "no clipping": ({}, {"train": {"grad_clip": 0.0}}, 2e-5),
    "bfloat16": ({"dtype": "bfloat16"}, {"config": NO_BIAS}, 5e-4),
    "muon": ({"micro_batch_size": 2}, {"train": {"optimizer": "muon"}, "config": NO_BIAS}, 1e-3),
}


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_a_model_that_they_share_as_one_that_each_holds(
    shards: Path, tmp_path: Path, case: str
) -> None:
    on_ranks(2, train_both_ways, shards, tmp_path, *CASES[case])
    assert same(*(torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)))


def compile_and_recompute(group: Group, shards: Path, state: Path) -> None:
    """Compiled code draws other random numbers for dropout than eager code, but computes again with the same."""
    how = {**FSDP, "compile": "on"}
    kept, _ = trained(group, shards, state / "kept", how)
    again, _ = trained(group, shards, state / "again", {**how, "activation_checkpointing": True})
    assert same(kept, again)


@pytest.mark.slow
def test_a_shared_model_can_be_compiled(shards: Path, tmp_path: Path) -> None:
    on_ranks(2, train_both_ways, shards, tmp_path, {"compile": "on"}, {"config": {"dropout": 0.0}}, 2e-5)
    on_ranks(2, compile_and_recompute, shards, tmp_path)


def hold_a_share(group: Group, shards: Path, state: Path) -> None:
    run = trainer(shards, state, None, group, runtime=FSDP)
    whole = sum(parameter.numel() for parameter in run.model.parameters())
    run.run()
    tensors = [*run.optimizer.parameters]
    for adamw in run.optimizer.state_dict():
        tensors += [value for values in adamw["state"].values() for value in values.values() if value.dim() > 0]
    held = [tensor.to_local().nbytes for tensor in tensors if isinstance(tensor, DTensor)]
    assert len(held) == 3 * len(run.optimizer.parameters)
    assert sum(held) == 3 * 4 * whole / 2


def test_each_rank_holds_its_share_of_weights_and_moments(shards: Path, tmp_path: Path) -> None:
    on_ranks(2, hold_a_share, shards, tmp_path)


def stop_and_resume(group: Group, shards: Path, states: Path, first: str, second: str, bit_for_bit: bool) -> None:
    """Stopped after step 7, two steps behind the checkpoint."""
    recorder = MemoryRecorder()
    with pytest.raises(KeyboardInterrupt):
        trainer(shards, states / "cut", recorder, group, runtime={"sharding": first}, probes=(StopAt(7),)).run()
    again = trainer(shards, states / "cut", recorder, group, runtime={"sharding": second})
    assert again.run().counters.resumed_at == [5]
    whole, curve = trained(group, shards, states / "whole", {"sharding": first})
    if bit_for_bit:
        assert same(weights_of(again), whole)
        assert [row for row in recorder.curve() if row[0]] == curve
    assert_equal_but_for_rounding((weights_of(again), [row for row in recorder.curve() if row[0]]), (whole, curve))


def test_a_stopped_run_resumes_bit_for_bit(shards: Path, tmp_path: Path) -> None:
    on_ranks(2, stop_and_resume, shards, tmp_path, "fsdp", "fsdp", True)


@pytest.mark.parametrize(("first", "second"), [("fsdp", "ddp"), ("ddp", "fsdp")])
def test_a_run_goes_on_the_other_way(shards: Path, tmp_path: Path, first: str, second: str) -> None:
    on_ranks(2, stop_and_resume, shards, tmp_path, first, second, False)


def stop_after_step_7(group: Group, shards: Path, state: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trainer(shards, state, None, group, runtime=FSDP, config={"dropout": 0.0}, probes=(StopAt(7),)).run()


def test_one_rank_goes_on_where_two_shared_the_model(shards: Path, tmp_path: Path) -> None:
    on_ranks(2, stop_after_step_7, shards, tmp_path / "cut")
    again = trainer(shards, tmp_path / "cut", runtime=FSDP, config={"dropout": 0.0})
    assert again.run().counters.resumed_at == [5]
    alone = trainer(shards, tmp_path / "alone", config={"dropout": 0.0})
    alone.run()
    for name, weight in weights_of(alone).items():
        torch.testing.assert_close(weights_of(again)[name], weight, rtol=1e-4, atol=2e-5)


class Losses:
    """A probe that takes the validation loss, over windows that the ranks cannot share evenly."""

    interval = 4

    def __init__(self, stream: TokenStream, group: Group) -> None:
        self.stream, self.group, self.seen = stream, group, list[float]()

    def measure(self, model: GPT, step: int) -> Row:
        encoding = encodings.bytes_encoding()
        loss = validation_loss(
            model, self.stream, encoding, tokens=80, stride=None, batch_size=1, dtype=torch.float32, group=self.group
        )
        self.seen.append(loss.nats_per_token)
        return {}


def probe_both_ways(group: Group, shards: Path, states: Path) -> None:
    def run(sharding: str, *probes: Losses) -> dict[str, Tensor]:
        state = states / f"{sharding}{len(probes)}"
        training = trainer(shards, state, None, group, runtime={"sharding": sharding}, probes=probes)
        training.run()
        return weights_of(training)

    theirs, ours = (Losses(open_split(shards, "val"), group) for _ in range(2))
    run("ddp", theirs)
    assert same(run("fsdp", ours), run("fsdp"))
    assert len(ours.seen) == 4  # steps 0, 4, 8 and 12
    assert ours.seen == pytest.approx(theirs.seen, rel=1e-5)


def test_probes_see_the_whole_model_and_leave_its_weights_alone(shards: Path, tmp_path: Path) -> None:
    on_ranks(2, probe_both_ways, shards, tmp_path)


def own_share(run: Trainer) -> list[Tensor]:
    return [weight.to_local() for weight in run.model.state_dict().values()]


def lose_a_gradient_on_rank_1(group: Group, shards: Path, state: Path, optimizer: str, asks_host: bool) -> None:
    """At step 3, in one of the blocks."""
    how: dict[str, Any] = {"runtime": {"micro_batch_size": 1, **FSDP}, "train": {"optimizer": optimizer}}
    sick = trainer(shards, state, None, group, **how)
    sick.optimizer.asks_host = asks_host
    step, forward = sick._step, Block.forward

    def spoiled(*arguments: Any) -> Tensor:
        x = forward(*arguments)
        x.register_hook(lambda gradient: gradient * torch.inf)
        return x

    def watched(number: int) -> None:
        before = [weight.clone() for weight in own_share(sick)]
        with pytest.MonkeyPatch.context() as patch:
            if number == 3 and group.rank == 1:
                patch.setattr(Block, "forward", spoiled)
            step(number)
        assert all(map(torch.equal, before, own_share(sick))) == (number == 3)

    sick._step = watched  # type: ignore[assignment, method-assign]
    assert sick.run().counters.skipped_steps == 1
    assert sick.journal.last_skipped is not None
    assert re.fullmatch("gradient norm (inf|nan) on rank 1", sick.journal.last_skipped.what_is_wrong())


@pytest.mark.parametrize(("optimizer", "asks_host"), [("adamw", True), ("adamw", False), ("muon", False)])
def test_a_gradient_gone_bad_on_one_rank_is_skipped_by_all_and_the_rank_named(
    shards: Path, tmp_path: Path, optimizer: str, asks_host: bool
) -> None:
    on_ranks(2, lose_a_gradient_on_rank_1, shards, tmp_path, optimizer, asks_host)
