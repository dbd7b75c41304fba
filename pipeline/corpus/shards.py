"""Token shards on disk. A split's shards are read as one stream of tokens.

A directory of shards, `data/shards/` in the pipeline:

    manifest.json                      Manifest: tokens and hash of each shard
    train_000000.npy, val_000000.npy   1-D little-endian uint16 (uint32 where the vocabulary needs it), no pickles
    train_000000.mask.npy              of conversations: 1-D uint8, the bits COUNTS and STARTS of each token
    tokenizer/                         the tokenizer's files (pipeline.corpus.tokenizer)

Every document starts with the end-of-text token. A document can continue in the next shard. Without masks, every token
counts in the loss.

    stream = open_split(Path("data/shards"), "train")
    block = stream.read(start, count)  # (count,) uint16 or uint32
    mask = stream.mask(start, count)  # (count,) uint8
"""

import bisect
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.artifacts import MANIFEST_FILE, STARTS, Manifest, SplitName
from pipeline.corpus.tokenizer import (
    END_OF_TEXT,
    TOKENIZER_DIRECTORY,
    TOKENIZER_FILE,
    TokenizerConfig,
    load_tokenizer,
    token_byte_lengths,
)
from pipeline.files import parsing, sha256_of
from pipeline.log import UserError

VERIFY_TOKENS = 2**20  # at a time, to bound the memory

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
T = TypeVar("T", bound=np.generic)


class TokenStream:
    """A memory-mapped view of a split as one sequence of tokens; its length is their number."""

    def __init__(self, directory: Path, manifest: Manifest, split: SplitName) -> None:
        """Maps the split's files. Raises FileNotFoundError, or UserError for a file of another length or dtype."""
        self.directory, self.manifest, self.split = directory, manifest, split
        shards = manifest.splits[split].shards
        self._shards = [_map(directory / shard.file, shard.tokens, manifest.dtype) for shard in shards]
        self.has_mask = any(shard.mask_sha256 for shard in shards)
        masked = shards if self.has_mask else []
        self._masks = [_map(mask_file(directory / shard.file), shard.tokens, "uint8") for shard in masked]
        self._ends = np.cumsum([shard.tokens for shard in shards], dtype=np.int64).tolist()

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.manifest.dtype)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, start: int, count: int) -> Tokens:
        """A copy of the tokens [start, start + count).  # (count,)

        Raises IndexError outside of the stream, and UserError like `verify` for an id outside of the vocabulary.
        """
        out = self._copy(self._shards, start, np.empty(count, self.dtype))
        if count and out.max() >= self.manifest.vocab_size:
            verify(self.directory)
        return out

    def mask(self, start: int, count: int) -> npt.NDArray[np.uint8]:
        """Of the same tokens, where the split has masks, the bits COUNTS and STARTS.  # (count,)"""
        return self._copy(self._masks, start, np.empty(count, np.uint8))

    @cached_property
    def document_starts(self) -> npt.NDArray[np.int64]:
        """By the masks, the index of each document's first token; also 0, where the split begins inside a document."""
        starts = [np.zeros(1, np.int64)]
        for begin in range(0, len(self), VERIFY_TOKENS):
            mask = self.mask(begin, min(VERIFY_TOKENS, len(self) - begin))
            starts.append(begin + np.flatnonzero(mask & STARTS))
        return np.unique(np.concatenate(starts))

    def _copy(self, shards: Sequence[npt.NDArray[T]], start: int, out: npt.NDArray[T]) -> npt.NDArray[T]:
        """Fills `out` from index `start` of shards on; returns it. Raises IndexError."""
        count = len(out)
        if not 0 <= start <= start + count <= len(self):
            raise IndexError(f"tokens [{start}, {start + count}) of a {self.split} split of {len(self)}")
        done = 0
        shard = bisect.bisect_right(self._ends, start)
        while done < count:
            begin = start + done - (self._ends[shard - 1] if shard else 0)
            chunk = shards[shard][begin : begin + count - done]
            out[done : done + len(chunk)] = chunk
            done += len(chunk)
            shard += 1
        return out


def open_split(directory: Path, split: SplitName) -> TokenStream:
    """Opens a split after cheap checks: header and length of every file, and the tokenizer beside the shards.

    Raises FileNotFoundError, or UserError that names the file, and the offset where a file is truncated.
    """
    manifest = _read_manifest(directory)
    if split not in manifest.splits:
        raise UserError(f"{directory / MANIFEST_FILE}: no split {split!r}, only {', '.join(manifest.splits)}")
    return TokenStream(directory, manifest, split)


def verify(directory: Path) -> Manifest:
    """Reads every byte of every shard and checks lengths, sha256, ids and counts against the manifest.

    Raises FileNotFoundError, or UserError with one line per defect: the file, and the offset of the first wrong id.
    """
    manifest = _read_manifest(directory)
    byte_lengths = token_byte_lengths(load_tokenizer(directory / TOKENIZER_DIRECTORY))
    defects = [defect for split in manifest.splits for defect in _defects(directory, manifest, split, byte_lengths)]
    if defects:
        raise UserError(f"{directory} is damaged, {len(defects)} defect(s):\n  " + "\n  ".join(defects))
    return manifest


