"""A loss or a gradient that is not finite, on one rank only: no rank takes the step, and too many stop the run."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.distributed import Group
from pipeline.training.trainer import Trainer
from tests.faults.conftest import Begin
from tests.faults.small import same
from tests.ranks import on_ranks
from tests.training.conftest import ONE_RANK, MemoryRecorder, trainer

BAD = {3: "loss", 5: "gradient"}  # step: what is not finite in it


def state_of(run: Trainer) -> Any:
    """A copy of all that an update changes: the weights and the optimizers' moments."""
    return [
        {name: tensor.clone() for name, tensor in run.model.state_dict().items()},
        [
            {index: {key: value.clone() for key, value in moments.items()} for index, moments in state["state"].items()}
            for state in run.optimizer.state_dict()
        ],
    ]


def train_through_bad_steps(group: Group, shards: Path, out: Path, optimizer: str, asks_host: bool = True) -> None:
    """The loss of step 3 is NaN and a gradient of step 5 infinite, on the last rank alone."""
    recorder = MemoryRecorder()
    run = trainer(shards, out / f"state-{group.rank}", recorder, group, train={"optimizer": optimizer, "max_steps": 7})
    run.optimizer.asks_host = asks_host
    step, changed = run._step, {}

    def watched(number: int) -> None:
        before = state_of(run)
        hooks = []
        if group.rank == group.world_size - 1 and BAD.get(number) == "loss":
            hooks.append(run.model.register_forward_hook(lambda *seen: (seen[2][0], seen[2][1] * torch.nan)))
        elif group.rank == group.world_size - 1 and BAD.get(number) == "gradient":
            hooks.append(run.model.lm_head.weight.register_hook(lambda gradient: gradient * torch.inf))
        step(number)
        for hook in hooks:
            hook.remove()
        changed[number] = not same(before, state_of(run))

    run._step = watched  # type: ignore[assignment, method-assign]
    run.run()
    assert changed == {number: number not in BAD for number in range(1, 8)}
    assert [row["step"] for row in recorder.rows if row["event"] == "skipped"] == list(BAD)
    assert run.journal.counters.skipped_steps == len(BAD)
    torch.save(state_of(run), out / f"{group.rank}.pt")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_with_a_bad_number_leaves_weights_and_moments_as_they_were(
    data: Path, tmp_path: Path, optimizer: str
) -> None:
    train_through_bad_steps(ONE_RANK, data / "shards", tmp_path, optimizer)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_skipping_on_the_device_ends_in_the_same_bits_as_asking_the_host(
    data: Path, tmp_path: Path, optimizer: str
) -> None:
    """A GPU skips so; the CPU can, too."""
    for asks_host in (True, False):
        (tmp_path / str(asks_host)).mkdir()
        train_through_bad_steps(ONE_RANK, data / "shards", tmp_path / str(asks_host), optimizer, asks_host)
    assert same(*(torch.load(tmp_path / way / "0.pt") for way in ("True", "False")))


def test_a_bad_number_on_one_rank_leaves_weights_and_moments_of_both_as_they_were(data: Path, tmp_path: Path) -> None:
    on_ranks(2, train_through_bad_steps, data / "shards", tmp_path, "adamw")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert same(first, second)


def test_too_many_bad_steps_stop_the_run_and_the_last_good_checkpoint_stands(begin: Begin) -> None:
    run = begin(train={"max_skipped_steps": 2})
    output = run.train("nan@6", "nan@9", "nan@10", ok=False).output
    for step in (6, 9, 10):
        assert f"step {step} skipped: loss nan on rank 0" in output
    assert "train: 3 steps had a loss or gradient that is not finite" in output
    assert "train.max_skipped_steps (2)" in output
    assert "Traceback" not in output
    newest = run.newest()
    assert newest.step == 8
    assert all(tensor.isfinite().all() for tensor in newest.load("weights").values())
