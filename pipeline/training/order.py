"""Which blocks of the token stream a step sees: a pure function of (seed, step), the same on every machine.

The permutation of an epoch is computed, not stored: a Feistel network over the next even power of two, walked until it
lands inside the range (cycle walking; Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). So it costs no
memory at any number of blocks, and a loader's whole state is the step.
"""

import numpy as np
import numpy.typing as npt

ROUNDS = 6

Indices = npt.NDArray[np.int64]


def blocks_of_step(step: int, sequences: int, n_blocks: int, order: str, seed: int) -> Indices:
    """The block indices of a step, (sequences,) int64, each in [0, n_blocks).

    Steps take consecutive positions of an endless walk through the epochs; a step may span two epochs or more.
    Within an epoch every block occurs exactly once. `order`: "sequential", or "shuffled" anew each epoch.
    """
    positions = np.arange(step * sequences, (step + 1) * sequences, dtype=np.int64)
    epochs, places = np.divmod(positions, n_blocks)
    if order == "sequential":
        return places
    blocks = np.empty_like(places)
    for epoch in np.unique(epochs):
        inside = epochs == epoch
        blocks[inside] = permute(places[inside], n_blocks, seed, int(epoch))
    return blocks


def permute(places: Indices, size: int, seed: int, epoch: int) -> Indices:
    """Where a permutation of range(size), chosen by (seed, epoch), sends `places`; int64 of the same shape."""
    half_bits = max(1, -(-(size - 1).bit_length() // 2))  # the network's domain: 2 ** (2 * half_bits) >= size
    keys = np.random.SeedSequence((seed, epoch)).generate_state(ROUNDS, np.uint64).astype(np.uint64)
    values = places.astype(np.uint64)
    outside = np.ones(values.shape, dtype=bool)
    while outside.any():
        values[outside] = _feistel(values[outside], half_bits, keys)
        outside = values >= size
    return values.astype(np.int64)


def _feistel(values: npt.NDArray[np.uint64], half_bits: int, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A bijection of [0, 2 ** (2 * half_bits)): whatever the round function, each round can be undone."""
    bits, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right, key) & mask)
    return (left << bits) | right


def _mix(values: npt.NDArray[np.uint64], key: np.uint64) -> npt.NDArray[np.uint64]:
    """A keyed hash of 64-bit integers: SplitMix64's finaliser (Steele et al., OOPSLA 2014)."""
    mixed = (values + np.uint64(0x9E3779B97F4A7C15)) ^ key  # uint64 arrays wrap, as the hash wants
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
