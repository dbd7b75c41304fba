"""Turns documents into token shards, byte-identical for any number of workers, machines or interruptions.

Workers encode the row groups of data/raw, each into a token file. Prefix sums over the token files' lengths give the
shard boundaries, and workers then copy the shards from the token files. Work in progress survives a kill in

    .runs/tokenize-<fingerprint>/
        tokenizer/                       trained, downloaded or copied once
        row_groups/train-000042.npy ...  see pipeline.corpus.token_files
        shards-<shard_tokens>/           train_000000.npy ...

The fingerprint is a hash of the documents and of the tokenizer's parameters, so that no two
configurations share a directory.
"""

import bisect
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import tiktoken

from pipeline.artifacts import MANIFEST_FILE, SOURCE_FILE, Manifest, RawCorpus, Shard, Split, SplitName
from pipeline.corpus.chat import with_special_tokens
from pipeline.corpus.documents import holds_conversations, read_texts
from pipeline.corpus.params import TokenizerParams
from pipeline.corpus.shards import mask_file
from pipeline.corpus.token_files import (
    RowGroupTask,
    ShardTask,
    Span,
    TokenFile,
    encode_row_group,
    load_worker_tokenizer,
    read_token_file,
    token_dtype,
    write_shard,
)
from pipeline.corpus.tokenizer import (
    TOKENIZER_DIRECTORY,
    TOKENIZER_FILES,
    bytes_tokenizer,
    fingerprint,
    load_tokenizer,
    save_tokenizer,
)
from pipeline.corpus.vocabularies import gpt2_tokenizer, stored_tokenizer, train_bpe
from pipeline.corpus.workers import Workers
from pipeline.files import atomic_directory, exclusive_lock, link_or_copy, remove_directory, sha256_of, shared_lock
from pipeline.log import UserError, logger
from pipeline.progress import Progress

WORK_VERSION = 1  # of the work in progress: raise it if token files change for the same documents and parameters
OUTPUT_FILES = (MANIFEST_FILE, TOKENIZER_DIRECTORY, "*.npy")
VALIDATION_DIVISOR = 10  # the first shard is for validation, but never more than a tenth of the tokens
# BPE training must skip the validation shard before its size in bytes is known, so it skips an upper bound:
MAX_BYTES_PER_TOKEN = 8  # average over the shard
HELD_OUT_DIVISOR = 5  # but never more than a fifth of the text


