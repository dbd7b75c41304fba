"""Training on several ranks over gloo: the same run as on one, and the same decisions on all."""

import os
import signal
import socket
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.run
from torch.distributed.elastic.rendezvous import RendezvousTimeoutError

from pipeline import distributed
from pipeline.cli import launch
from pipeline.distributed import Group, check_address, check_first_machine
from pipeline.log import UserError
from pipeline.model.gpt import GPT, Block
from pipeline.training import trainer as trainer_module
from pipeline.training.checkpoint import CheckpointStore
from pipeline.training.metrics import Row
from pipeline.training.signals import Interrupted
from pipeline.training.trainer import Probe
from tests.ranks import on_ranks
from tests.training.conftest import MemoryLogger, before_each_step, same, state_of, trainer, weights_of

NO_DROPOUT = {"dropout": 0.0}


def train_and_save(group: Group, shards: Path, out: Path, state: Path, options: dict[str, Any]) -> None:
    """Trains, and writes the curve and each rank's weights to `out`."""
    log = MemoryLogger() if group.is_main else None
    run = trainer(shards, state, log, group, config=NO_DROPOUT, **options)
    run.run()
    torch.save(weights_of(run), out / f"rank{group.rank}.pt")
    if log is not None:
        torch.save(log.curve(), out / "curve.pt")


def on_one_rank(shards: Path, state: Path, **options: Any) -> tuple[dict[str, torch.Tensor], list[tuple[Any, ...]]]:
    log = MemoryLogger()
    run = trainer(shards, state, log, config=NO_DROPOUT, **options)
    run.run()
    return weights_of(run), log.curve()


@pytest.mark.parametrize(("world", "micro"), [(2, 1), (4, 2)])
def test_several_ranks_train_as_one_does(shards: Path, tmp_path: Path, world: int, micro: int) -> None:
    """Also where they recompute activations."""
    runtime = {"micro_batch_size": micro, "activation_checkpointing": world == 2}
    on_ranks(world, train_and_save, shards, tmp_path, tmp_path / "many", {"runtime": runtime})
    weights, curve = on_one_rank(shards, tmp_path / "one")
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(world)]
    assert all(same(ranks[0], other) for other in ranks[1:])
    for name, weight in weights.items():
        torch.testing.assert_close(ranks[0][name], weight, rtol=1e-4, atol=2e-5)
    for row, expected in zip(torch.load(tmp_path / "curve.pt"), curve, strict=True):
        assert row == pytest.approx(expected, rel=1e-4)


def stop_early(group: Group, shards: Path, state: Path, sharding: str) -> None:
    """Ranks stop after the same step; rank 0 has the best weights, also when the finished run is started again."""
    losses = {0: 9.0, 2: 5.0, 4: 6.0, 6: 6.0}
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def validation(model: GPT, step: int) -> Row:
        seen[step] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return {"val/loss": losses[step]}

    train = {"keep": "best", "patience": 2, "eval_interval": 2}
    for _ in range(2):
        run = trainer(
            shards, state, None, group, train=train, runtime={"sharding": sharding}, probes=(Probe(2, validation),)
        )
        run.run()
        assert run.steps == 6
        if group.is_main:
            assert same(weights_of(run), seen[2])


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_ranks_keep_the_best_weights_and_stop_together(shards: Path, tmp_path: Path, sharding: str) -> None:
    on_ranks(2, stop_early, shards, tmp_path, sharding)


def stop_on_a_signal_to_rank_1(group: Group, shards: Path, state: Path) -> None:
    """The checkpoint takes so long to write that a rank which did not wait for it would leave early."""

    def send(_model: GPT, step: int) -> Row:
        if step == 3 and group.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    write = CheckpointStore._write

    def slowly(*arguments: Any) -> None:
        time.sleep(2)
        write(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointStore, "_write", slowly)
        with pytest.raises(Interrupted):
            trainer(shards, state, None, group, config=NO_DROPOUT, probes=(Probe(1, send),)).run()
    assert [path.name for path in state.iterdir()] == ["step_00000004"]


