"""Generation speed, against recomputing the whole context and against the memory bandwidth.

    python -m benchmarks.generate --tokens 256

Batch 1, greedy, random weights of GPT-2's 124M shape (or `--model`, a model directory). Each new token reads every
matrix once, so memory bandwidth bounds the speed. Printed is the share of it that is used: weight bytes times tokens/s
over a measured streaming read. Recomputation is timed at a few context lengths and integrated.
"""

import argparse
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch

from pipeline.artifacts import SampleSettings
from pipeline.generation.sampling import stream
from pipeline.inference import for_inference
from pipeline.model.config import gpt2_config
from pipeline.model.gpt import GPT
from pipeline.model_directory import load_model

READ_BYTES = 2**30  # far larger than any cache
POINTS = 5  # context lengths at which recomputation is timed


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Wall time of one call, the best of `repeats`."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times)


def bandwidth(device: torch.device) -> float:
    """Bytes per second of a streaming read over all cores."""
    data = torch.ones(READ_BYTES // 8, dtype=torch.int64, device=device)
    return READ_BYTES / seconds(data.sum, device, repeats=6)


def weight_bytes(model: GPT, dtype: torch.dtype) -> int:
    """Bytes that one token reads: every matrix once, the head included; of a separate embedding, only one row."""
    matrices = sum(linear.weight.numel() for linear in model.modules() if isinstance(linear, torch.nn.Linear))
    return matrices * dtype.itemsize


def cached(model: GPT, tokens: int, dtype: torch.dtype, device: torch.device, batch: int = 1) -> float:
    """Tokens per second of all `batch` texts with the cache, from a prompt of one token, casting the weights included.

    Each text grows by `tokens`.
    """
    settings = SampleSettings(max_new_tokens=tokens, temperature=0.0, top_k=0, top_p=1.0, seed=1)

    def generate() -> None:
        for _ in stream(for_inference(model, dtype), [[1]], settings, eot_id=-1, samples_per_prompt=batch):
            pass

    return batch * tokens / seconds(generate, device, repeats=3)


@torch.no_grad()
def recomputed(model: GPT, tokens: int, dtype: torch.dtype, device: torch.device) -> float:
    """Tokens per second where each step runs the whole text so far, as nanoGPT's generate does."""
    times = []
    for length in torch.linspace(1, tokens, POINTS).round().int().tolist():
        idx = torch.ones(1, length, dtype=torch.int64, device=device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            model(idx)
            times.append(seconds(lambda idx=idx: model(idx), device, repeats=3))
    return 1 / (sum((a + b) / 2 for a, b in pairwise(times)) / (POINTS - 1))


def main() -> None:
    """Measures and prints one line per dtype."""
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
    in_float32 = recomputed(model, args.tokens, torch.float32, device)
    print(f"recomputed, float32: {in_float32:.2f} tokens/s")
    for name in args.dtypes:
        dtype = getattr(torch, name)
        rate = cached(model, args.tokens, dtype, device)
        used = rate * weight_bytes(model, dtype) / read
        in_dtype = in_float32 if dtype == torch.float32 else recomputed(model, args.tokens, dtype, device)
        print(
            f"cached, {name}: {rate:.1f} tokens/s, {rate / in_dtype:.1f}x recomputation in {name} ({in_dtype:.2f}), "
            f"{rate / in_float32:.1f}x in float32; {100 * used:.0f}% of the memory bandwidth"
        )


if __name__ == "__main__":
    main()
