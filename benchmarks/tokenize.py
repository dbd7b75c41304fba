"""How fast, and in how much memory, the tokenize stage works.

    python -m benchmarks.tokenize --tokens 100_000_000 --workers 2

Makes a corpus of made-up prose in a temporary folder and measures, in rounds that alternate so that other load on the
machine falls on all alike:

    one process   `encode_to_numpy` of one document after another, from memory: what tiktoken itself can do
    baseline      one `encode_ordinary` per document through `multiprocessing.Pool.imap(chunksize=16)`, as
                  https://github.com/karpathy/build-nanogpt/blob/master/fineweb.py has it: ids gathered in the parent
    the stage     from parquet to shards in place

The start of processes counts in all. Then the stage runs once over the whole corpus while the memory of its processes
is watched. Speeds are given by the clock and by CPU time, of parent and children together. By the clock they mean
something on an idle machine only; tokens per CPU second stay comparable on a busy one.
"""

import argparse
import multiprocessing
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.corpus import encodings, vocabularies
from pipeline.corpus.encodings import TokenizerParams
from pipeline.corpus.plays import plays
from pipeline.corpus.raw import FORMAT_VERSION, SOURCE_FILE, Document, RawCorpus, texts, write_files
from pipeline.corpus.tokenization import tokenize
from pipeline.log import logger
from pipeline.machine import cores

BYTES_PER_TOKEN = 3.4  # of this corpus under GPT-2's encoding, or a little less
ROUNDS = 3
MB = 2**20


def documents(utf8_bytes: int) -> Iterator[Document]:
    """Made-up prose: speeches of the plays in random order, with rare words and numbers strewn in. 1 to 8 kB each."""
    chance = random.Random(0)
    speeches = [text for _, scenes in plays() for scene in scenes for text in scene.split("\n\n") if len(text) > 40]
    number = 0
    while utf8_bytes > 0:
        parts = chance.choices(speeches, k=chance.randint(5, 35))
        rare = "".join(chance.choices("abcdefghijklmnopqrstuvwxyzé", k=chance.randint(4, 12)))
        text = "\n\n".join(parts).replace(" the ", f" the {rare} ", 4).replace(" a ", f" {chance.randint(0, 9999)} ", 2)
        utf8_bytes -= len(text.encode())
        yield Document(number, text)
        number += 1


def make_raw(directory: Path, utf8_bytes: int) -> Path:
    """A data/raw of that much text."""
    files = write_files(directory, 0, documents(utf8_bytes), val_every=None)
    corpus = RawCorpus(
        format_version=FORMAT_VERSION, origin={}, splits={split: [file] for split, file in files.items()}
    )
    corpus.write(directory / SOURCE_FILE)
    return directory


class Speed(NamedTuple):
    """Tokens per second, by the clock and by the CPU time of this process and its children."""

    clock: float
    cpu: float


def measure(work: Callable[[], int]) -> Speed:
    """The speed of `work`, which returns how many tokens it made and leaves no child running."""
    clock, cpu = time.perf_counter(), sum(os.times()[:4])
    tokens = work()
    return Speed(tokens / (time.perf_counter() - clock), tokens / (sum(os.times()[:4]) - cpu))


def baseline(encoding_directory: Path, raw: Path, workers: int) -> int:
    """Encodes `raw` as build-nanogpt does; returns how many tokens."""
    shard = np.empty(200_000_000, np.uint16)
    with multiprocessing.get_context("spawn").Pool(workers, _load, (encoding_directory,)) as pool:
        end = 0
        for tokens in pool.imap(_encode_ordinary, texts(raw, RawCorpus.read(raw).splits["train"]), chunksize=16):
            shard[end : end + len(tokens)] = tokens
            end += len(tokens)
        pool.close()
        pool.join()
    return end


def _load(directory: Path) -> None:
    global _encoding
    _encoding = encodings.load(directory)


def _encode_ordinary(text: str) -> np.ndarray:
    return np.array([_encoding.eot_token, *_encoding.encode_ordinary(text)]).astype(np.uint16)


def stage(raw: Path, folder: Path, workers: int) -> int:
    """Runs the stage; returns how many tokens."""
    params = TokenizerParams(encoding="gpt2", vocab_size=50_257, training_bytes=None, shard_tokens=10_000_000)
    manifest = tokenize(params, raw, folder / "shards", folder / "runs", workers)
    return sum(split.tokens for split in manifest.splits.values())


@contextmanager
def watch_memory() -> Iterator[dict[int, list[int]]]:
    """Resident bytes of this process (0) and of each child, sampled ten times a second while the block runs."""
    samples: dict[int, list[int]] = {}
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(0.1):
            children = Path(f"/proc/self/task/{threading.main_thread().native_id}/children").read_text().split()
            for pid in ("self", *children):
                try:
                    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                except (FileNotFoundError, ProcessLookupError):
                    continue
                samples.setdefault(0 if pid == "self" else int(pid), []).append(pages * 4096)

    watcher = threading.Thread(target=sample)
    watcher.start()
    try:
        yield samples
    finally:
        ended.set()
        watcher.join()


def median(speeds: list[Speed]) -> Speed:
    return Speed(*(statistics.median(values) for values in zip(*speeds, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and memory of the tokenize stage.")
    parser.add_argument("--tokens", type=int, default=100_000_000, help="of the long run, about")
    parser.add_argument("--round-tokens", type=int, default=20_000_000, help="of each of the rounds, about")
    parser.add_argument("--workers", type=int, default=cores())
    arguments = parser.parse_args()
    workers = arguments.workers
    logger.disabled = True  # the stage's own lines
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoding = vocabularies.gpt2_encoding()
        encodings.save(encoding, folder / "encoding")
        vocabularies.gpt2_encoding = lambda: encoding  # fetched once, outside of what is measured
        small = make_raw(folder / "small", round(arguments.round_tokens * BYTES_PER_TOKEN))
        held = list(texts(small, RawCorpus.read(small).splits["train"]))
        ways: dict[str, Callable[[], int]] = {
            "one process": lambda: sum(len(encoding.encode_to_numpy(text, disallowed_special=())) for text in held),
            "baseline": lambda: baseline(folder / "encoding", small, workers),
            "the stage": lambda: stage(small, folder, workers),
        }
        rounds = [{way: measure(work) for way, work in ways.items()} for _ in range(ROUNDS)]
        speeds = {way: median([found[way] for found in rounds]) for way in ways}
        large = make_raw(folder / "large", round(arguments.tokens * BYTES_PER_TOKEN))
        with watch_memory() as samples:
            speeds["long run"] = measure(lambda: stage(large, folder, workers))
        print(f"{'M tokens a second':20}{'by the clock':>14}{'by CPU time':>14}")
        for way, speed in speeds.items():
            print(f"{way:20}{speed.clock / 1e6:14.2f}{speed.cpu / 1e6:14.2f}")
        one, pool, long = speeds["one process"], speeds["baseline"], speeds["long run"]
        print(f"long run / baseline {long.clock / pool.clock:14.2f}{long.cpu / pool.cpu:14.2f}")
        print(f"long run / ideal    {long.clock / one.clock / workers:14.2f}{long.cpu / one.cpu:14.2f}")
        print(f"(ideal: one process x {workers} workers by the clock; no other work by CPU time)")
        for pid, resident in samples.items():
            quarters = [max(part) / MB for part in np.array_split(np.array(resident), 4) if len(part)]
            shown = ", ".join(f"{quarter:.0f}" for quarter in quarters)
            print(f"memory of {pid or 'the parent'}: at most {shown} MB in the quarters of the run")


if __name__ == "__main__":
    main()
