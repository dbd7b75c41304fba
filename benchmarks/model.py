"""Time of one training step (forward, backward, AdamW) with each option of the model, relative to GPT-2's choices.

    python -m benchmarks.model                    # a small model, on the GPU if there is one, else on the CPU
    python -m benchmarks.model --size gpt2 --micro-batch 16 --compile

The options are timed in turns, so that a busy machine slows all of them alike. Reported is the fastest of the repeats,
because disturbances only ever make a step slower. Prints a markdown table.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from pipeline.distributed import autocast, autocast_dtype
from pipeline.log import logger
from pipeline.model.accounting import parameters
from pipeline.model.config import GPTConfig, gpt2_config
from pipeline.model.gpt import ATTENTION, GPT

SIZES: dict[str, dict[str, Any]] = {
    "small": {"n_layer": 4, "n_head": 4, "n_embd": 256, "block_size": 128, "vocab_size": 4096, "text_vocab_size": 4096},
    "gpt2": {"vocab_size": 50304},
}
GATED = {"mlp_expansion": 2.667}  # keeps the parameter count
OPTIONS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "position sinusoidal": {"position": "sinusoidal"},
    "position rope": {"position": "rope"},
    "position alibi": {"position": "alibi"},
    "norm rmsnorm": {"norm": "rmsnorm"},
    "norm_placement post": {"norm_placement": "post"},
    "mlp gelu": {"mlp": "gelu"},
    "mlp relu": {"mlp": "relu"},
    "mlp relu_squared": {"mlp": "relu_squared"},
    "mlp swiglu, 8/3": {"mlp": "swiglu", **GATED},
    "mlp geglu, 8/3": {"mlp": "geglu", **GATED},
    "n_kv_head 1": {"n_kv_head": 1},
    "qk_norm": {"qk_norm": True},
    "bias false": {"bias": False},
    "dropout 0.1": {"dropout": 0.1},
    "tie_embeddings false": {"tie_embeddings": False},
    "rope, rmsnorm, swiglu, no bias": {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "bias": False, **GATED},
}


KERNELS = {f"attention {kernel}": kernel for kernel in ("sdpa", "eager")}  # same function, same model


def training_step(
    config: GPTConfig, kernel: str, micro_batch: int, device: torch.device, dtype: torch.dtype, compiled: bool
) -> Callable[[], None]:
    """A function that runs one step on a fixed batch of `micro_batch` sequences and waits until it has finished."""
    torch.manual_seed(0)
    model = GPT(config).to(device)
    for block in model.transformer.h:
        block.attn.attend = ATTENTION[kernel]
    compiled_model = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    idx = torch.randint(0, config.text_vocab_size, (micro_batch, config.block_size), device=device)

    def step() -> None:
        with autocast(device, dtype):
            loss = compiled_model(idx, idx)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def fastest_times(steps: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Seconds of the fastest repeat of each step, after two warmup runs."""
    for step in steps.values():
        step()
        step()
    fastest = dict.fromkeys(steps, float("inf"))
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            fastest[name] = min(fastest[name], time.perf_counter() - start)
    return fastest


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--micro-batch", type=int, default=16, help="sequences (default: 16)")
    parser.add_argument("--block-size", type=int, help="context (default: the size's)")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--only", nargs="*", default=[], help="options whose name contains one of these words")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = autocast_dtype("auto", device)
    base = gpt2_config("gpt2").changed(**SIZES[arguments.size])
    if arguments.block_size:
        base = base.changed(block_size=arguments.block_size)
    names = [n for n in (*OPTIONS, *KERNELS) if n == "gpt2" or any(word in n for word in arguments.only or [""])]
    configs = {name: base.changed(**OPTIONS.get(name, {})) for name in names}
    steps = {
        name: training_step(config, KERNELS.get(name, "auto"), arguments.micro_batch, device, dtype, arguments.compile)
        for name, config in configs.items()
    }
    fastest = fastest_times(steps, arguments.repeats)
    compiled = "compiled" if arguments.compile else "not compiled"
    logger.info("%s, %s, %s, micro-batch %d, %s\n", arguments.size, device, dtype, arguments.micro_batch, compiled)
    logger.info("| option | parameters | ms per step | ratio |\n|---|---:|---:|---:|")
    for name, seconds in fastest.items():
        count, ratio = parameters(configs[name]).total, seconds / fastest["gpt2"]
        logger.info("| %s | %s | %.1f | %.2f |", name, f"{count:,}", 1000 * seconds, ratio)


if __name__ == "__main__":
    main()
