"""Speed and memory of the tokenize stage.

    python -m benchmarks.tokenize --tokens 100_000_000 --workers 2

Makes up a corpus of prose in a temporary folder and compares, in alternating rounds, so that other load on the machine
affects all alike:

    one process   `encode_to_numpy` of one document after another, from memory: tiktoken's own speed
    baseline      one `encode_ordinary` per document through `multiprocessing.Pool.imap(chunksize=16)`, ids gathered in
                  the parent, as in https://github.com/karpathy/build-nanogpt/blob/master/fineweb.py
    stage         from parquet files to shards

All include the start of their processes. Then the stage runs once over the whole corpus while the memory of its
processes is sampled. Speeds are per second of wall time and of CPU time, of parent and children together. Wall times
are only meaningful on an idle machine; tokens per CPU second can be compared on a busy one.
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

from pipeline.artifacts import SOURCE_FILE, RawCorpus
from pipeline.corpus import tokenization, vocabularies
from pipeline.corpus.documents import Document, read_texts, write_documents
from pipeline.corpus.params import TokenizerParams
from pipeline.corpus.shakespeare import scenes_by_play
from pipeline.corpus.tokenization import tokenize
from pipeline.corpus.tokenizer import load_tokenizer, save_tokenizer
from pipeline.log import logger
from pipeline.runtime import cores

BYTES_PER_TOKEN = 3.4  # of this corpus with GPT-2's tokenizer
ROUNDS = 3
MB = 2**20


def documents(utf8_bytes: int) -> Iterator[Document]:
    """Speeches of Shakespeare in random order, with rare words and numbers mixed in. 1 to 8 kB each."""
    rng = random.Random(0)
    speeches = [
        text for _, scenes in scenes_by_play() for scene in scenes for text in scene.split("\n\n") if len(text) > 40
    ]
    number = 0
    while utf8_bytes > 0:
        parts = rng.choices(speeches, k=rng.randint(5, 35))
        rare = "".join(rng.choices("abcdefghijklmnopqrstuvwxyzé", k=rng.randint(4, 12)))
        text = "\n\n".join(parts).replace(" the ", f" the {rare} ", 4).replace(" a ", f" {rng.randint(0, 9999)} ", 2)
        utf8_bytes -= len(text.encode())
        yield Document(number, text)
        number += 1


def make_raw(directory: Path, utf8_bytes: int) -> Path:
    """Writes a data/raw with about that much text."""
    files = write_documents(directory, 0, documents(utf8_bytes), val_every=None)
    corpus = RawCorpus(
        format_version=RawCorpus.version, origin={}, splits={split: [file] for split, file in files.items()}
    )
    corpus.write(directory / SOURCE_FILE)
    return directory


class Speed(NamedTuple):
    """Tokens per second of wall time, and of CPU time of this process and its children."""

    wall: float
    cpu: float


def measure(work: Callable[[], int]) -> Speed:
    """The speed of `work`, which returns its number of tokens and leaves no child running."""
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    tokens = work()
    return Speed(tokens / (time.perf_counter() - wall), tokens / (sum(os.times()[:4]) - cpu))


def read_training_texts(raw: Path) -> Iterator[str]:
    return read_texts(raw, RawCorpus.read(raw / SOURCE_FILE).splits["train"])


def baseline(tokenizer_directory: Path, raw: Path, workers: int) -> int:
    """Encodes `raw` as build-nanogpt does; returns the number of tokens."""
    shard = np.empty(200_000_000, np.uint16)
    with multiprocessing.get_context("spawn").Pool(workers, _load, (tokenizer_directory,)) as pool:
        end = 0
        for tokens in pool.imap(_encode_ordinary, read_training_texts(raw), chunksize=16):
            shard[end : end + len(tokens)] = tokens
            end += len(tokens)
        pool.close()
        pool.join()
    return end


def _load(directory: Path) -> None:
    global _tokenizer
    _tokenizer = load_tokenizer(directory)


def _encode_ordinary(text: str) -> np.ndarray:
    return np.array([_tokenizer.eot_token, *_tokenizer.encode_ordinary(text)]).astype(np.uint16)


def stage(raw: Path, folder: Path, workers: int) -> int:
    """Runs the stage; returns the number of tokens."""
    params = TokenizerParams(
        encoding="gpt2",
        vocab_size=50_257,
        training_bytes=None,
        chat_template="{role}{content}<|end|>",  # of no use for texts
        shard_tokens=10_000_000,
    )
    manifest = tokenize(params, raw, folder / "shards", folder / "runs", workers)
    return sum(split.tokens for split in manifest.splits.values())


@contextmanager
def sample_memory() -> Iterator[dict[int, list[int]]]:
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

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def median(speeds: list[Speed]) -> Speed:
    return Speed(*(statistics.median(values) for values in zip(*speeds, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokenize", description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=100_000_000, help="of the long run, approximately")
    parser.add_argument("--round-tokens", type=int, default=20_000_000, help="of each round, approximately")
    parser.add_argument("--workers", type=int, default=cores())
    arguments = parser.parse_args()
    workers = arguments.workers
    logger.disabled = True  # the stage's own lines
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = vocabularies.gpt2_tokenizer()
        save_tokenizer(tokenizer, folder / "tokenizer")
        tokenization.gpt2_tokenizer = lambda: tokenizer  # downloaded once, and not measured
        small = make_raw(folder / "small", round(arguments.round_tokens * BYTES_PER_TOKEN))
        texts = list(read_training_texts(small))
        methods: dict[str, Callable[[], int]] = {
            "one process": lambda: sum(len(tokenizer.encode_to_numpy(text, disallowed_special=())) for text in texts),
            "baseline": lambda: baseline(folder / "tokenizer", small, workers),
            "stage": lambda: stage(small, folder, workers),
        }
        rounds = [{method: measure(work) for method, work in methods.items()} for _ in range(ROUNDS)]
        speeds = {method: median([speeds[method] for speeds in rounds]) for method in methods}
        large = make_raw(folder / "large", round(arguments.tokens * BYTES_PER_TOKEN))
        with sample_memory() as samples:
            speeds["long run"] = measure(lambda: stage(large, folder, workers))
        print(f"{'M tokens per second':20}{'wall time':>14}{'CPU time':>14}")
        for method, speed in speeds.items():
            print(f"{method:20}{speed.wall / 1e6:14.2f}{speed.cpu / 1e6:14.2f}")
        one, pool, long = speeds["one process"], speeds["baseline"], speeds["long run"]
        print(f"{'long run / baseline':20}{long.wall / pool.wall:14.2f}{long.cpu / pool.cpu:14.2f}")
        print(f"{'long run / ideal':20}{long.wall / one.wall / workers:14.2f}{long.cpu / one.cpu:14.2f}")
        print(f"(ideal: one process x {workers} workers in wall time; no other work in CPU time)")
        for pid, resident in samples.items():
            quarters = [max(part) / MB for part in np.array_split(np.array(resident), 4) if len(part)]
            peaks = ", ".join(f"{quarter:.0f}" for quarter in quarters)
            print(f"memory of {pid or 'the parent'}: peaks of {peaks} MB in the quarters of the run")


if __name__ == "__main__":
    main()
