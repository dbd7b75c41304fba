"""Token shards on disk, and a split of them as one stream.

A directory of shards, `data/shards/` in the pipeline:

    manifest.json                      what is here: see `Manifest`
    train_000000.npy, val_000000.npy   1-D little-endian uint16 (uint32 where the vocabulary needs it), no pickles
    encoding/                          the encoding's files (pipeline.corpus.encodings)

Every document starts with the end-of-text token. A document may run over the end of a shard into the next one: the
shards of a split are one stream, and `TokenStream` reads it as such.

    stream = open_split(Path("data/shards"), "train")
    block = stream.read(start, count)  # (count,) uint16 or uint32
"""

import bisect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.corpus.records import Record, SplitName, read_record
from pipeline.files import read_json, sha256_of

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
ENCODING_DIRECTORY = "encoding"

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


class Shard(Record):
    """One file of tokens."""

    file: str
    """Its name in the directory."""

    tokens: int
    """How many it holds; at least 1."""

    sha256: str
    """Of the whole file, 64 hexadecimal digits."""


class Split(Record):
    """The shards of one split, in the stream's order."""

    tokens: int
    """Of all shards, end-of-text tokens included."""

    documents: int
    """Documents that begin in the split: its end-of-text tokens."""

    utf8_bytes: int
    """Bytes of UTF-8 text that the tokens decode to; an end-of-text token is no text. For bits per byte."""

    shards: list[Shard]


class Manifest(Record):
    """What a directory of shards holds."""

    format_version: int
    encoding_name: str
    encoding_sha256: str
    """Of the encoding's content: pipeline.corpus.encodings.identity."""

    vocab_size: int
    """Ids are 0 to vocab_size - 1."""

    eot_id: int
    """The end-of-text token's id."""

    dtype: Literal["uint16", "uint32"]
    shard_tokens: int
    """Tokens in every shard but the last of a split."""

    splits: dict[SplitName, Split]

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """Reads `directory/manifest.json`. Raises FileNotFoundError, or ValueError that says what to do."""
        return read_record(directory / MANIFEST_FILE, cls, FORMAT_VERSION, "tokenize")


class TokenStream:
    """A memory-mapped view of a split as one sequence of tokens, whatever its cuts into shards.

    stream = TokenStream(directory, manifest, "val")
    len(stream)           # tokens
    stream.read(0, 1024)  # (1024,) a copy, uint16 or uint32
    """

    def __init__(self, directory: Path, manifest: Manifest, split: SplitName) -> None:
        """Maps the split's files after checking that each is as long as the manifest says."""
        self.directory, self.manifest, self.split = directory, manifest, split
        shards = manifest.splits[split].shards
        self._shards = [_map(directory / shard.file, shard.tokens, manifest.dtype) for shard in shards]
        self._ends = np.cumsum([shard.tokens for shard in shards], dtype=np.int64).tolist()

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.manifest.dtype)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, start: int, count: int) -> Tokens:
        """A copy of the tokens [start, start + count).  # (count,)

        Raises IndexError outside the stream: blocks are counted by the caller, so this is a bug and not bad data.
        Raises ValueError as `verify` does where an id is outside the vocabulary.
        """
        if not 0 <= start <= start + count <= len(self):
            raise IndexError(f"tokens [{start}, {start + count}) of a {self.split} split of {len(self)}")
        out = np.empty(count, self.dtype)
        done = 0
        shard = bisect.bisect_right(self._ends, start)
        while done < count:
            begin = start + done - (self._ends[shard - 1] if shard else 0)
            piece = self._shards[shard][begin : begin + count - done]
            out[done : done + len(piece)] = piece
            done += len(piece)
            shard += 1
        if count and out.max() >= self.manifest.vocab_size:
            verify(self.directory)
        return out


