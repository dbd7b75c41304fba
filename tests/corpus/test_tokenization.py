"""Documents become the same shards for any number of workers and any size of units."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus import encodings, tokenization
from pipeline.corpus.encoder import encode
from pipeline.corpus.raw import FORMAT_VERSION, SOURCE_FILE, Document, RawCorpus, write_files
from pipeline.corpus.shards import open_split
from pipeline.corpus.tokenization import tokenize
from pipeline.corpus.verify import verify_directory

from .conftest import WriteRaw, data_params, tokenizer_params
from .tokenizing import CORPUS, contents


def stream_of(directory: Path, split: Any) -> list[int]:
    stream = open_split(directory, split)
    return [int(token) for token in stream.read(0, len(stream))]


@pytest.mark.parametrize(("encoding", "val_every", "several"), [("bytes", None, (2, 7)), ("bpe", 5, (2,))])
def test_any_number_of_workers_gives_the_same_bytes(
    write_raw: WriteRaw, tmp_path: Path, encoding: str, val_every: int | None, several: tuple[int, ...]
) -> None:
    raw = write_raw(CORPUS, val_every)
    params = tokenizer_params(encoding=encoding, shard_tokens=701)
    tokenize(params, raw, tmp_path / "1", tmp_path / "runs", 1)
    for workers in several:
        tokenize(params, raw, tmp_path / str(workers), tmp_path / "runs", workers)
        assert contents(tmp_path / str(workers)) == contents(tmp_path / "1")
    assert not list((tmp_path / "runs").iterdir())
    verify_directory(tmp_path / "1")


def test_units_of_any_size_give_the_same_shards(write_raw: WriteRaw, tmp_path: Path) -> None:
    for size in (1, 500, 10**6):
        raw = write_raw(CORPUS, group_bytes=size, name=f"raw{size}")
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
    group_bytes: int,
) -> None:
    directory = tmp_path_factory.mktemp("tokenize")
    files = write_files(
        directory, 0, (Document(n, text) for n, text in enumerate(texts)), val_every, group_bytes=group_bytes
    )
    corpus = RawCorpus(
        format_version=FORMAT_VERSION, origin={}, splits={split: [file] for split, file in files.items()}
    )
    corpus.write(directory / SOURCE_FILE)
    out = directory / "out"
    manifest = tokenize(tokenizer_params(shard_tokens=shard_tokens), directory, out, directory / "runs", 1)
    encoding = encodings.bytes_encoding()
    if val_every is None:
        assert stream_of(out, "val") + stream_of(out, "train") == encode(encoding, texts).tolist()
    else:
        assert stream_of(out, "val") == encode(encoding, texts[::val_every]).tolist()
        rest = [text for n, text in enumerate(texts) if n % val_every]
        assert stream_of(out, "train") == encode(encoding, rest).tolist()
    for split in manifest.splits.values():
        assert all(shard.tokens == shard_tokens for shard in split.shards[:-1])
        assert split.tokens == sum(shard.tokens for shard in split.shards)
    verify_directory(out)


def test_a_large_vocabulary_is_written_as_uint32(
    write_raw: WriteRaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {(256 + n).to_bytes(3, "big"): 256 + n for n in range(2**16 - 256)}
    large = tiktoken.Encoding(
        "bytes", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 2**16}
    )
    monkeypatch.setattr(encodings, "bytes_encoding", lambda: large)
    manifest = tokenize(tokenizer_params(), write_raw(CORPUS), tmp_path / "s", tmp_path / "r", 1)
    assert (manifest.dtype, manifest.vocab_size, manifest.eot_id) == ("uint32", 2**16 + 1, 2**16)
    assert np.load(tmp_path / "s" / "train_000000.npy").dtype == np.dtype("<u4")
    stream = stream_of(tmp_path / "s", "val") + stream_of(tmp_path / "s", "train")
    assert stream == encode(large, CORPUS).tolist()
    verify_directory(tmp_path / "s")


def test_progress_tells_tokens_per_second_and_the_time_left(
    write_raw: WriteRaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.progress.PLAIN_INTERVAL_S", 0)
    tokenize(tokenizer_params(), write_raw(CORPUS), tmp_path / "s", tmp_path / "r", 1)
    line = r"tokenize \d+/\d+ B \(\d+%\) \| [\d,.]+ B/s \| ETA \S+ \| tokens [\d,]+, rate [\d.]+M tok/s"
    assert re.search(line, capsys.readouterr().out)


MEASURE = """
import sys
from pathlib import Path
from pipeline.corpus import sources, tokenization
from pipeline.corpus.encodings import TokenizerParams
from pipeline.corpus.sources import DataParams
root, params = Path(sys.argv[1]), DataParams.model_validate_json(sys.argv[2])
def most():  # not getrusage's, which begins with that of the process which started this one
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) // 1024
before = most()
sources.fetch(params, root, root / "raw", root / "work", part_bytes=16 * 2**20)
print("memory", most() - before)
params = TokenizerParams(encoding="gpt2", vocab_size=300, training_bytes=None, shard_tokens=1_000_000)
tokenization.tokenize(params, root / "raw", root / "shards", root / "runs", 1)
print("memory", most() - before)
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """Of a process that writes data/raw and then cuts shards: the most MB it ever had, beyond those of its imports."""
    most = {}
    for megabytes in (16, 64):
        directory = tmp_path / str(megabytes)
        directory.mkdir()
        with (directory / "a.jsonl").open("w") as file:
            for number in range(megabytes * 100):
                file.write(json.dumps({"text": f"It was document {number}, and its like. " * 260}) + "\n")
        command = [sys.executable, "-c", MEASURE, str(directory), data_params(files=["*.jsonl"]).model_dump_json()]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        most[megabytes] = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("memory")]
    for small, large in zip(most[16], most[64], strict=True):
        assert 0 < large < small + 20, most
    assert most[64][1] < 200 + 4, most  # one unit is 4 MB


