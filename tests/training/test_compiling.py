"""Compiled training on several ranks, and what happens where compiling fails."""

import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.distributed import Group
from pipeline.model.gpt import GPT
from pipeline.training import trainer as trainer_module
from pipeline.training.parallel import data_parallel
from tests.ranks import on_ranks
from tests.training.conftest import same, trainer, weights_of

THREE_STEPS = {"max_steps": 3}


class Breaks(nn.Module):
    """A compiled model whose compiler fails at the head."""

    error: type[Exception] = ZeroDivisionError

    def __init__(self, model: GPT, mode: str | None) -> None:
        super().__init__()
        self.model = model

    def forward(self, *batch: Tensor) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise self.error("no compiler")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(F, "cross_entropy", fail)
            self.model(*batch)


class RunsOutOfMemory(Breaks):
    error = torch.OutOfMemoryError


def fail_to_compile(group: Group, shards: Path, states: Path, sharding: str) -> None:
    eager = trainer(shards, states / "eager", None, group, train=THREE_STEPS, runtime={"sharding": sharding})
    eager.run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", Breaks)
        runtime = {"sharding": sharding, "compile": "on"}
        fallen_back = trainer(shards, states / "back", None, group, train=THREE_STEPS, runtime=runtime)
        fallen_back.run()
    assert not fallen_back.compiled
    assert same(weights_of(eager), weights_of(fallen_back))


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_where_compiling_fails_two_ranks_train_eagerly(shards: Path, tmp_path: Path, sharding: str) -> None:
    on_ranks(2, fail_to_compile, shards, tmp_path, sharding)


def test_out_of_memory_is_not_taken_for_a_compiler_error(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", RunsOutOfMemory)
    with pytest.raises(torch.OutOfMemoryError, match="no compiler"):
        trainer(shards, tmp_path, runtime={"compile": "on"}).run()


def free_ddp(group: Group, shards: Path, state: Path) -> None:
    wrapped = []

    def record(module: nn.Module, group: Group) -> nn.Module:
        ddp = data_parallel(module, group)
        wrapped.append(weakref.ref(ddp))
        return ddp

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "data_parallel", record)
        patch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        for choice in ("off", "on"):
            trainer(shards, state / choice, None, group, train=THREE_STEPS, runtime={"compile": choice}).run()
    assert [reference() for reference in wrapped] == [None, None]


def test_nothing_of_ddp_outlives_a_run(shards: Path, tmp_path: Path) -> None:
    """Otherwise the process may hang as it exits, until torchrun kills it 30 s later."""
    on_ranks(2, free_ddp, shards, tmp_path)


def compile_and_count(group: Group, shards: Path, state: Path) -> None:
    """With a compiler that only counts its graphs."""
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend=count))
        large = {"n_embd": 192, "n_layer": 2, "dropout": 0.0}  # more than DDP's first bucket of 1 MB
        run = trainer(shards, state, None, group, config=large, train=THREE_STEPS, runtime={"compile": "on"})
        run.run()
    assert run.compiled
    assert (len(graphs) > 1) == (group.world_size > 1)


@pytest.mark.parametrize("world", [1, 2])
def test_the_graph_is_split_only_where_ddp_overlaps_gradients_with_the_backward_pass(
    shards: Path, tmp_path: Path, world: int
) -> None:
    on_ranks(world, compile_and_count, shards, tmp_path)
