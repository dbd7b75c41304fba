"""The loader: which tokens a step sees depends on nothing but seed and step."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.shards import TokenStream, open_split
from pipeline.training.loader import Loader, largest_divisor
from tests.training.conftest import write_shards

CPU = torch.device("cpu")


def rows_of(
    stream: TokenStream, step: int, world: int, micro: int, order: str = "shuffled", sequences: int = 8, block: int = 16
) -> list[tuple[int, ...]]:
    """All rows of a step, over all ranks, as tuples of block + 1 tokens."""
    rows = []
    for rank in range(world):
        loader = Loader(stream, block, sequences * block, micro, order, 3, rank, world, CPU)
        for inputs, targets in loader.micro_batches_of(step):
            assert torch.equal(inputs[:, 1:], targets[:, :-1])
            rows += [(*map(int, x), int(y[-1])) for x, y in zip(inputs, targets, strict=True)]
        loader.close()
    return rows


@pytest.mark.parametrize(("world", "micro"), [(1, 8), (1, 3), (2, 4), (2, 1), (4, 2), (4, 100)])
def test_any_world_size_and_micro_batch_see_the_same_blocks(stream: TokenStream, world: int, micro: int) -> None:
    for step in (0, 1, 17, 40):
        assert sorted(rows_of(stream, step, world, micro)) == sorted(rows_of(stream, step, world=1, micro=8))


def test_blocks_are_pieces_of_the_stream_across_shards(stream: TokenStream) -> None:
    whole = stream.read(0, len(stream)).tolist()
    pieces = {tuple(whole[start : start + 17]) for start in range(0, len(whole) - 16, 16)}
    seen = set(rows_of(stream, 0, 1, 8) + rows_of(stream, 5, 1, 8))
    assert seen <= pieces
    assert len(seen) == 16


def test_an_epoch_sees_every_block_once(stream: TokenStream) -> None:
    n_blocks = (len(stream) - 1) // 16
    rows = [row for step in range(n_blocks // 4) for row in rows_of(stream, step, 2, 2, sequences=4)]
    assert len(set(rows)) == len(rows) == n_blocks // 4 * 4


@pytest.mark.parametrize(("world", "micro"), [(1, 2), (2, 2), (4, 1), (2, 4)])
def test_sequential_order_is_the_classic_chunked_stream(stream: TokenStream, world: int, micro: int) -> None:
    """Rank r takes [r B T, (r + 1) B T) of each global micro-batch; then the stream advances by B T world."""
    block = 16
    loaders = [Loader(stream, block, 8 * block, micro, "sequential", 0, rank, world, CPU) for rank in range(world)]
    position = 0
    for step in range(3):
        batches = [list(loader.micro_batches_of(step)) for loader in loaders]
        for index in range(loaders[0].micro_batches):
            for rank in range(world):
                start = position + rank * micro * block
                chunk = stream.read(start, micro * block + 1).astype(np.int64)
                inputs, targets = batches[rank][index]
                assert inputs.flatten().tolist() == chunk[:-1].tolist()
                assert targets.flatten().tolist() == chunk[1:].tolist()
            position += micro * block * world
    for loader in loaders:
        loader.close()


class Positions:
    """A stream in which every token is its own place, and that remembers where it was read."""

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
    order=st.sampled_from(["shuffled", "sequential"]),
)
def test_an_epoch_predicts_every_token_of_its_blocks_once_whatever_the_sizes(
    length: int, block: int, sequences: int, world: int, micro: int, order: str
) -> None:
    stream: Any = Positions(max(length, block + 1))
    loaders = [
        Loader(stream, block, sequences * world * block, micro, order, 7, rank, world, CPU) for rank in range(world)
    ]
    n_blocks = loaders[0].n_blocks
    predicted, steps = [], -(-n_blocks // (sequences * world))
    for step in range(steps):
        of_ranks = [list(loader.micro_batches_of(step)) for loader in loaders]
        for micro_batch in zip(*of_ranks, strict=True):  # the ranks side by side, as they take the step's rows
            for inputs, targets in micro_batch:
                assert torch.equal(inputs + 1, targets)
                predicted += targets.tolist()
    for loader in loaders:
        loader.close()
    epoch = [token for row in predicted[:n_blocks] for token in row]
    assert sorted(epoch) == list(range(1, n_blocks * block + 1))
    assert len(stream) - len(epoch) <= block, "less than a block is left over at the stream's end, and its first token"


def test_the_next_step_is_read_while_this_one_is_computed(stream: TokenStream) -> None:
    positions: Any = Positions(16 * 8 + 1)  # one step is an epoch: the next one reads the same blocks
    loader = Loader(positions, 16, 8 * 16, 4, "shuffled", 1, 0, 1, CPU)
    next(iter(loader.micro_batches_of(0)))
    assert positions.read_again.wait(30), "nobody has asked for step 1 yet"
    loader.close()


def test_batches_for_a_gpu_are_in_pinned_memory(stream: TokenStream, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[tuple[int, ...]] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(tuple(self.shape)) or self)
    for device, expected in (("cpu", []), ("cuda", [(2, 4, 17)])):
        loader = Loader(stream, 16, 8 * 16, 4, "shuffled", 1, 0, 1, torch.device(device))
        loader._read(0)
        loader.close()
        assert pinned == expected


def test_a_loader_has_no_memory(stream: TokenStream) -> None:
    walked = Loader(stream, 16, 128, 4, "shuffled", 1, 0, 1, CPU)
    for step in range(5):
        list(walked.micro_batches_of(step))
    fresh = Loader(stream, 16, 128, 4, "shuffled", 1, 0, 1, CPU)
    pairs = zip(walked.micro_batches_of(5), fresh.micro_batches_of(5), strict=True)
    assert all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))
    walked.close()
    fresh.close()


def test_a_batch_that_the_ranks_cannot_share_is_refused_by_name(stream: TokenStream) -> None:
    with pytest.raises(ValueError, match=r"train\.total_batch_size \(48\).*block_size \(16\) x world size \(2\)"):
        Loader(stream, 16, 48, 1, "shuffled", 1, 0, 2, CPU)


def test_a_corpus_smaller_than_a_block_is_refused(tmp_path: Path) -> None:
    small = open_split(write_shards(tmp_path, tokens=16), "train")
    with pytest.raises(ValueError, match=r"16 tokens.*block_size \(16\) \+ 1"):
        Loader(small, 16, 16, 1, "shuffled", 1, 0, 1, CPU)
    assert (
        Loader(open_split(write_shards(tmp_path, tokens=17), "train"), 16, 16, 1, "shuffled", 1, 0, 1, CPU).n_blocks
        == 1
    )


def test_the_micro_batch_is_the_largest_divisor_that_is_allowed() -> None:
    assert [largest_divisor(24, limit) for limit in (1, 5, 7, 23, 24, 100)] == [1, 4, 6, 12, 24, 24]
