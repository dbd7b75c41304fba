"""A split of shards reads as one stream, and what is wrong with its files is named."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus import encodings, shards
from pipeline.corpus.shards import Manifest, TokenStream, open_split
from pipeline.corpus.tokenization import tokenize
from pipeline.corpus.verify import verify_directory
from pipeline.files import read_json, write_json

from .conftest import DOCUMENTS, WriteRaw, tokenizer_params


@pytest.fixture
def directory(write_raw: WriteRaw, tmp_path: Path) -> Path:
    """Several shards of bytes in both splits."""
    out = tmp_path / "shards"
    tokenize(tokenizer_params(shard_tokens=400), write_raw(DOCUMENTS * 2, val_every=7), out, tmp_path / "runs", 1)
    return out


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.data())
def test_a_stream_reads_across_shards_as_if_there_were_none(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("shards")
    tokens = np.arange(sum(lengths), dtype=np.uint16)
    pieces = np.split(tokens, np.cumsum(lengths)[:-1])
    for number, piece in enumerate(pieces):
        np.save(directory / f"{number}.npy", piece)
    records = [shards.Shard(file=f"{n}.npy", tokens=length, sha256="") for n, length in enumerate(lengths)]
    split = shards.Split(tokens=len(tokens), documents=0, utf8_bytes=0, shards=records)
    manifest = Manifest(
        format_version=1,
        encoding_name="",
        encoding_sha256="",
        vocab_size=300,
        eot_id=0,
        dtype="uint16",
        shard_tokens=20,
        splits={"train": split},
    )
    stream = TokenStream(directory, manifest, "train")
    start = data.draw(st.integers(0, len(tokens)))
    count = data.draw(st.integers(0, len(tokens) - start))
    assert len(stream) == len(tokens)
    assert np.array_equal(stream.read(start, count), tokens[start : start + count])
    with pytest.raises(IndexError):
        stream.read(start, len(tokens) - start + 1)


def test_shards_are_plain_npy_files_of_little_endian_tokens(directory: Path) -> None:
    tokens = np.load(directory / "train_000000.npy", allow_pickle=False)
    assert tokens.dtype == np.dtype("<u2")
    assert tokens.shape == (400,)


def test_sound_shards_verify(directory: Path) -> None:
    verify_directory(directory)


def test_a_shard_that_is_cut_off_is_named_with_its_offset(directory: Path) -> None:
    path = directory / "train_000001.npy"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"train_000001\.npy: ends at offset 918, must at 928"):
        open_split(directory, "train")


def test_a_shard_that_is_missing_is_named(directory: Path) -> None:
    (directory / "val_000000.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"val_000000\.npy"):
        open_split(directory, "val")


def test_a_shard_of_another_type_or_length_is_named(directory: Path) -> None:
    np.save(directory / "train_000000.npy", np.zeros(400, np.uint32))
    with pytest.raises(ValueError, match=r"train_000000\.npy: offset 0: the header says uint32 \(400,\)"):
        open_split(directory, "train")
    (directory / "train_000000.npy").write_bytes(b"no header")
    with pytest.raises(ValueError, match=r"train_000000\.npy: offset 0: no \.npy header"):
        open_split(directory, "train")


def test_shards_beside_another_encoding_are_refused(directory: Path) -> None:
    path = directory / "encoding" / "encoding.json"
    write_json(path, read_json(path) | {"sha256": "0" * 64})
    with pytest.raises(ValueError, match="is not the one that the shards were written with"):
        open_split(directory, "train")


def test_a_manifest_of_another_version_says_which_stage_to_run(directory: Path) -> None:
    path = directory / "manifest.json"
    write_json(path, read_json(path) | {"format_version": 0})
    with pytest.raises(ValueError, match=r"format_version \(0\) must be 1: run the tokenize stage again"):
        Manifest.read(directory)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="run the tokenize stage"):
        Manifest.read(directory)


def test_verify_names_a_changed_file_and_the_offset_of_an_id_outside_the_vocabulary(directory: Path) -> None:
    path = directory / "train_000001.npy"
    data = bytearray(path.read_bytes())
    data[128 + 2 * 7 : 128 + 2 * 7 + 2] = (257).to_bytes(2, "little")
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged") as error:
        shards.verify(directory)
    assert "train_000001.npy: sha256 differs" in str(error.value)
    assert "train_000001.npy: offset 142: id 257 is outside the vocabulary of bytes (257)" in str(error.value)


def test_the_bytes_of_a_split_are_what_its_tokens_decode_to(directory: Path) -> None:
    encoding = encodings.load(directory / "encoding")
    for name, split in Manifest.read(directory).splits.items():
        stream = open_split(directory, name)
        tokens = stream.read(0, len(stream)).tolist()
        text = encoding.decode_bytes([token for token in tokens if token != encoding.eot_token])
        assert len(text) == split.utf8_bytes
        assert tokens.count(encoding.eot_token) == split.documents
