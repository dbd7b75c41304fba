"""How fast text is generated: against recomputing the whole context, and against what the memory allows.

    python -m benchmarks.generate --tokens 256

Batch 1, greedy, random weights of GPT-2's 124M shape (or `--model`, a model directory). Each new token reads every
weight of the matrices once, so memory bandwidth bounds the speed: printed is the share of it that is used, weight bytes
times tokens/s over a measured streaming read. Recomputing is timed at points along the way and summed.
"""

import argparse
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch

from pipeline.generation.sampler import Settings, stream
from pipeline.model.config import gpt2_config
from pipeline.model.files import load_model
from pipeline.model.gpt import GPT
from pipeline.model.inference import for_inference

READ_BYTES = 2**30  # far beyond any cache
POINTS = 5  # context lengths at which recomputing is timed


def bandwidth(device: torch.device) -> float:
    """Bytes per second of a streaming read over all cores: the best of several sums over a gibibyte."""
    data = torch.ones(READ_BYTES // 8, dtype=torch.int64, device=device)
    data.sum()
    return max(READ_BYTES / seconds(lambda: data.sum(), device) for _ in range(5))


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def weight_bytes(model: GPT, dtype: torch.dtype) -> int:
    """What one token reads: every matrix once, the head too; of an embedding that is not the head, one row."""
    matrices = sum(linear.weight.numel() for linear in model.modules() if isinstance(linear, torch.nn.Linear))
    return matrices * dtype.itemsize


def cached(model: GPT, tokens: int, dtype: torch.dtype, device: torch.device) -> float:
    """Tokens per second with the cache, from a prompt of one token; the best of three."""
    settings = Settings(max_new_tokens=tokens, temperature=0.0, top_k=0, top_p=1.0, seed=1)

    def run() -> None:
        found = sum(1 for _ in stream(for_inference(model, dtype), [[1]], settings, eot_id=-1))
        assert found == tokens

    # A cast to bfloat16 happens once for each call: what generating a text costs has it in.
    return tokens / min(seconds(run, device) for _ in range(3))


@torch.no_grad()
def recomputed(model: GPT, tokens: int, dtype: torch.dtype, device: torch.device) -> float:
    """Tokens per second where each step runs the whole text so far, as nanoGPT's generate does."""
    lengths = torch.linspace(1, tokens, POINTS).round().int().tolist()
    times = []
    for length in lengths:
        idx = torch.ones(1, length, dtype=torch.int64, device=device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            model(idx)
            times.append(min(seconds(lambda idx=idx: model(idx), device) for _ in range(3)))
    return 1 / (sum((a + b) / 2 for a, b in pairwise(times)) / (POINTS - 1))


def main() -> None:
    """Prints one line for each dtype."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model directory; default: random weights of 124M's shape")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(1)
    model = (load_model(args.model) if args.model else GPT(gpt2_config("gpt2"))).to(device).eval()
    read = bandwidth(device)
    print(f"{device}, {torch.get_num_threads()} threads; streaming read {read / 1e9:.1f} GB/s")
    slowest = recomputed(model, args.tokens, torch.float32, device)
    print(f"recomputed, float32: {slowest:.2f} tokens/s")
    for name in args.dtypes:
        dtype = getattr(torch, name)
        rate = cached(model, args.tokens, dtype, device)
        used = rate * weight_bytes(model, dtype) / read
        again = slowest if dtype == torch.float32 else recomputed(model, args.tokens, dtype, device)
        print(
            f"cached, {name}: {rate:.1f} tokens/s, {rate / again:.1f}x recomputing in {name} ({again:.2f}), "
            f"{rate / slowest:.1f}x in float32; {100 * used:.0f}% of the memory's bandwidth"
        )


if __name__ == "__main__":
    main()