def _read_manifest(directory: Path) -> Manifest:
    """The manifest, after checks that it is consistent, and made with the tokenizer beside it. Raises UserError."""
    path, config_path = directory / MANIFEST_FILE, directory / TOKENIZER_DIRECTORY / TOKENIZER_FILE
    manifest, config = Manifest.read(path), TokenizerConfig.read(config_path)
    if config.sha256 != manifest.tokenizer_sha256:
        raise UserError(
            f"{config_path}: sha256 ({config.sha256[:12]}) must be that of the shards' tokenizer "
            f"{manifest.tokenizer_name} ({manifest.tokenizer_sha256[:12]}): run the tokenize stage again"
        )
    ids, expected = (manifest.vocab_size, manifest.eot_id), (config.n_vocab, config.special_tokens.get(END_OF_TEXT))
    if ids != expected:
        raise UserError(f"{path}: vocab_size and eot_id {ids} must be those of {config_path}, {expected}")
    names = Counter(shard.file for split in manifest.splits.values() for shard in split.shards)
    for name, count in names.items():
        if Path(name).name != name or not name.isprintable() or count > 1:
            raise UserError(f"{path}: shard {name!r} must be the name of a file in {directory}, and listed once")
    for name, split in manifest.splits.items():
        if split.tokens < 1 or split.tokens != sum(shard.tokens for shard in split.shards):
            raise UserError(f"{path}: splits.{name}.tokens ({split.tokens}) must be the sum of its shards, at least 1")
    return manifest


def _defects(
    directory: Path, manifest: Manifest, name: SplitName, byte_lengths: npt.NDArray[np.int64]
) -> Iterator[str]:
    split, manifest_path = manifest.splits[name], directory / MANIFEST_FILE
    documents = utf8_bytes = 0
    readable = True
    for index, shard in enumerate(split.shards):
        path = directory / shard.file
        try:
            tokens = _map(path, shard.tokens, manifest.dtype)
            mask = _map(mask_file(path), shard.tokens, "uint8") if shard.mask_sha256 else None
        except (UserError, FileNotFoundError) as error:
            yield str(error)
            readable = False
            continue
        if shard.sha256 != sha256_of(path):
            yield f"{path}: sha256 differs from the manifest's"
            readable = False
        if shard.mask_sha256 and shard.mask_sha256 != sha256_of(mask_file(path)):
            yield f"{mask_file(path)}: sha256 differs from the manifest's"
            readable = False
        for begin in range(0, len(tokens), VERIFY_TOKENS):
            chunk = tokens[begin : begin + VERIFY_TOKENS]
            if chunk.max() >= manifest.vocab_size:
                wrong = int(np.argmax(chunk >= manifest.vocab_size))
                offset = path.stat().st_size - (len(tokens) - begin - wrong) * tokens.itemsize
                yield (
                    f"{path}: offset {offset}: id {chunk[wrong]} is outside the vocabulary of "
                    f"{manifest.tokenizer_name} ({manifest.vocab_size})"
                )
                readable = False
                break
            is_start = chunk == manifest.eot_id if mask is None else mask[begin : begin + VERIFY_TOKENS] & STARTS
            documents += int(np.count_nonzero(is_start))
            utf8_bytes += int(byte_lengths[chunk].sum())
        if index < len(split.shards) - 1 and shard.tokens != manifest.shard_tokens:
            yield f"{path}: {shard.tokens} tokens, but every shard before the last has {manifest.shard_tokens}"
    if readable and documents != split.documents:
        yield f"{manifest_path}: splits.{name}.documents ({split.documents}), but its shards have {documents}"
    if readable and utf8_bytes != split.utf8_bytes:
        yield f"{manifest_path}: splits.{name}.utf8_bytes ({split.utf8_bytes}), but its tokens decode to {utf8_bytes}"


def mask_file(shard: Path) -> Path:
    """The mask beside a shard, or a token file.

    >>> mask_file(Path("train_000000.npy")).name
    'train_000000.mask.npy'
    """
    return shard.with_suffix(".mask.npy")


def _map(path: Path, tokens: int, dtype: str) -> npt.NDArray[Any]:
    """Maps a shard or its mask read-only. Raises FileNotFoundError, or UserError that names the file and the offset."""
    if not path.exists():
        raise FileNotFoundError(f"{path} not found, but the manifest lists it: run the tokenize stage again")
    with path.open("rb") as file:
        with parsing(f"{path}: offset 0: no .npy header"):
            version = np.lib.format.read_magic(file)
            shape, fortran_order, file_dtype = np.lib.format.read_array_header_1_0(file)
        offset = file.tell()
    if version != (1, 0) or fortran_order or file_dtype != np.dtype(dtype).newbyteorder("<") or shape != (tokens,):
        raise UserError(
            f"{path}: offset 0: the header says {file_dtype} {shape}, the manifest {dtype} ({tokens},): "
            "run the tokenize stage again"
        )
    size, expected = path.stat().st_size, offset + tokens * file_dtype.itemsize
    if size != expected:
        raise UserError(f"{path}: ends at offset {size}, must end at {expected} ({tokens} tokens): restore the file")
    mapped: npt.NDArray[Any] = np.memmap(path, file_dtype, mode="r", offset=offset, shape=shape)
    return mapped
