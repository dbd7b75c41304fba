"""Documents to shards of tokens: the same bytes for any number of workers, machines and interruptions.

A row group of data/raw is a unit. Workers encode units, each into a file of its own; the units' lengths then say, by
prefix sums, where every shard begins and ends, and workers cut the shards from the units. All of it is kept in a
working directory that outlives a killed run:

    .runs/tokenize-<fingerprint>/
        encoding/                    trained or fetched once
        units/train-000042.npy       see pipeline.corpus.pieces
        shards-<shard_tokens>/       train_000000.npy ...

The fingerprint is a hash of the documents and of the encoding's parameters: another configuration never meets them.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tiktoken

from pipeline.corpus import cutting, encodings, vocabularies
from pipeline.corpus.encoder import ShardTask, UnitTask, encode_unit, set_up, token_dtype, write_shard
from pipeline.corpus.encodings import TokenizerParams
from pipeline.corpus.pieces import Piece, read_piece
from pipeline.corpus.placing import alone, link_or_copy, sweep, together
from pipeline.corpus.raw import RawCorpus, texts
from pipeline.corpus.records import SplitName
from pipeline.corpus.shards import ENCODING_DIRECTORY, FORMAT_VERSION, MANIFEST_FILE, Manifest, Shard, Split
from pipeline.corpus.workers import Workers
from pipeline.files import atomic_directory
from pipeline.log import logger
from pipeline.progress import Progress

WORK_VERSION = 1  # of the working directory: raise it when units come to be written differently
MOST_BYTES_PER_TOKEN = 8  # of an encoding, on average over text
MOST_VALIDATION_SHARE = 5  # validation tokens are at most a tenth; their text is at most one part in so many


@dataclass(frozen=True)
class Job:
    """What there is to tokenize, and where the work in progress is kept."""

    params: TokenizerParams
    raw: Path
    corpus: RawCorpus
    work: Path

    @classmethod
    def open(cls, params: TokenizerParams, raw: Path, runs: Path) -> "Job":
        """`raw`: data/raw; `runs`: the directory for work in progress, the same for all that work on this together."""
        corpus = RawCorpus.read(raw)
        files = [[file.file, file.sha256, file.row_groups] for split in corpus.splits.values() for file in split]
        rules: list[object] = [WORK_VERSION, files, params.encoding]
        if params.encoding == "bpe":  # shard_tokens says which text is held out, where no documents are
            rules += [params.vocab_size, params.training_bytes, "val" in corpus.splits or params.shard_tokens]
        fingerprint = hashlib.sha256(json.dumps(rules).encode()).hexdigest()[:12]
        return cls(params, raw, corpus, runs / f"tokenize-{fingerprint}")

    def units(self, split: SplitName) -> list[UnitTask]:
        """The split's units in the order of its documents."""
        groups = [
            (self.raw / file.file, group)
            for file in self.corpus.splits.get(split, [])
            for group in range(file.row_groups)
        ]
        return [UnitTask(*group, self.work / "units" / f"{split}-{n:06d}.npy") for n, group in enumerate(groups)]

    @property
    def shards(self) -> Path:
        """Where shards are put until all are there; units serve shards of any size."""
        return self.work / f"shards-{self.params.shard_tokens}"

    @property
    def held_out_bytes(self) -> int:
        """Bytes at the start of the training documents that may become the validation split, so no encoding is trained
        on them."""
        if "val" in self.corpus.splits:
            return 0
        total = self.corpus.utf8_bytes("train")
        return min(MOST_BYTES_PER_TOKEN * self.params.shard_tokens, total // MOST_VALIDATION_SHARE)


def tokenize(params: TokenizerParams, raw: Path, out: Path, runs: Path, workers: int) -> Manifest:
    """Writes the documents of `raw` (data/raw) as shards, manifest and encoding to `out` (data/shards).

    `out` is replaced as a whole. Units that earlier runs or other machines have finished in `runs` are used.

    Raises ValueError, FileNotFoundError, OSError or Stop that names what is bad; finished units stay for the next run.
    """
    job = Job.open(params, raw, runs)
    with alone(job.work):
        encoding = _encoding(job)
        with Workers(workers, set_up, (job.work / ENCODING_DIRECTORY,)) as pool:
            _encode_units(job, pool, [*job.units("train"), *job.units("val")])
            splits = _write_shards(job, pool)
        _check_held_out(job, splits["val"])
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            encoding_name=encoding.name,
            encoding_sha256=encodings.identity(encoding),
            vocab_size=encoding.n_vocab,
            eot_id=encoding.eot_token,
            dtype=token_dtype(encoding),
            shard_tokens=params.shard_tokens,
            splits=splits,
        )
        _put_in_place(job, manifest, out)
        shutil.rmtree(job.work)
    return manifest


