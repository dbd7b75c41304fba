"""The arithmetic of cutting a stream of units into splits and shards. Pure numbers; nothing here reads a file."""

import bisect
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

VALIDATION_SHARE = 10  # the first shard is validation, but at most one part in so many


class Span(NamedTuple):
    """Tokens [begin, end) of a unit."""

    unit: int
    begin: int
    end: int


def validation_tokens(total: int, shard_tokens: int) -> int:
    """Tokens at the stream's start that are for validation where no documents are held out.

    The first shard, as in https://github.com/karpathy/build-nanogpt; of a corpus of fewer than ten shards, a tenth.
    """
    return min(shard_tokens, max(1, total // VALIDATION_SHARE))


def shard_ranges(start: int, stop: int, shard_tokens: int) -> list[tuple[int, int]]:
    """Cuts the tokens [start, stop) of a stream into shards of `shard_tokens`; the last may be smaller.

    >>> shard_ranges(10, 35, 10)
    [(10, 20), (20, 30), (30, 35)]
    """
    return [(begin, min(begin + shard_tokens, stop)) for begin in range(start, stop, shard_tokens)]


def spans(unit_tokens: Sequence[int], start: int, stop: int) -> Iterator[Span]:
    """Where the tokens [start, stop) of a stream lie in the units that it is made of, `unit_tokens[i]` tokens each.

    >>> list(spans([4, 0, 6], 2, 7))
    [Span(unit=0, begin=2, end=4), Span(unit=2, begin=0, end=3)]
    """
    ends = list(accumulate(unit_tokens))
    unit = bisect.bisect_right(ends, start)
    while start < stop:
        offset = ends[unit] - unit_tokens[unit]
        end = min(stop, ends[unit])
        if end > start:
            yield Span(unit, start - offset, end - offset)
        start, unit = end, unit + 1
