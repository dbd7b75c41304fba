"""Training on several ranks over gloo: the same run as on one, and the same decisions on all."""

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from pipeline.distributed import Group
from pipeline.model.gpt import GPT
from pipeline.training.checkpoint import CheckpointStore
from pipeline.training.interruption import Interrupted
from pipeline.training.metrics import Row
from tests.ranks import on_ranks
from tests.training.conftest import MemoryRecorder, same, trainer, weights_of

NO_DROPOUT = {"dropout": 0.0}


def train_and_keep(group: Group, shards: Path, out: Path, state: Path, options: dict[str, Any]) -> None:
    """Trains, and writes the curve and each rank's weights to `out`."""
    recorder = MemoryRecorder() if group.is_main else None
    run = trainer(shards, state, recorder, group, config=NO_DROPOUT, **options)
    run.run()
    torch.save(weights_of(run), out / f"rank{group.rank}.pt")
    if recorder is not None:
        torch.save(recorder.curve(), out / "curve.pt")


def on_one_rank(shards: Path, state: Path, **options: Any) -> tuple[dict[str, torch.Tensor], list[tuple[Any, ...]]]:
    recorder = MemoryRecorder()
    run = trainer(shards, state, recorder, config=NO_DROPOUT, **options)
    run.run()
    return weights_of(run), recorder.curve()


@pytest.mark.parametrize(("world", "micro"), [(2, 4), (2, 1), (4, 2)])
def test_several_ranks_train_as_one_does(shards: Path, tmp_path: Path, world: int, micro: int) -> None:
    on_ranks(world, train_and_keep, shards, tmp_path, tmp_path / "many", {"runtime": {"micro_batch_size": micro}})
    weights, curve = on_one_rank(shards, tmp_path / "one")
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(world)]
    assert all(same(ranks[0], other) for other in ranks[1:])
    for name, weight in weights.items():
        torch.testing.assert_close(ranks[0][name], weight, rtol=1e-4, atol=2e-5)
    for mine, other in zip(torch.load(tmp_path / "curve.pt"), curve, strict=True):
        assert mine == pytest.approx(other, rel=1e-4)


def train_twice_and_compare(group: Group, shards: Path, states: Path) -> None:
    """With DDP's own averaging, and with ours, which looks at the gradients first."""
    how: dict[str, Any] = {"runtime": {"micro_batch_size": 1}, "train": {"total_batch_size": 192}}
    theirs = trainer(shards, states / "theirs", None, group, **how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistributedDataParallel, "register_comm_hook", lambda *_: None)
        theirs.run()
    ours = trainer(shards, states / "ours", None, group, **how)
    ours.run()
    assert same(weights_of(ours), weights_of(theirs))


def test_looking_at_the_gradients_changes_no_bit(shards: Path, tmp_path: Path) -> None:
    """Three ranks: a third is no binary number, and a division rounds otherwise than a product."""
    on_ranks(3, train_twice_and_compare, shards, tmp_path)


def stop_on_a_signal_to_rank_1(group: Group, shards: Path, state: Path) -> None:
    class Send:
        interval = 1

        def measure(self, _model: GPT, step: int) -> Row:
            if step == 3 and group.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return {}

    with pytest.raises(Interrupted, match="SIGTERM: stopped after step 4 of 12"):
        trainer(shards, state, None, group, config=NO_DROPOUT, probes=(Send(),)).run()


def test_a_signal_to_one_rank_stops_all_after_the_same_step_and_another_world_size_goes_on(
    shards: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    on_ranks(2, stop_on_a_signal_to_rank_1, shards, state)
    assert [path.name for path in state.iterdir()] == ["step_00000004"]
    resumed, curve = on_one_rank(shards, state)
    whole, whole_curve = on_one_rank(shards, tmp_path / "whole")
    assert [row[0] for row in curve] == list(range(5, 13))
    for mine, other in zip(curve, whole_curve[4:], strict=True):
        assert mine == pytest.approx(other, rel=1e-4)
    for name, weight in whole.items():
        torch.testing.assert_close(resumed[name], weight, rtol=1e-4, atol=2e-5)


def save_slowly_after_a_signal(group: Group, shards: Path, state: Path) -> None:
    write = CheckpointStore._write

    def slowly(*arguments: Any) -> None:
        time.sleep(3)
        write(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointStore, "_write", slowly)
        stop_on_a_signal_to_rank_1(group, shards, state)
    assert [path.name for path in state.iterdir()] == ["step_00000004"]


def test_no_rank_leaves_before_the_checkpoint_is_written(shards: Path, tmp_path: Path) -> None:
    """For torchrun ends the others half a minute after the first has left."""
    on_ranks(2, save_slowly_after_a_signal, shards, tmp_path / "state")


def lose_a_number_on_rank_1(group: Group, shards: Path, state: Path, out: Path, where: str) -> None:
    """At step 3 the loss, or a gradient, of rank 1 alone is not finite."""
    recorder = MemoryRecorder()
    sick = trainer(shards, state, recorder, group, config=NO_DROPOUT, runtime={"micro_batch_size": 1})
    step, seen = sick._step, []

    def watched(number: int) -> None:
        if number == 3:
            seen.append(weights_of(sick))
            if group.rank == 1 and where == "loss":
                forward = sick.model.forward
                sick.model.forward = lambda *args: (None, forward(*args)[1] * torch.inf)  # type: ignore[assignment, operator, method-assign]
                step(number)
                sick.model.forward = forward  # type: ignore[method-assign]
            elif group.rank == 1:
                hook = sick.model.lm_head.weight.register_hook(lambda grad: grad * torch.inf)
                step(number)
                hook.remove()
            else:
                step(number)
            seen.append(weights_of(sick))
        else:
            step(number)

    sick._step = watched  # type: ignore[method-assign]
    sick.run()
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0])
    assert [row["step"] for row in recorder.rows if row["event"] == "skipped"] == [3]
    assert sick.journal.last_skipped is not None
    assert re.fullmatch(f"{where}( norm)? (inf|nan) on rank 1", sick.journal.last_skipped.what_is_wrong())
    torch.save(weights_of(sick), out / f"rank{group.rank}.pt")


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_number_gone_bad_on_one_rank_is_skipped_by_all_and_the_rank_named(
    shards: Path, tmp_path: Path, where: str
) -> None:
    on_ranks(2, lose_a_number_on_rank_1, shards, tmp_path / "state", tmp_path, where)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0])