@dataclass(frozen=True)
class Job:
    """A corpus to tokenize, and the directory of its work in progress."""

    params: TokenizerParams
    raw: Path
    corpus: RawCorpus
    work: Path
    chat_template: str | None
    """Of conversations; None for texts."""

    @classmethod
    def open(cls, params: TokenizerParams, raw: Path, runs: Path) -> "Job":
        """`raw`: data/raw. `runs`: the directory for work in progress, shared by all machines that work on this job.

        Raises FileNotFoundError, or UserError that names a file of documents that is damaged or was edited, or a
        tokenizer that cannot be read.
        """
        corpus = RawCorpus.read(raw / SOURCE_FILE)
        files = [[file.file, file.sha256, file.row_groups] for split in corpus.splits.values() for file in split]
        for file, sha256, _ in files:
            if sha256_of(raw / str(file)) != sha256:
                raise UserError(f"{raw / str(file)}: sha256 differs from {SOURCE_FILE}'s: run the download stage again")
        kinds = {holds_conversations(raw / str(file)) for file, _, _ in files}
        if len(kinds) > 1:
            raise UserError(f"{raw}: has both texts and conversations, must have one of them")
        rules: list[object] = [WORK_VERSION, files, params.encoding]
        if params.encoding == "bpe":  # without val documents, shard_tokens decides which text is held out
            rules += [params.vocab_size, params.training_bytes, "val" in corpus.splits or params.shard_tokens]
        elif params.encoding not in ("bytes", "gpt2"):
            rules.append(fingerprint(stored_tokenizer(params.encoding)))
        chat_template = params.chat_template if True in kinds else None
        if chat_template:
            rules.append(chat_template)
        work = runs / f"tokenize-{hashlib.sha256(json.dumps(rules).encode()).hexdigest()[:12]}"
        return cls(params, raw, corpus, work, chat_template)

    def row_groups(self, split: SplitName) -> list[RowGroupTask]:
        """The split's row groups in the order of its documents."""
        groups = [
            (self.raw / file.file, group)
            for file in self.corpus.splits.get(split, [])
            for group in range(file.row_groups)
        ]
        directory = self.work / "row_groups"
        return [RowGroupTask(*group, directory / f"{split}-{number:06d}.npy") for number, group in enumerate(groups)]

    @property
    def tokenizer(self) -> Path:
        return self.work / TOKENIZER_DIRECTORY

    @property
    def shards(self) -> Path:
        """The directory for shards until all are written. Shards of any size are copied from the same token files."""
        return self.work / f"shards-{self.params.shard_tokens}"

    @property
    def held_out_bytes(self) -> int:
        """Bytes at the start of the training documents, possibly for validation, that BPE training skips."""
        if "val" in self.corpus.splits:
            return 0
        total = self.corpus.utf8_bytes("train")
        return min(MAX_BYTES_PER_TOKEN * self.params.shard_tokens, total // HELD_OUT_DIVISOR)


def tokenize(params: TokenizerParams, raw: Path, out: Path, runs: Path, workers: int) -> Manifest:
    """Writes the documents of `raw` (data/raw) as shards, manifest and tokenizer to `out` (data/shards).

    `out` is replaced as a whole. Token files that earlier runs or other machines have left in `runs` are used.
    Raises UserError or OSError that names the cause. Finished token files are kept for the next run.
    """
    job = Job.open(params, raw, runs)
    with exclusive_lock(job.work):
        tokenizer = _tokenizer(job)
        with Workers(workers, load_worker_tokenizer, (job.tokenizer,)) as pool:
            _encode(job, pool, [*job.row_groups("train"), *job.row_groups("val")])
            splits = _write_shards(job, pool)
        _check_held_out(job, splits["val"])
        manifest = Manifest(
            format_version=Manifest.version,
            tokenizer_name=tokenizer.name,
            tokenizer_sha256=fingerprint(tokenizer),
            vocab_size=tokenizer.n_vocab,
            eot_id=tokenizer.eot_token,
            dtype=token_dtype(tokenizer),
            shard_tokens=params.shard_tokens,
            splits=splits,
        )
        with atomic_directory(out, OUTPUT_FILES) as directory:
            for split in splits.values():
                for shard in split.shards:
                    link_or_copy(job.shards / shard.file, directory / shard.file)
                    if shard.mask_sha256:
                        mask = mask_file(Path(shard.file))
                        link_or_copy(job.shards / mask, directory / mask)
            for file in sorted(job.tokenizer.iterdir()):
                link_or_copy(file, directory / TOKENIZER_DIRECTORY / file.name)
            manifest.write(directory / MANIFEST_FILE)
        remove_directory(job.work)
    return manifest


def tokenize_part(params: TokenizerParams, raw: Path, runs: Path, workers: int, part: int, parts: int) -> int:
    """Encodes every `parts`-th row group, starting with number `part` (from 1); leaves the token files in `runs`.

    For several machines that share `runs`, or whose work is copied together before `tokenize` runs on one of them. A
    second run of the same part waits for the first, and `tokenize` waits for every running part.
    Returns the number of row groups of this part.
    """
    job = Job.open(params, raw, runs)
    row_groups = [*job.row_groups("train"), *job.row_groups("val")][part - 1 :: parts]
    with shared_lock(job.work), exclusive_lock(job.work / f"part-{part}-of-{parts}"):
        _tokenizer(job)
        with Workers(workers, load_worker_tokenizer, (job.tokenizer,)) as pool:
            _encode(job, pool, row_groups)
    return len(row_groups)


def _tokenizer(job: Job) -> tiktoken.Encoding:
    """The job's tokenizer, trained, downloaded or read by the first run that needs it, or if its files are damaged."""
    with suppress(UserError, FileNotFoundError):
        return load_tokenizer(job.tokenizer)
    match job.params.encoding:
        case "bpe":
            logger.info("tokenize: training a BPE tokenizer with %d ids", job.params.vocab_size)
            tokenizer = train_bpe(_training_texts(job), job.params.vocab_size)
        case "gpt2":
            tokenizer = gpt2_tokenizer()
        case "bytes":
            tokenizer = bytes_tokenizer()
        case name:
            tokenizer = stored_tokenizer(name)
    extends = None
    if job.chat_template:
        base, tokenizer = tokenizer, with_special_tokens(tokenizer, job.chat_template)
        extends = fingerprint(base) if tokenizer is not base else None
    try:
        with atomic_directory(job.tokenizer, TOKENIZER_FILES) as temporary:
            save_tokenizer(tokenizer, temporary, job.chat_template, extends)
    except OSError:  # another machine may have written the same tokenizer in the meantime
        if not job.tokenizer.exists():
            raise
    return load_tokenizer(job.tokenizer)


def _training_texts(job: Job) -> Iterator[str]:
    """The texts of the training documents after the held-out bytes, up to `training_bytes`."""
    skip, left = job.held_out_bytes, job.params.training_bytes or float("inf")
    for text in read_texts(job.raw, job.corpus.splits["train"]):
        if left <= 0:
            return
        size = len(text.encode("utf-8"))
        if skip:  # the rest of a partly held-out document is used
            text = text.encode("utf-8")[skip:].decode("utf-8", "ignore")
            skip, size = max(0, skip - size), max(0, size - skip)
        left -= size
        if text:
            yield text


def _check_held_out(job: Job, val: Split) -> None:
    """Raises UserError if the tokenizer was trained on text of the validation split."""
    held_out = job.held_out_bytes
    if job.params.encoding == "bpe" and "val" not in job.corpus.splits and val.utf8_bytes > held_out:
        raise UserError(
            f"data.val_every (null): the validation split is the first {val.utf8_bytes} bytes of text, but the "
            f"tokenizer was trained on the text after byte {held_out}: set a number to hold out whole documents"
        )


def _encode(job: Job, pool: Workers, row_groups: list[RowGroupTask]) -> None:
    """Encodes the row groups that have no token file yet."""
    finished = {task: record for task in row_groups if (record := read_token_file(task.target))}
    if finished:
        logger.info("tokenize: %d of %d row groups are already encoded", len(finished), len(row_groups))
    done = sum(record.utf8_bytes for record in finished.values())
    share = len(row_groups) / len([*job.row_groups("train"), *job.row_groups("val")])
    total = round((job.corpus.utf8_bytes("train") + job.corpus.utf8_bytes("val")) * share)
    tokens = 0
    with Progress("tokenize", total=max(total, done), unit="B", start=done) as progress:
        for _, record in pool.run(encode_row_group, [task for task in row_groups if task not in finished]):
            tokens += record.tokens
            progress.advance(record.utf8_bytes, tokens=f"{tokens:,}")


def _write_shards(job: Job, pool: Workers) -> dict[SplitName, Split]:
    """Writes the missing shards and returns the record of each split."""
    targets: dict[SplitName, list[Path]] = {}
    records: dict[Path, TokenFile] = {}
    missing: list[ShardTask] = []
    for split, tasks in _shard_tasks(job).items():
        targets[split] = [task.target for task in tasks]
        for task in tasks:
            record = read_token_file(task.target)
            if record and record.is_intact(task.target):
                records[task.target] = record
            else:
                missing.append(task)
    records |= {task.target: record for task, record in pool.run(write_shard, missing)}
    return {split: _split_record({path: records[path] for path in paths}) for split, paths in targets.items()}


def _split_record(files: Mapping[Path, TokenFile]) -> Split:
    return Split(
        tokens=sum(file.tokens for file in files.values()),
        documents=sum(file.documents for file in files.values()),
        utf8_bytes=sum(file.utf8_bytes for file in files.values()),
        counted=sum(counts) if (counts := [f.counted for f in files.values() if f.counted is not None]) else None,
        shards=[
            Shard(file=path.name, tokens=file.tokens, sha256=file.sha256, mask_sha256=file.mask_sha256)
            for path, file in files.items()
        ],
    )


def _shard_tasks(job: Job) -> dict[SplitName, list[ShardTask]]:
    lengths = {split: _token_counts(job, split) for split in job.corpus.splits}
    total, size = sum(lengths["train"]), job.params.shard_tokens
    ranges: dict[SplitName, tuple[SplitName, int, int]]  # split -> its tokens [start, stop) in the documents of a split
    if "val" in lengths:
        ranges = {"train": ("train", 0, total), "val": ("val", 0, sum(lengths["val"]))}
    elif total < 2:
        raise UserError(f"{job.raw}: {total} token(s) are too few for a training and a validation split")
    else:
        cut = validation_tokens(total, size)
        ranges = {"train": ("train", cut, total), "val": ("train", 0, cut)}
    tasks: dict[SplitName, list[ShardTask]] = {}
    for split, (source, start, stop) in ranges.items():
        paths = [task.target for task in job.row_groups(source)]
        tasks[split] = [
            ShardTask(list(spans(paths, lengths[source], begin, end)), job.shards / f"{split}_{number:06d}.npy")
            for number, (begin, end) in enumerate(shard_ranges(start, stop, size))
        ]
    return tasks


def _token_counts(job: Job, split: SplitName) -> list[int]:
    """The length of each token file. Raises UserError if the number of documents is not that in source.json."""
    records = [record for task in job.row_groups(split) if (record := read_token_file(task.target))]
    documents = sum(record.documents for record in records)
    if len(records) != len(job.row_groups(split)) or documents != job.corpus.documents(split):
        raise UserError(
            f"{job.raw}: the {split} files have {documents} documents, but {SOURCE_FILE} says "
            f"{job.corpus.documents(split)}: run the download stage again"
        )
    return [record.tokens for record in records]


def validation_tokens(total: int, shard_tokens: int) -> int:
    """The number of tokens at the start that are for validation if no documents are held out.

    The first shard, as in https://github.com/karpathy/build-nanogpt, but never more than a tenth of the tokens.
    """
    return min(shard_tokens, max(1, total // VALIDATION_DIVISOR))


def shard_ranges(start: int, stop: int, shard_tokens: int) -> list[tuple[int, int]]:
    """Divides the tokens [start, stop) of a stream into shards of `shard_tokens`; the last may be smaller.

    >>> shard_ranges(10, 35, 10)
    [(10, 20), (20, 30), (30, 35)]
    """
    return [(begin, min(begin + shard_tokens, stop)) for begin in range(start, stop, shard_tokens)]


def spans(paths: Sequence[Path], lengths: Sequence[int], start: int, stop: int) -> Iterator[Span]:
    """The parts of token files that hold the tokens [start, stop) of a stream; file i has `lengths[i]` tokens.

    >>> [tuple(span) for span in spans(["a", "b", "c"], [4, 0, 6], 2, 7)]
    [('a', 2, 4), ('c', 0, 3)]
    """
    ends = list(accumulate(lengths))
    index = bisect.bisect_right(ends, start)
    while start < stop:
        offset = ends[index] - lengths[index]
        end = min(stop, ends[index])
        if end > start:
            yield Span(paths[index], start - offset, end - offset)
        start, index = end, index + 1
