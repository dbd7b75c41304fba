"""How long the loader reads for a step of GPT-2 124M, beside how long the step takes.

    python -m benchmarks.loader --step-ms 142

Steps of 524,288 tokens in blocks of 1,024, shuffled over a shard of random tokens in a temporary folder, in one thread.
`--step-ms` is a step's time: 142 ms is that of 8 x H100 at 40 % of their peaks (python -m pipeline plan --recipe
gpt2-124m --ranks 8: 3.70 M tokens/s). The next step is read while one is computed, so what is printed is what it would
cost if it were not.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from pipeline.artifacts import Manifest, Shard, Split
from pipeline.config import read_sections
from pipeline.corpus.shards import TokenStream
from pipeline.distributed import Group
from pipeline.model.config import GPT2_VOCAB_SIZE
from pipeline.runtime import RuntimeParams
from pipeline.training.data_loader import Loader
from pipeline.training.params import TrainParams

BLOCK, TOTAL_BATCH, MICRO_BATCH = 1024, 524_288, 64
STEPS = 20


def write_stream(directory: Path, tokens: int) -> TokenStream:
    """A training split of one shard of random ids."""
    ids = np.random.default_rng(0).integers(0, GPT2_VOCAB_SIZE, tokens, dtype=np.uint16)
    np.save(directory / "train_000000.npy", ids)
    shard = Shard(file="train_000000.npy", tokens=tokens, sha256="")
    split = Split(tokens=tokens, documents=0, utf8_bytes=0, shards=[shard])
    manifest = Manifest(
        format_version=Manifest.version,
        tokenizer_name="gpt2",
        tokenizer_sha256="",
        vocab_size=GPT2_VOCAB_SIZE,
        eot_id=GPT2_VOCAB_SIZE - 1,
        dtype="uint16",
        shard_tokens=tokens,
        splits={"train": split},
    )
    return TokenStream(directory, manifest, "train")


def seconds_of_a_read(stream: TokenStream, ranks: int) -> float:
    """The median time in which one of `ranks` ranks reads its share of a step."""
    train, runtime = read_sections(TrainParams, RuntimeParams)
    train = train.model_copy(update={"total_batch_size": TOTAL_BATCH, "shuffle": True})
    runtime = runtime.model_copy(update={"micro_batch_size": MICRO_BATCH})
    loader = Loader(stream, BLOCK, train, runtime, Group(0, ranks, torch.device("cpu")))
    times = []
    for step in range(STEPS):
        began = time.perf_counter()
        loader._read(step)
        times.append(time.perf_counter() - began)
    loader.close()
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=8, help="that share the step (default: 8)")
    parser.add_argument("--step-ms", type=float, default=142, help="a step's time in milliseconds (default: 142)")
    parser.add_argument("--tokens", type=int, default=50_000_000, help="of the stream (default: 50 million)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        took = 1e3 * seconds_of_a_read(write_stream(Path(folder), arguments.tokens), arguments.ranks)
    share = took / arguments.step_ms
    print(f"a rank of {arguments.ranks} reads its share of a step in {took:.2f} ms, {share:.2%} of the step")


if __name__ == "__main__":
    main()
