"""Documents become the same shards for any number of workers and machines and any size of row groups."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.artifacts import SplitName
from pipeline.corpus import tokenization
from pipeline.corpus.shards import open_split, verify
from pipeline.corpus.token_files import encode
from pipeline.corpus.tokenization import shard_ranges, spans, tokenize, tokenize_part, validation_tokens
from pipeline.corpus.tokenizer import bytes_tokenizer, fingerprint, load_tokenizer, save_tokenizer
from pipeline.corpus.tokenizer_json import tokenizer_json
from pipeline.corpus.vocabularies import train_bpe
from pipeline.files import write_json
from pipeline.log import UserError

from .conftest import WriteRaw, data_params, tokenizer_params, write_corpus
from .test_tokenizer import tokenizer_with
from .tokenizing import (
    CORPUS,
    contents,
    count_encodings,
    count_row_groups,
    start_part,
    start_tokenizing,
    wait_until,
)


def tokens_of(directory: Path, split: SplitName) -> list[int]:
    stream = open_split(directory, split)
    return stream.read(0, len(stream)).tolist()


# Sharding


token_counts = st.lists(st.integers(0, 50), min_size=1, max_size=30)


@given(token_counts, st.data())
def test_spans_are_exactly_the_tokens_of_their_range(lengths: list[int], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, sum(lengths)))
    stop = data.draw(st.integers(start, sum(lengths)))
    paths = [Path(str(number)) for number in range(len(lengths))]
    stream = [(path, index) for path, length in zip(paths, lengths, strict=True) for index in range(length)]
    ranges = spans(paths, lengths, start, stop)
    assert [(span.source, index) for span in ranges for index in range(span.begin, span.end)] == stream[start:stop]


@given(st.integers(0, 500), st.integers(0, 1000), st.integers(1, 200))
def test_shards_cover_a_split_once_and_all_but_the_last_are_full(start: int, tokens: int, shard_tokens: int) -> None:
    ranges = shard_ranges(start, start + tokens, shard_tokens)
    assert [index for begin, end in ranges for index in range(begin, end)] == list(range(start, start + tokens))
    assert all(end - begin == shard_tokens for begin, end in ranges[:-1])
    assert all(begin < end for begin, end in ranges)


def test_validation_is_the_first_shard_or_a_tenth_of_a_small_corpus() -> None:
    assert validation_tokens(10_000_000_000, 100_000_000) == 100_000_000
    assert validation_tokens(1_000, 100_000_000) == 100
    assert validation_tokens(3, 100) == 1


def test_a_document_can_continue_in_the_next_shard(write_raw: WriteRaw, tmp_path: Path) -> None:
    manifest = tokenize(tokenizer_params(shard_tokens=100), write_raw(["y" * 950]), tmp_path / "s", tmp_path / "r", 1)
    assert [shard.tokens for shard in manifest.splits["train"].shards] == [100] * 8 + [56]
    assert manifest.splits["val"].tokens == 95


def test_a_corpus_too_small_to_split_is_refused(write_raw: WriteRaw, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"raw: 1 token\(s\)"):
        tokenize(tokenizer_params(), write_raw([""]), tmp_path / "s", tmp_path / "r", 1)


# The same bytes


@pytest.mark.parametrize(("encoding", "val_every", "workers"), [("bytes", None, 3), ("bpe", 5, 2)])
def test_any_number_of_workers_gives_the_same_bytes(
    write_raw: WriteRaw, tmp_path: Path, encoding: str, val_every: int | None, workers: int
) -> None:
    raw = write_raw(CORPUS, val_every)
    params = tokenizer_params(encoding=encoding, shard_tokens=701)
    tokenize(params, raw, tmp_path / "1", tmp_path / "runs", 1)
    tokenize(params, raw, tmp_path / "several", tmp_path / "runs", workers)
    assert contents(tmp_path / "several") == contents(tmp_path / "1")
    assert not list((tmp_path / "runs").glob("*/"))
    verify(tmp_path / "1")


def test_row_groups_of_any_size_give_the_same_shards(write_raw: WriteRaw, tmp_path: Path) -> None:
    for size in (1, 500, 10**6):
        raw = write_raw(CORPUS, row_group_bytes=size, name=f"raw{size}")
        tokenize(tokenizer_params(), raw, tmp_path / str(size), tmp_path / "runs", 1)
    assert contents(tmp_path / "1") == contents(tmp_path / "500") == contents(tmp_path / "1000000")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.text(max_size=30), min_size=2, max_size=20),
    st.integers(1, 60),
    st.sampled_from([None, 2, 3]),
    st.integers(1, 100),
)
def test_the_splits_together_are_every_document_after_its_end_of_text(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str],
    shard_tokens: int,
    val_every: int | None,
    row_group_bytes: int,
) -> None:
    directory = tmp_path_factory.mktemp("tokenize")
    raw, out = write_corpus(directory / "raw", texts, val_every, row_group_bytes), directory / "out"
    manifest = tokenize(tokenizer_params(shard_tokens=shard_tokens), raw, out, directory / "runs", 1)
    tokenizer = bytes_tokenizer()
    if val_every is None:
        assert tokens_of(out, "val") + tokens_of(out, "train") == encode(tokenizer, texts).tolist()
    else:
        assert tokens_of(out, "val") == encode(tokenizer, texts[::val_every]).tolist()
        rest = [text for number, text in enumerate(texts) if number % val_every]
        assert tokens_of(out, "train") == encode(tokenizer, rest).tolist()
    for split in manifest.splits.values():
        assert all(shard.tokens == shard_tokens for shard in split.shards[:-1])
    verify(out)


def test_a_large_vocabulary_is_written_as_uint32(
    write_raw: WriteRaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = tokenizer_with(2**16 + 1)
    monkeypatch.setattr(tokenization, "bytes_tokenizer", lambda: large)
    manifest = tokenize(tokenizer_params(), write_raw(CORPUS), tmp_path / "s", tmp_path / "r", 1)
    assert (manifest.dtype, manifest.vocab_size, manifest.eot_id) == ("uint32", 2**16 + 1, 2**16)
    assert np.load(tmp_path / "s" / "train_000000.npy").dtype == np.dtype("<u4")
    assert tokens_of(tmp_path / "s", "val") + tokens_of(tmp_path / "s", "train") == encode(large, CORPUS).tolist()
    verify(tmp_path / "s")


# Several runs and machines share their work


def test_two_machines_with_a_part_each_give_the_same_bytes(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw, params = write_raw(CORPUS), tokenizer_params(encoding="bpe", shard_tokens=701)
    tokenize(params, raw, tmp_path / "alone", tmp_path / "runs", 1)
    machines = [start_part(params.model_dump_json(), raw, tmp_path / "shared", part, 2) for part in (1, 2)]
    counts = [int(machine.communicate(timeout=60)[0]) for machine in machines]
    assert counts == [count_row_groups(raw) // 2] * 2
    assert count_encodings(lambda: tokenize(params, raw, tmp_path / "merged", tmp_path / "shared", 1)) == 0
    assert contents(tmp_path / "merged") == contents(tmp_path / "alone")


def test_two_machines_at_the_same_part_encode_each_row_group_once(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw, params = write_raw(CORPUS), tokenizer_params().model_dump_json()
    machines = [start_part(params, raw, tmp_path / "runs", 1, 1, seconds=0.02) for _ in range(2)]
    counts = [int(machine.communicate(timeout=60)[0]) for machine in machines]
    assert sorted(counts) == [0, count_row_groups(raw)]


def test_a_second_run_of_the_same_work_waits_for_the_first(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw = write_raw(CORPUS * 3)
    params = tokenizer_params().model_dump_json()
    runs = [start_tokenizing(params, raw, tmp_path / name, tmp_path / "runs") for name in ("a", "b")]
    assert [run.wait(60) for run in runs] == [0, 0]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert not list((tmp_path / "runs").glob("*/"))


def test_the_merge_waits_for_the_parts_that_run(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw, params = write_raw(CORPUS), tokenizer_params()
    machine = start_part(params.model_dump_json(), raw, tmp_path / "runs", 1, 1, seconds=0.02)
    wait_until(lambda: list(tmp_path.glob("runs/*/row_groups/*.npy")))
    assert count_encodings(lambda: tokenize(params, raw, tmp_path / "out", tmp_path / "runs", 1)) == 0
    assert int(machine.communicate(timeout=60)[0]) == count_row_groups(raw)
    assert not list((tmp_path / "runs").glob("*/"))
    verify(tmp_path / "out")


def test_another_configuration_has_work_of_its_own(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw = write_raw(CORPUS)
    changes: list[dict[str, Any]] = [{"encoding": "bytes"}, {"encoding": "bpe"}, {"encoding": "bpe", "vocab_size": 301}]
    for change in changes:
        tokenize_part(tokenizer_params(**change), raw, tmp_path / "runs", 1, 1, 1)
    tokenize_part(tokenizer_params(), write_raw(CORPUS[1:], name="other"), tmp_path / "runs", 1, 1, 1)
    assert len(list((tmp_path / "runs").glob("tokenize-*/"))) == 4


def test_shards_of_another_size_are_written_from_the_same_token_files(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw = write_raw(CORPUS, val_every=5)
    tokenize_part(tokenizer_params(), raw, tmp_path / "runs", 1, 1, 1)
    other = tokenizer_params(shard_tokens=333)
    assert count_encodings(lambda: tokenize(other, raw, tmp_path / "out", tmp_path / "runs", 1)) == 0
    assert verify(tmp_path / "out").shard_tokens == 333


# A tokenizer in models/


def test_a_directory_in_models_gives_its_tokenizer(
    write_raw: WriteRaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model directory, its tokenizer alone, and a Hugging Face directory: the same shards."""
    monkeypatch.chdir(tmp_path)
    raw, runs, out = write_raw(CORPUS, val_every=5), tmp_path / "runs", tmp_path / "out"
    tokenizer = train_bpe(CORPUS * 3, 280)
    save_tokenizer(tokenizer, Path("models/mine/tokenizer"))
    write_json(Path("models/hf/tokenizer.json"), tokenizer_json(tokenizer))
    shards = []
    for encoding in ("mine", "mine/tokenizer", "hf"):
        manifest = tokenize(tokenizer_params(encoding=encoding), raw, out, runs, 1)
        assert (manifest.tokenizer_sha256, manifest.vocab_size) == (fingerprint(tokenizer), tokenizer.n_vocab)
        shards.append(contents(out))
    assert shards[0] == shards[1] == shards[2]
    assert tokens_of(out, "train")[:1] == [tokenizer.eot_token]
    tokenize_part(tokenizer_params(encoding="mine"), raw, runs, 1, 1, 1)
    save_tokenizer(train_bpe(CORPUS * 3, 270), Path("models/mine/tokenizer"))
    tokenize_part(tokenizer_params(encoding="mine"), raw, runs, 1, 1, 1)
    assert len(list(runs.glob("tokenize-*/"))) == 2
    Path("models/empty").mkdir()
    for name in ("bpee", "empty"):
        with pytest.raises(UserError, match=rf"tokenizer.encoding \({name}\).*models/{name}"):
            tokenize(tokenizer_params(encoding=name), raw, out, runs, 1)