def tokenize_part(params: TokenizerParams, raw: Path, runs: Path, workers: int, part: int, parts: int) -> int:
    """Encodes every `parts`-th unit, beginning with unit `part` (1 to `parts`), and leaves it in the working directory.

    For several machines that share `runs`, or whose working directories are copied together before `tokenize` runs on
    one of them. A second run of the same part waits for the first, and `tokenize` waits for every part that runs.
    Returns how many units the part has.
    """
    job = Job.open(params, raw, runs)
    units = [*job.units("train"), *job.units("val")][part - 1 :: parts]
    with together(job.work), alone(job.work / f"part-{part}-of-{parts}"):
        _encoding(job)
        with Workers(workers, set_up, (job.work / ENCODING_DIRECTORY,)) as pool:
            _encode_units(job, pool, units)
    return len(units)


def _encoding(job: Job) -> tiktoken.Encoding:
    """The job's encoding: from its working directory, else trained or fetched and put there."""
    directory = job.work / ENCODING_DIRECTORY
    if not directory.exists():
        if job.params.encoding == "bpe":
            logger.info("tokenize: training an encoding of %d ids", job.params.vocab_size)
            encoding = vocabularies.train_bpe(_training_texts(job), job.params.vocab_size)
        else:
            encoding = encodings.bytes_encoding() if job.params.encoding == "bytes" else vocabularies.gpt2_encoding()
        try:
            with atomic_directory(directory, encodings.FILES) as temporary:
                encodings.save(encoding, temporary)
        except OSError:  # another machine has put the same encoding there meanwhile
            if not directory.exists():
                raise
    return encodings.load(directory)


def _training_texts(job: Job) -> Iterator[str]:
    """The training documents, without the text that may become the validation split, up to `training_bytes`."""
    skip, left = job.held_out_bytes, job.params.training_bytes or float("inf")
    for text in texts(job.raw, job.corpus.splits["train"]):
        if left <= 0:
            return
        size = len(text.encode("utf-8"))
        if skip:  # a document that is only partly held out gives its rest
            text = text.encode("utf-8")[skip:].decode("utf-8", "ignore")
            skip, size = max(0, skip - size), max(0, size - skip)
        left -= size
        if text:
            yield text


def _encode_units(job: Job, pool: Workers, units: list[UnitTask]) -> None:
    """Encodes the units that are not there yet, with a progress bar."""
    there = {unit.target: piece for unit in units if (piece := read_piece(unit.target))}
    missing = [unit for unit in units if unit.target not in there]
    if there:
        logger.info("tokenize: %d of %d units are there from an earlier run", len(there), len(units))
    done = sum(piece.utf8_bytes for piece in there.values())
    share = len(units) / len([*job.units("train"), *job.units("val")])
    total = round((job.corpus.utf8_bytes("train") + job.corpus.utf8_bytes("val")) * share)
    tokens, began = 0, time.monotonic()
    with Progress("tokenize", total=max(total, done), unit="B", start=done) as progress:
        for _, piece in pool.run(encode_unit, missing):
            tokens += piece.tokens
            rate = tokens / (time.monotonic() - began)
            progress.advance(piece.utf8_bytes, tokens=f"{tokens:,}", rate=f"{rate / 1e6:.2f}M tok/s")


