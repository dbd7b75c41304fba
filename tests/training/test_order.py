"""The order of blocks: a bijection of every epoch, the same whoever asks."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.training.order import blocks_of_step, permute


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 1000))
def test_every_block_occurs_once_in_an_epoch(size: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(size), size, seed, epoch)), np.arange(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 255, 256, 257, 65535, 65536, 65537])
def test_awkward_sizes_are_permuted_whole(size: int) -> None:
    assert len(np.unique(permute(np.arange(size), size, 1, 0))) == size


def test_a_million_blocks_and_three_are_permuted_whole() -> None:
    size = 1_000_003  # a prime
    seen = np.zeros(size, dtype=bool)
    seen[permute(np.arange(size), size, seed=1, epoch=2)] = True
    assert seen.all()


def test_a_step_among_ten_million_blocks_costs_no_memory_worth_mention() -> None:
    tracemalloc.start()
    blocks_of_step(30_000, 512, 10**7, "shuffled", seed=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000  # bytes; a stored permutation would be 80,000,000


def test_a_place_can_be_asked_for_alone_at_ten_million_blocks() -> None:
    size = 10_000_019
    places = np.array([0, 1, 4_999_999, size - 1])
    together = permute(places, size, seed=7, epoch=3)
    assert together.tolist() == [int(permute(places[i : i + 1], size, 7, 3)[0]) for i in range(4)]
    assert ((together >= 0) & (together < size)).all()


def test_the_permutation_looks_random() -> None:
    size = 20_000
    order = permute(np.arange(size), size, seed=1, epoch=0)
    # Neighbours of a random permutation are a third of its length apart on average; correlation is near 0.
    assert abs(np.abs(np.diff(order)).mean() / size - 1 / 3) < 0.02
    assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 0.03


def test_epochs_and_seeds_differ() -> None:
    places = np.arange(1000)
    orders = [permute(places, 1000, seed, epoch).tolist() for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    assert orders[0] != orders[1] != orders[2] != orders[0]


@settings(max_examples=40, deadline=None)
@given(n_blocks=st.integers(1, 200), sequences=st.integers(1, 64), order=st.sampled_from(["shuffled", "sequential"]))
def test_steps_walk_through_whole_epochs(n_blocks: int, sequences: int, order: str) -> None:
    steps = -(-3 * n_blocks // sequences)
    walk = np.concatenate([blocks_of_step(step, sequences, n_blocks, order, seed=5) for step in range(steps)])
    for epoch in range(3):
        assert sorted(walk[epoch * n_blocks : (epoch + 1) * n_blocks]) == list(range(n_blocks))


def test_the_order_never_changes_between_versions() -> None:
    """If this fails, every unfinished run would go on with other data: raise the shards' format version instead."""
    assert blocks_of_step(2, 6, 1000, "shuffled", seed=1).tolist() == [791, 303, 57, 636, 137, 761]