# What a tokenizer is trained on


def test_a_tokenizer_is_trained_on_training_documents_only(write_raw: WriteRaw, tmp_path: Path) -> None:
    texts = ["validation zzzz " * 40, *["training aaaa " * 20 for _ in range(9)]]
    for name, val_every in (("held out", 10), ("first shard", None)):
        out = tmp_path / name
        raw = write_raw(texts if val_every else [*texts, *texts[1:] * 8], val_every, name=f"raw {name}")
        tokenize(tokenizer_params(encoding="bpe", shard_tokens=150), raw, out, tmp_path / "runs", 1)
        vocabulary = load_tokenizer(out / "tokenizer").token_byte_values()
        assert b" training" in vocabulary
        assert not [token for token in vocabulary if b"zz" in token], name


def test_a_tokenizer_trained_on_validation_text_is_refused(
    write_raw: WriteRaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenization, "MAX_BYTES_PER_TOKEN", 1)
    raw = write_raw(["to be or not to be " * 100] * 30)
    with pytest.raises(UserError, match=r"data\.val_every \(null\)"):
        tokenize(tokenizer_params(encoding="bpe", shard_tokens=500), raw, tmp_path / "s", tmp_path / "runs", 1)
    assert not (tmp_path / "s").exists()


def test_training_bytes_limit_what_a_tokenizer_is_trained_on(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw = write_raw(["val", "early words " * 50, "late zzzz " * 50], val_every=3)
    params = tokenizer_params(encoding="bpe", training_bytes=600)
    tokenize(params, raw, tmp_path / "s", tmp_path / "runs", 1)
    vocabulary = load_tokenizer(tmp_path / "s" / "tokenizer").token_byte_values()
    assert not [token for token in vocabulary if b"zz" in token]


# Memory


MEASURE = """
import sys
from pathlib import Path
from pipeline.corpus import sources, tokenization
from pipeline.corpus.params import TokenizerParams
from pipeline.corpus.params import DataParams
root, params = Path(sys.argv[1]), DataParams.model_validate_json(sys.argv[2])
def peak():  # in MB; getrusage's would include the process that started this one
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) // 1024
before = peak()
sources.fetch(params, root, root / "raw", root / "work", part_bytes=16 * 2**20)
print("memory", peak() - before)
params = TokenizerParams.model_validate_json(sys.argv[3])
tokenization.tokenize(params, root / "raw", root / "shards", root / "runs", 1)
print("memory", peak() - before)
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """Peak memory of a download and a tokenization, beyond that of their imports."""
    peaks = {}
    for megabytes in (16, 48):
        directory = tmp_path / str(megabytes)
        directory.mkdir()
        with (directory / "a.jsonl").open("w") as file:
            for number in range(megabytes * 100):
                file.write(json.dumps({"text": f"It was document {number}, and its like. " * 260}) + "\n")
        command = [sys.executable, "-c", MEASURE, str(directory), data_params(files=["*.jsonl"]).model_dump_json()]
        command.append(tokenizer_params(encoding="gpt2", shard_tokens=1_000_000).model_dump_json())
        process = subprocess.run(command, capture_output=True, text=True, check=True)
        lines = [line for line in process.stdout.splitlines() if line.startswith("memory")]
        peaks[megabytes] = [int(line.split()[1]) for line in lines]
    for small, large in zip(peaks[16], peaks[48], strict=True):
        assert 0 < large < small + 20, peaks
    assert peaks[48][1] < 200 + 4, peaks  # a row group is 4 MB