def _check_held_out(job: Job, val: Split) -> None:
    """Raises ValueError when the validation split has text that the encoding was trained on."""
    untouched = job.held_out_bytes
    if job.params.encoding == "bpe" and "val" not in job.corpus.splits and val.utf8_bytes > untouched:
        raise ValueError(
            f"data.val_every (null): the validation split has the first {val.utf8_bytes} bytes of text, but the "
            f"encoding was trained on what follows byte {untouched}: a number holds out whole documents"
        )


def _put_in_place(job: Job, manifest: Manifest, out: Path) -> None:
    sweep(out)
    with atomic_directory(out, (MANIFEST_FILE, ENCODING_DIRECTORY, "*.npy")) as directory:
        for split in manifest.splits.values():
            for shard in split.shards:
                link_or_copy(job.shards / shard.file, directory / shard.file)
        for file in sorted((job.work / ENCODING_DIRECTORY).iterdir()):
            link_or_copy(file, directory / ENCODING_DIRECTORY / file.name)
        manifest.write(directory / MANIFEST_FILE)


def _write_shards(job: Job, pool: Workers) -> dict[SplitName, Split]:
    """Cuts the shards of both splits from the units that are all there, and returns what they hold."""
    tasks = _shard_tasks(job)
    pieces = {task.target: piece for task in [*tasks["train"], *tasks["val"]] if (piece := read_piece(task.target))}
    missing = [task for task in [*tasks["train"], *tasks["val"]] if task.target not in pieces]
    pieces |= {task.target: piece for task, piece in pool.run(write_shard, missing)}
    return {name: _split([task.target for task in tasks[name]], pieces) for name in tasks}


def _split(targets: list[Path], pieces: dict[Path, Piece]) -> Split:
    return Split(
        tokens=sum(pieces[target].tokens for target in targets),
        documents=sum(pieces[target].documents for target in targets),
        utf8_bytes=sum(pieces[target].utf8_bytes for target in targets),
        shards=[
            Shard(file=target.name, tokens=pieces[target].tokens, sha256=pieces[target].sha256) for target in targets
        ],
    )


def _shard_tasks(job: Job) -> dict[SplitName, list[ShardTask]]:
    """Each split's shards as spans of units."""
    lengths = {split: _unit_tokens(job, split) for split in job.corpus.splits}
    total, size = sum(lengths["train"]), job.params.shard_tokens
    streams: dict[SplitName, tuple[SplitName, int, int]]  # of a split: in whose units it lies, and from where to where
    if "val" in lengths:
        streams = {"train": ("train", 0, total), "val": ("val", 0, sum(lengths["val"]))}
    else:
        cut = cutting.validation_tokens(total, size)
        if total < 2:
            raise ValueError(f"{job.raw}: {total} token(s) are too few for a training and a validation split")
        streams = {"train": ("train", cut, total), "val": ("train", 0, cut)}
    tasks: dict[SplitName, list[ShardTask]] = {}
    for name, (stream, start, stop) in streams.items():
        units = [unit.target for unit in job.units(stream)]
        tasks[name] = []
        for number, (begin, end) in enumerate(cutting.shard_ranges(start, stop, size)):
            spans = list(cutting.spans(lengths[stream], begin, end))
            first = spans[0].unit  # a task names only the units that it needs
            near = [span._replace(unit=span.unit - first) for span in spans]
            target = job.shards / f"{name}_{number:06d}.npy"
            tasks[name].append(ShardTask(units[first : spans[-1].unit + 1], near, target))
    return tasks


def _unit_tokens(job: Job, split: SplitName) -> list[int]:
    """The lengths of a split's units. Raises ValueError when they hold other documents than data/raw says it has."""
    pieces = [read_piece(unit.target) for unit in job.units(split)]
    found = sum(piece.documents for piece in pieces if piece)
    if None in pieces or found != job.corpus.documents(split):
        raise ValueError(
            f"{job.raw}: its {split} files have {found} documents, but source.json says "
            f"{job.corpus.documents(split)}: run the download stage again"
        )
    return [piece.tokens for piece in pieces if piece]
