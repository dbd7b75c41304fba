"""The data order and the loader: which tokens a step sees depends on seed and step alone."""

import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.shards import TokenStream, open_split
from pipeline.distributed import Group
from pipeline.log import UserError
from pipeline.runtime import RuntimeParams
from pipeline.training.data_loader import Loader, blocks_of_step, largest_divisor, permute
from pipeline.training.params import TrainParams
from tests.training.conftest import RUNTIME, TRAIN, write_shards


def loader_of(
    stream: TokenStream,
    sequences: int,
    micro: int,
    shuffle: bool = True,
    rank: int = 0,
    world: int = 1,
    block: int = 16,
    device: str = "cpu",
) -> Loader:
    """The loader of one rank, with steps of `sequences` blocks."""
    train = TrainParams.model_validate({**TRAIN, "total_batch_size": sequences * block, "shuffle": shuffle})
    runtime = RuntimeParams.model_validate({**RUNTIME, "micro_batch_size": micro})
    return Loader(stream, block, train, runtime, Group(rank, world, torch.device(device)))


def rows_of(
    stream: TokenStream, step: int, world: int, micro: int, shuffle: bool = True, sequences: int = 8, block: int = 16
) -> list[tuple[int, ...]]:
    """All rows of a step, over all ranks, as tuples of block + 1 tokens."""
    rows = []
    for rank in range(world):
        loader = loader_of(stream, sequences, micro, shuffle, rank, world, block)
        for inputs, targets, _, divisor in loader.micro_batches(step):
            assert divisor == loader.accumulation_steps
            assert torch.equal(inputs[:, 1:], targets[:, :-1])
            rows += [(*map(int, x), int(y[-1])) for x, y in zip(inputs, targets, strict=True)]
        loader.close()
    return rows


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 1000))
def test_every_block_occurs_once_in_an_epoch(size: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(size), size, seed, epoch)), np.arange(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 255, 256, 257, 65535, 65536, 65537, 1_000_003])
def test_sizes_near_powers_of_two_and_primes_are_permuted(size: int) -> None:
    assert len(np.unique(permute(np.arange(size), size, 1, 0))) == size


def test_indices_can_be_permuted_one_by_one() -> None:
    size = 10_000_019
    indices = np.array([0, 1, 4_999_999, size - 1])
    together = permute(indices, size, seed=7, epoch=3)
    assert together.tolist() == [int(permute(indices[i : i + 1], size, 7, 3)[0]) for i in range(4)]