def test_a_signal_to_one_rank_stops_all_after_the_same_step_and_one_rank_resumes(shards: Path, tmp_path: Path) -> None:
    """No rank exits before the checkpoint is written: torchrun kills the others 30 s after the first has exited."""
    state = tmp_path / "state"
    on_ranks(2, stop_on_a_signal_to_rank_1, shards, state)
    weights, curve = on_one_rank(shards, state)
    expected_weights, expected_curve = on_one_rank(shards, tmp_path / "uninterrupted")
    assert [row[0] for row in curve] == list(range(5, 13))
    for row, expected in zip(curve, expected_curve[4:], strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
    for name, weight in expected_weights.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-4, atol=2e-5)


def diverge_on_rank_1(
    group: Group, shards: Path, state: Path, what: str, sharding: str, optimizer: str, on_host: bool
) -> None:
    """At step 3 the loss, or a gradient, is not finite on rank 1 alone."""
    log, states = MemoryLogger(), {}
    runtime = {"micro_batch_size": 1, "sharding": sharding}
    run = trainer(shards, state, log, group, runtime=runtime, train={"optimizer": optimizer, "max_steps": 6})
    run.optimizer.skips_on_host = on_host
    forward, block = run.model.forward, Block.forward

    def no_loss(*arguments: Any) -> torch.Tensor:
        return forward(*arguments) * torch.inf

    def no_gradient(*arguments: Any) -> tuple[torch.Tensor, None]:
        x, _ = block(*arguments)
        x.register_hook(lambda gradient: gradient * torch.inf)
        return x, None

    with pytest.MonkeyPatch.context() as patch:

        def before(step: int) -> None:
            states[step] = state_of(run)
            patch.undo()
            if step == 3 and group.rank == 1:
                if what == "loss":
                    patch.setattr(run.model, "forward", no_loss)
                else:
                    patch.setattr(Block, "forward", no_gradient)

        with before_each_step(before):
            run.run()
    for step in range(2, 6):
        assert all(map(torch.equal, states[step], states[step + 1])) == (step == 3)
    assert [row["step"] for row in log.rows if row["event"] == "skipped"] == [3]
    assert run.metrics.last_skipped is not None
    problem = run.metrics.last_skipped.problem()
    if what == "loss":
        assert problem in ("loss inf on rank 1", "loss nan on rank 1")
    else:
        assert problem.startswith("gradient norm ")


@pytest.mark.parametrize(
    ("what", "sharding", "optimizer", "on_host"),
    [
        ("loss", "ddp", "adamw", True),
        ("gradient", "fsdp", "muon", False),  # and AdamW, for the embeddings
    ],
)
def test_a_step_that_is_not_finite_on_one_rank_is_skipped_by_all(
    shards: Path, tmp_path: Path, what: str, sharding: str, optimizer: str, on_host: bool
) -> None:
    on_ranks(2, diverge_on_rank_1, shards, tmp_path, what, sharding, optimizer, on_host)


def hang_at_step_3(group: Group, shards: Path, state: Path, sleeper: int, sharding: str) -> None:
    run = trainer(shards, state, None, group, train={"total_batch_size": 192}, runtime={"sharding": sharding})

    def before(step: int) -> None:
        if step == 3 and group.rank == sleeper:
            time.sleep(group.timeout_s + 3.0)

    with pytest.MonkeyPatch.context() as patch, before_each_step(before):
        patch.setattr(distributed, "REPORT_S", 1.5)
        with pytest.raises(UserError) as stopped:
            run.run()
    if group.rank != sleeper:
        assert str(stopped.value).startswith(f"rank {sleeper} did not join step 3")
        assert "runtime.collective_timeout" in str(stopped.value)


