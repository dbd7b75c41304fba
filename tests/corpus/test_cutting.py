"""Shards cover their stream once and in order, wherever the units end."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.cutting import shard_ranges, spans, validation_tokens

unit_lengths = st.lists(st.integers(0, 50), min_size=1, max_size=30)


@given(unit_lengths, st.data())
def test_spans_are_exactly_the_tokens_of_their_range(lengths: list[int], data: st.DataObject) -> None:
    total = sum(lengths)
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total))
    stream = [(unit, place) for unit, length in enumerate(lengths) for place in range(length)]
    found = [(span.unit, place) for span in spans(lengths, start, stop) for place in range(span.begin, span.end)]
    assert found == stream[start:stop]


@given(unit_lengths, st.integers(1, 200), st.data())
def test_shards_cover_a_split_once_and_are_full_but_for_the_last(
    lengths: list[int], shard_tokens: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, sum(lengths)))
    ranges = shard_ranges(start, sum(lengths), shard_tokens)
    assert [place for begin, end in ranges for place in range(begin, end)] == list(range(start, sum(lengths)))
    assert all(end - begin == shard_tokens for begin, end in ranges[:-1])
    assert all(begin < end for begin, end in ranges)


def test_validation_is_the_first_shard_or_a_tenth_of_a_small_corpus() -> None:
    assert validation_tokens(10_000_000_000, 100_000_000) == 100_000_000
    assert validation_tokens(1_000, 100_000_000) == 100
    assert validation_tokens(3, 100) == 1