def test_no_permutation_is_stored() -> None:
    tracemalloc.start()
    blocks_of_step(30_000, 512, 10**7, True, seed=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000  # bytes; a stored permutation has 80,000,000


def test_the_permutation_looks_random() -> None:
    size = 20_000
    order = permute(np.arange(size), size, seed=1, epoch=0)
    # Neighbours in a random permutation are a third of its length apart on average, and uncorrelated.
    assert abs(np.abs(np.diff(order)).mean() / size - 1 / 3) < 0.02
    assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 0.03


def test_epochs_and_seeds_differ() -> None:
    indices = np.arange(1000)
    orders = [permute(indices, 1000, seed, epoch).tolist() for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    assert orders[0] != orders[1] != orders[2] != orders[0]


@settings(max_examples=40, deadline=None)
@given(n_blocks=st.integers(1, 200), sequences=st.integers(1, 64), shuffle=st.sampled_from([True, False]))
def test_steps_take_whole_epochs_one_after_the_other(n_blocks: int, sequences: int, shuffle: bool) -> None:
    steps = -(-3 * n_blocks // sequences)
    blocks = np.concatenate([blocks_of_step(step, sequences, n_blocks, shuffle, seed=5) for step in range(steps)])
    for epoch in range(3):
        assert sorted(blocks[epoch * n_blocks : (epoch + 1) * n_blocks]) == list(range(n_blocks))


def test_the_order_never_changes_between_versions() -> None:
    """If it must change, raise CHECKPOINT_FORMAT: a resumed run would see other data."""
    assert blocks_of_step(2, 6, 1000, True, seed=1).tolist() == [791, 303, 57, 636, 137, 761]


@pytest.mark.parametrize(("world", "micro"), [(1, 8), (1, 3), (2, 4), (2, 1), (4, 2), (4, 100)])
def test_any_world_size_and_micro_batch_see_the_same_blocks(stream: TokenStream, world: int, micro: int) -> None:
    for step in (0, 1, 17, 40):
        assert sorted(rows_of(stream, step, world, micro)) == sorted(rows_of(stream, step, world=1, micro=8))


def test_blocks_are_cut_from_the_stream_across_shards(stream: TokenStream) -> None:
    tokens = stream.read(0, len(stream)).tolist()
    blocks = {tuple(tokens[start : start + 17]) for start in range(0, len(tokens) - 16, 16)}
    rows = set(rows_of(stream, 0, 1, 8) + rows_of(stream, 5, 1, 8))
    assert rows <= blocks
    assert len(rows) == 16


@pytest.mark.parametrize(("world", "micro"), [(1, 2), (2, 2), (4, 1), (2, 4)])
def test_without_shuffling_ranks_read_neighbouring_chunks(stream: TokenStream, world: int, micro: int) -> None:
    """Rank r takes [r B T, (r + 1) B T) of each global micro-batch; then the stream advances by B T world."""
    block = 16
    loaders = [loader_of(stream, 8, micro, False, rank, world) for rank in range(world)]
    position = 0
    for step in range(3):
        batches = [list(loader.micro_batches(step)) for loader in loaders]
        for index in range(loaders[0].accumulation_steps):
            for rank in range(world):
                start = position + rank * micro * block
                chunk = stream.read(start, micro * block + 1).astype(np.int64)
                inputs, targets, *_ = batches[rank][index]
                assert inputs.flatten().tolist() == chunk[:-1].tolist()
                assert targets.flatten().tolist() == chunk[1:].tolist()
            position += micro * block * world
    for loader in loaders:
        loader.close()


class Positions:
    """A stream in which every token is its own position, and which notices blocks that are read twice."""

    has_mask = False

    def __init__(self, length: int) -> None:
        self.length, self.starts, self.read_again = length, list[int](), threading.Event()

    def __len__(self) -> int:
        return self.length

    def read(self, start: int, count: int) -> Any:
        assert 0 <= start <= start + count <= self.length
        if start in self.starts:
            self.read_again.set()
        self.starts.append(start)
        return np.arange(start, start + count, dtype=np.uint32)


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(2, 400),
    block=st.integers(1, 16),
    sequences=st.integers(1, 6),
    world=st.integers(1, 3),
    micro=st.integers(1, 7),
    shuffle=st.sampled_from([True, False]),
)
def test_an_epoch_predicts_every_token_of_its_blocks_once(
    length: int, block: int, sequences: int, world: int, micro: int, shuffle: bool
) -> None:
    stream: Any = Positions(max(length, block + 1))
    loaders = [loader_of(stream, sequences * world, micro, shuffle, rank, world, block) for rank in range(world)]
    n_blocks = loaders[0].n_blocks
    predicted: list[list[int]] = []
    for step in range(-(-n_blocks // (sequences * world))):
        ranks = [list(loader.micro_batches(step)) for loader in loaders]
        for micro_batches in zip(*ranks, strict=True):  # side by side, in the order of the step's rows
            for inputs, targets, *_ in micro_batches:
                assert torch.equal(inputs + 1, targets)
                predicted += targets.tolist()
    for loader in loaders:
        loader.close()
    epoch = [token for row in predicted[:n_blocks] for token in row]
    assert sorted(epoch) == list(range(1, n_blocks * block + 1))
    assert len(stream) - len(epoch) <= block  # left over: the first token, and less than a block at the end


def test_the_next_step_is_read_while_this_one_is_computed() -> None:
    stream: Any = Positions(16 * 8 + 1)  # a step is an epoch, so the next step reads the same blocks
    loader = loader_of(stream, 8, 4)
    next(iter(loader.micro_batches(0)))
    assert stream.read_again.wait(30)
    loader.close()


def test_batches_for_a_gpu_are_in_pinned_memory(stream: TokenStream, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[tuple[int, ...]] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(tuple(self.shape)) or self)
    for device, expected in (("cpu", []), ("cuda", [(2, 4, 17)])):
        loader = loader_of(stream, 8, 4, device=device)
        loader._read(0)
        loader.close()
        assert pinned == expected


def test_a_step_does_not_depend_on_the_steps_before_it(stream: TokenStream) -> None:
    used, fresh = (loader_of(stream, 8, 4) for _ in range(2))
    for step in range(5):
        list(used.micro_batches(step))
    for batch, expected in zip(used.micro_batches(5), fresh.micro_batches(5), strict=True):
        assert all(map(torch.equal, batch[:2], expected[:2]))
    used.close()
    fresh.close()


def test_a_batch_that_the_ranks_cannot_share_is_refused(stream: TokenStream) -> None:
    with pytest.raises(UserError, match=r"train\.total_batch_size \(48\).*block_size \(16\) x world size \(2\)"):
        loader_of(stream, 3, 1, world=2)


def test_a_corpus_smaller_than_a_block_is_refused(tmp_path: Path) -> None:
    small = open_split(write_shards(tmp_path, tokens=16), "train")
    with pytest.raises(UserError, match=r"\(16 tokens\).*model\.block_size \(16\)"):
        loader_of(small, 1, 1)
    assert loader_of(open_split(write_shards(tmp_path, tokens=17), "train"), 1, 1).n_blocks == 1


def test_the_micro_batch_is_the_largest_divisor_that_is_allowed() -> None:
    assert [largest_divisor(24, limit) for limit in (1, 5, 7, 23, 24, 100)] == [1, 4, 6, 12, 24, 24]
