"""A split of shards reads as one stream, and defects of its files are named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.artifacts import MANIFEST_FILE, Manifest, Shard, Split
from pipeline.corpus.shards import TokenStream, open_split, verify
from pipeline.corpus.tokenization import tokenize
from pipeline.corpus.tokenizer import TOKENIZER_DIRECTORY, TOKENIZER_FILE, TokenizerConfig, load_tokenizer
from pipeline.log import UserError

from .conftest import DOCUMENTS, WriteRaw, tokenizer_params


@pytest.fixture
def directory(write_raw: WriteRaw, tmp_path: Path) -> Path:
    """Several shards of bytes in both splits."""
    out = tmp_path / "shards"
    tokenize(tokenizer_params(shard_tokens=400), write_raw(DOCUMENTS * 2, val_every=7), out, tmp_path / "runs", 1)
    return out


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.data())
def test_a_stream_reads_across_shards(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("shards")
    tokens = np.arange(sum(lengths), dtype=np.uint16)
    for number, part in enumerate(np.split(tokens, np.cumsum(lengths)[:-1])):
        np.save(directory / f"{number}.npy", part)
    shards = [Shard(file=f"{number}.npy", tokens=length, sha256="") for number, length in enumerate(lengths)]
    manifest = Manifest(
        format_version=Manifest.version,
        tokenizer_name="",
        tokenizer_sha256="",
        vocab_size=300,
        eot_id=0,
        dtype="uint16",
        shard_tokens=20,
        splits={"train": Split(tokens=len(tokens), documents=0, utf8_bytes=0, shards=shards)},
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


def test_the_manifest_s_counts_are_those_of_the_tokens(directory: Path) -> None:
    tokenizer = load_tokenizer(directory / TOKENIZER_DIRECTORY)
    manifest = verify(directory)
    assert manifest.tokenizer_name == "bytes"
    for name, split in manifest.splits.items():
        stream = open_split(directory, name)
        tokens = stream.read(0, len(stream)).tolist()
        text = tokenizer.decode_bytes([token for token in tokens if token != tokenizer.eot_token])
        assert len(text) == split.utf8_bytes
        assert tokens.count(tokenizer.eot_token) == split.documents


def test_a_truncated_shard_is_named_with_its_offset(directory: Path) -> None:
    path = directory / "train_000001.npy"
    path.write_bytes(path.read_bytes()[:-10])
    for check in (lambda: open_split(directory, "train"), lambda: verify(directory)):
        with pytest.raises(UserError, match=r"train_000001\.npy: ends at offset 918, must end at 928"):
            check()


def test_a_missing_shard_is_named(directory: Path) -> None:
    (directory / "val_000000.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"val_000000\.npy"):
        open_split(directory, "val")
    with pytest.raises(UserError, match=r"val_000000\.npy"):
        verify(directory)


def test_a_shard_of_another_dtype_is_named(directory: Path) -> None:
    np.save(directory / "train_000000.npy", np.zeros(400, np.uint32))
    with pytest.raises(UserError, match=r"train_000000\.npy: offset 0: .*uint32 \(400,\)"):
        open_split(directory, "train")
    (directory / "train_000000.npy").write_bytes(b"no header")
    with pytest.raises(UserError, match=r"train_000000\.npy: offset 0: no \.npy header"):
        open_split(directory, "train")


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<u2', 'fortran_order': False, 'shape': (400,",
        "{'descr': '<u2', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '<u2', 'fortran_order': False, 'shape': (99999999999999999999,), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (400,), }",
        "{'descr': '<q9', 'fortran_order': False, 'shape': (400,), }",
        "null",
    ],
)
def test_a_damaged_header_is_named(directory: Path, header: str) -> None:
    size = (len(header) + 1).to_bytes(2, "little")
    content = b"\x93NUMPY\1\0" + size + header.encode() + b"\n" + bytes(800)
    (directory / "train_000000.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"train_000000\.npy: offset 0: "):
        open_split(directory, "train")


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ([], None, "is not what the tokenize stage writes"),
        (["vocab_size"], 2**31, r"vocab_size and eot_id \(2147483648, 256\)"),
        (["eot_id"], 3, r"vocab_size and eot_id \(257, 3\)"),
        (["splits", "train", "tokens"], 3, r"splits\.train\.tokens \(3\)"),
        (["splits", "train", "shards"], [], r"splits\.train\.tokens"),
        (["splits", "train"], {"tokens": 0, "documents": 0, "utf8_bytes": 0, "shards": []}, r"train\.tokens \(0\)"),
        (["splits", "train", "shards", 0, "file"], "train_000001.npy", r"'train_000001\.npy'.* once"),
        (["splits", "train", "shards", 0, "file"], "val_000000.npy", r"'val_000000\.npy'.* once"),
        (["splits", "train", "shards", 0, "file"], "a\nb.npy", r"'a\\nb\.npy'"),
        (["splits", "train", "shards", 0, "file"], "../train_000000.npy", r"'\.\./train_000000\.npy'"),
    ],
)
def test_an_inconsistent_manifest_is_refused(directory: Path, keys: list[Any], value: Any, message: str) -> None:
    path = directory / MANIFEST_FILE
    root: Any = {"manifest": json.loads(path.read_text())}
    *parents, last = ["manifest", *keys]
    target = root
    for key in parents:
        target = target[key]
    target[last] = value
    path.write_text(json.dumps(root["manifest"]))
    for check in (lambda: open_split(directory, "train"), lambda: verify(directory)):
        with pytest.raises(UserError, match=rf"manifest\.json.*{message}"):
            check()


def test_shards_beside_another_tokenizer_are_refused(directory: Path) -> None:
    path = directory / TOKENIZER_DIRECTORY / TOKENIZER_FILE
    TokenizerConfig.read(path).model_copy(update={"sha256": "0" * 64}).write(path)
    with pytest.raises(UserError, match=r"tokenizer/config\.json: sha256 \(000000000000\)"):
        open_split(directory, "train")


def test_a_manifest_of_another_version_is_refused(directory: Path) -> None:
    path = directory / MANIFEST_FILE
    Manifest.read(path).model_copy(update={"format_version": 0}).write(path)
    with pytest.raises(ValueError, match=r"manifest\.json: format_version \(0\)"):
        open_split(directory, "train")


def test_an_id_outside_of_the_vocabulary_is_named_with_its_offset(directory: Path) -> None:
    path = directory / "train_000001.npy"
    content = bytearray(path.read_bytes())
    content[128 + 2 * 7 : 128 + 2 * 7 + 2] = (257).to_bytes(2, "little")
    path.write_bytes(content)
    stream = open_split(directory, "train")
    for check in (lambda: verify(directory), lambda: stream.read(0, len(stream))):
        with pytest.raises(UserError) as error:
            check()
        _, hash_defect, id_defect = str(error.value).splitlines()
        assert "train_000001.npy: sha256" in hash_defect
        assert "train_000001.npy: offset 142: id 257" in id_defect


@pytest.mark.parametrize("key", ["tokens", "documents", "utf8_bytes"])
def test_a_wrong_count_of_the_manifest_is_named(directory: Path, key: str) -> None:
    manifest = Manifest.read(directory / MANIFEST_FILE)
    split = manifest.splits["val"]
    wrong = split.model_copy(update={key: getattr(split, key) + 1})
    manifest.model_copy(update={"splits": manifest.splits | {"val": wrong}}).write(directory / MANIFEST_FILE)
    with pytest.raises(UserError, match=rf"splits\.val\.{key} \({getattr(wrong, key)}\)"):
        verify(directory)