@pytest.mark.slow
@pytest.mark.parametrize(("sleeper", "sharding"), [(2, "ddp"), (0, "fsdp")])
def test_a_rank_that_hangs_ends_the_run_and_is_named(shards: Path, tmp_path: Path, sleeper: int, sharding: str) -> None:
    on_ranks(3, hang_at_step_3, shards, tmp_path, sleeper, sharding, timeout_s=2.0)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"GROUP_RANK": "0"},
        {"NODE_RANK": "0", "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "2"},
        {"NODE_RANK": "1", "GROUP_RANK": "2", "GROUP_WORLD_SIZE": "3"},
        {"NODE_RANK": "1", "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1"},  # set for earlier runs: there is one machine
    ],
)
def test_dvc_may_run_where_rank_0_is(environment: dict[str, str]) -> None:
    check_first_machine(environment)


@pytest.mark.parametrize(("node", "group"), [("0", "1"), ("1", "0")])
def test_dvc_on_another_machine_than_rank_0_is_refused(node: str, group: str) -> None:
    with pytest.raises(UserError, match=rf"NODE_RANK \({node}\).* has number {group}"):
        check_first_machine({"NODE_RANK": node, "GROUP_RANK": group, "GROUP_WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("addresses", "environment", "fine"),
    [
        (["10.0.0.7"], {}, True),
        (["127.0.1.1", "10.0.0.7"], {}, False),  # gloo takes the first
        (["::1"], {}, False),
        ([], {}, False),
        (["127.0.1.1"], {"GLOO_SOCKET_IFNAME": "eth0"}, True),
        (["127.0.1.1"], {"GROUP_WORLD_SIZE": "1"}, True),
    ],
)
def test_several_machines_need_an_address_that_is_not_loopback(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str], environment: dict[str, str], fine: bool
) -> None:
    def resolve(*_: Any, **__: Any) -> list[tuple[Any, ...]]:
        if not addresses:
            raise socket.gaierror
        return [(None, None, None, "", (address, 0)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with nullcontext() if fine else pytest.raises(UserError, match="GLOO_SOCKET_IFNAME"):
        check_address({"GROUP_WORLD_SIZE": "2"} | environment)


def compare(group: Group) -> None:
    same = {"train.seed": "1", "torch": "2"}
    group.check_same(same)
    with pytest.raises(UserError) as stopped:
        group.check_same(same if group.rank != 1 else {"train.seed": "7", "torch": "2", "pipeline/new.py": "f00"})
    assert str(stopped.value) == (
        "rank 1 differs from rank 0 in pipeline/new.py (f00; rank 0: missing), train.seed (7; rank 0: 1)"
    )


def test_all_ranks_stop_where_one_is_to_train_something_else() -> None:
    on_ranks(3, compare)


def test_a_lost_machine_ends_in_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: Any) -> None:
        raise RendezvousTimeoutError

    monkeypatch.setattr(torch.distributed.run, "run", run)
    monkeypatch.setattr(os, "environ", os.environ | {"NNODES": "2", "NODE_RANK": "1", "RDZV_ENDPOINT": "host0:29500"})
    with pytest.raises(UserError, match=r"RendezvousTimeoutError.*NNODES.*RDZV_ENDPOINT \(host0:29500\)"):
        launch.main(["stages.train"])


def save_by_rank_0_s_clock(group: Group, shards: Path, state: Path, seconds_of_rank_0: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "CHECKPOINT_SECONDS", seconds_of_rank_0 if group.is_main else 0.0)
        runtime = {"checkpoint_interval": None, "milestone_interval": 4, "checkpoints_kept": 99, "micro_batch_size": 1}
        trainer(shards, state, None, group, runtime=runtime, train={"max_steps": 6}).run()


@pytest.mark.parametrize(("seconds", "steps"), [(0.0, [1, 2, 3, 4, 5, 6]), (1e6, [4, 6])])
def test_without_an_interval_rank_0_s_clock_decides_when_to_save(
    shards: Path, tmp_path: Path, seconds: float, steps: list[int]
) -> None:
    on_ranks(2, save_by_rank_0_s_clock, shards, tmp_path, seconds)
    assert sorted(int(path.name[5:]) for path in tmp_path.glob("step_*")) == steps