def open_split(directory: Path, split: SplitName) -> TokenStream:
    """Opens a split of `directory` after the checks that cost nothing: header and length of every file, and that the
    encoding beside the shards is the one that they were written with.

    Raises FileNotFoundError or ValueError that names the file, and the offset where a file is cut off.
    """
    manifest = Manifest.read(directory)
    if split not in manifest.splits:
        raise ValueError(f"{directory / MANIFEST_FILE}: no split {split!r}, only {', '.join(manifest.splits)}")
    encoding = directory / ENCODING_DIRECTORY / "encoding.json"
    if (found := read_json(encoding).get("sha256")) != manifest.encoding_sha256:
        raise ValueError(
            f"{encoding}: encoding {str(found)[:12]} is not the one that the shards were written with, "
            f"{manifest.encoding_name} {manifest.encoding_sha256[:12]}: run the tokenize stage again"
        )
    return TokenStream(directory, manifest, split)


def verify(directory: Path) -> Manifest:
    """Reads every byte of every shard and checks it against the manifest: length, sha256, id range, counts.

    Raises ValueError with one line for each mistake; a line names the file, and the byte offset of the first wrong id.
    """
    manifest = Manifest.read(directory)
    mistakes: list[str] = []
    for name in manifest.splits:
        mistakes += _mistakes_of_split(directory, manifest, name)
    if mistakes:
        raise ValueError(f"{directory} is damaged, {len(mistakes)} mistake(s):\n" + "\n".join(mistakes))
    return manifest


def _mistakes_of_split(directory: Path, manifest: Manifest, name: SplitName) -> Iterator[str]:
    split = manifest.splits[name]
    documents, sound = 0, True
    for index, shard in enumerate(split.shards):
        path = directory / shard.file
        try:
            tokens = _map(path, shard.tokens, manifest.dtype)
        except (ValueError, FileNotFoundError) as error:
            yield f"  {error}"
            sound = False
            continue
        documents += int(np.count_nonzero(tokens == manifest.eot_id))
        if shard.sha256 != sha256_of(path):
            yield f"  {path}: sha256 differs from the manifest's"
            sound = False
        if int(tokens.max()) >= manifest.vocab_size:
            first = int(np.argmax(tokens >= manifest.vocab_size))
            yield (
                f"  {path}: offset {_offset(tokens, first)}: id {tokens[first]} is outside the vocabulary of "
                f"{manifest.encoding_name} ({manifest.vocab_size})"
            )
        if index < len(split.shards) - 1 and shard.tokens != manifest.shard_tokens:
            yield f"  {path}: {shard.tokens} tokens, but every shard before the last has {manifest.shard_tokens}"
    if (total := sum(shard.tokens for shard in split.shards)) != split.tokens:
        yield f"  {directory / MANIFEST_FILE}: splits.{name}.tokens ({split.tokens}) must be its shards' sum ({total})"
    if sound and documents != split.documents:
        yield f"  {directory / MANIFEST_FILE}: splits.{name}.documents ({split.documents}), but {documents} begin here"


def _offset(tokens: Tokens, index: int) -> int:
    """Where in its file a memory-mapped token lies, in bytes."""
    assert isinstance(tokens, np.memmap)
    return int(tokens.offset) + index * tokens.itemsize


def _map(path: Path, tokens: int, dtype: str) -> Tokens:
    """Maps a shard read-only. Raises FileNotFoundError, or ValueError that names the file and the offset."""
    if not path.exists():
        raise FileNotFoundError(f"{path} not found, but the manifest lists it: run the tokenize stage again")
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            shape, fortran, found = np.lib.format.read_array_header_1_0(file)
        except ValueError as error:
            raise ValueError(f"{path}: offset 0: no .npy header: {error}") from None
        offset = file.tell()
    if version != (1, 0) or fortran or found != np.dtype(dtype).newbyteorder("<") or shape != (tokens,):
        raise ValueError(
            f"{path}: offset 0: the header says {found} {shape}, the manifest {dtype} ({tokens},): "
            "run the tokenize stage again"
        )
    size, expected = path.stat().st_size, offset + tokens * found.itemsize
    if size != expected:
        raise ValueError(
            f"{path}: ends at offset {size}, must at {expected} ({tokens} tokens): fetch or write it again"
        )
    mapped: Tokens = np.memmap(path, found, mode="r", offset=offset, shape=shape)
    return mapped