def test_a_document_longer_than_a_shard_runs_over_shards(write_raw: WriteRaw, tmp_path: Path) -> None:
    manifest = tokenize(tokenizer_params(shard_tokens=100), write_raw(["y" * 950]), tmp_path / "s", tmp_path / "r", 1)
    assert [shard.tokens for shard in manifest.splits["train"].shards] == [100] * 8 + [56]
    assert manifest.splits["val"].tokens == 95


def test_a_corpus_smaller_than_a_shard_is_one_shard_with_a_tenth_for_validation(
    write_raw: WriteRaw, tmp_path: Path
) -> None:
    manifest = tokenize(tokenizer_params(shard_tokens=10**8), write_raw(["y" * 99]), tmp_path / "s", tmp_path / "r", 1)
    assert {name: split.tokens for name, split in manifest.splits.items()} == {"train": 90, "val": 10}


def test_a_corpus_too_small_to_split_is_refused(write_raw: WriteRaw, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1 token\(s\) are too few"):
        tokenize(tokenizer_params(), write_raw([""]), tmp_path / "s", tmp_path / "r", 1)


def test_an_encoding_is_trained_on_training_documents_only(write_raw: WriteRaw, tmp_path: Path) -> None:
    texts = ["validation zzzz " * 40, *["training aaaa " * 20 for _ in range(9)]]
    for name, val_every in (("held out", 10), ("first shard", None)):
        out = tmp_path / name
        raw = write_raw(texts if val_every else [*texts, *texts[1:] * 8], val_every, name=f"raw {name}")
        params = tokenizer_params(encoding="bpe", shard_tokens=150)
        tokenize(params, raw, out, tmp_path / "runs", 1)
        vocabulary = encodings.load(out / "encoding").token_byte_values()
        assert b" training" in vocabulary
        assert not [token for token in vocabulary if b"zz" in token], name


def test_an_encoding_that_saw_validation_text_is_refused(
    write_raw: WriteRaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenization, "MOST_BYTES_PER_TOKEN", 1)
    raw = write_raw(["to be or not to be " * 100] * 30)
    with pytest.raises(ValueError, match=r"data\.val_every \(null\): the validation split has the first \d+ bytes"):
        tokenize(tokenizer_params(encoding="bpe", shard_tokens=500), raw, tmp_path / "s", tmp_path / "runs", 1)
    assert not (tmp_path / "s").exists()


def test_training_bytes_limit_what_an_encoding_is_trained_on(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw = write_raw(["val", "early words " * 50, "late zzzz " * 50], val_every=3)
    params = tokenizer_params(encoding="bpe", training_bytes=600)
    tokenize(params, raw, tmp_path / "s", tmp_path / "runs", 1)
    assert not [t for t in encodings.load(tmp_path / "s" / "encoding").token_byte_values() if b"zz" in t]
