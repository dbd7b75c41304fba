"""All that is measured on a GPU, in one table: training options, HellaSwag, generation and checkpoints.

    python -m benchmarks.gpu --out gpu.md                      # GPT-2 124M, context 1,024: under 9 minutes on an H100
    python -m benchmarks.gpu --out gpu.md --device cpu --tiny  # a tiny model, to try the command

Random weights and random tokens; nothing is downloaded. Writes the table after each row. A row that fails contains the
error; no row starts after the time budget. Memory is the most that PyTorch had allocated at once.
"""

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.generate import cached
from benchmarks.loader import write_stream
from benchmarks.train import ADAMW, NEVER, Bench, Size, changed, pipeline_loop
from pipeline.config import read_sections
from pipeline.distributed import Group, device_name
from pipeline.evaluation.scoring import Request, score_requests
from pipeline.log import logger
from pipeline.model.accounting import describe, flops_per_token
from pipeline.model.config import GPT2_VOCAB_SIZE, gpt2_config
from pipeline.runtime import RuntimeParams
from pipeline.training.checkpoint import CheckpointStore, collect
from pipeline.training.metrics import peak_flops
from pipeline.training.params import TrainParams
from pipeline.training.trainer import Trainer

COLUMNS = "| measured | result | MFU | memory |\n|---|---:|---:|---:|\n"


@dataclass(frozen=True)
class Scale:
    """How much is computed."""

    size: Size
    stream_tokens: int
    items: int
    """Of HellaSwag."""
    new_tokens: int
    """Per generated text."""


FULL = Scale(Size({}, micro_batch=64, accumulation=2, steps=16), 10_000_000, 2000, 256)
TINY_MODEL = {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 32}
TINY = Scale(Size(TINY_MODEL, micro_batch=8, accumulation=2, steps=2), 10_000, 4, 8)


class Benchmarks:
    """Every measurement. Each returns what its row of the table says: result and MFU."""

    def __init__(self, scale: Scale, device: torch.device, folder: Path) -> None:
        self.scale, self.folder, self.group = scale, folder, Group(0, 1, device)
        config = gpt2_config("gpt2").changed(vocab_size=50304, dropout=0.0, **scale.size.model)
        self.bench = Bench(config, scale.size, write_stream(folder, scale.stream_tokens), device)
        runtime, train = read_sections(RuntimeParams, TrainParams)
        self.runtime = changed(
            runtime,
            micro_batch_size=scale.size.micro_batch,
            dtype="bfloat16",
            attention="sdpa",
            compile="on",
            deterministic=False,
            sharding="ddp",
            activation_checkpointing=False,
            checkpoint_interval=NEVER,
        )
        length = {"total_batch_size": self.bench.step_tokens, "max_steps": scale.size.steps}
        self.train = TrainParams.model_validate({**train.model_dump(), **ADAMW, **length})
        self.rates: dict[str, float] = {}

    def rows(self) -> dict[str, Callable[[], tuple[str, str]]]:
        """Name -> measurement, the most important first."""
        micro_batch = self.scale.size.micro_batch
        small, large = micro_batch // 8, 2 * micro_batch
        base = f"training: bfloat16, compiled, AdamW, micro-batch {micro_batch}"
        deterministic = "training: deterministic"
        options: dict[str, dict[str, Any]] = {
            base: {},
            deterministic: {"deterministic": True},
            "training: Muon": {"optimizer": "muon"},
            f"training: micro-batch {large}": {"micro_batch_size": large},
            "training: activation checkpointing": {"activation_checkpointing": True},
            "training: compile max-autotune": {"compile": "max-autotune"},
            "training: not compiled": {"compile": "off"},
            f"training: micro-batch {small}, attention sdpa": {"micro_batch_size": small},
            f"training: micro-batch {small}, attention eager": {"micro_batch_size": small, "attention": "eager"},
            f"training: float32, micro-batch {micro_batch // 4}": {
                "dtype": "float32",
                "micro_batch_size": micro_batch // 4,
            },
        }
        training = {name: lambda n=name, o=values: self.training(n, **o) for name, values in options.items()}
        return {
            base: training.pop(base),
            deterministic: training.pop(deterministic),
            "cost of determinism: time of a step": lambda: (
                f"x {self.rates[base] / self.rates[deterministic]:.3f}",
                "",
            ),
            "HellaSwag: bfloat16, without rescoring": lambda: self.hellaswag(torch.bfloat16),
            "HellaSwag: float32": lambda: self.hellaswag(torch.float32),
            "generation: bfloat16, batch 1": lambda: self.generation(1),
            "generation: bfloat16, batch 32": lambda: self.generation(32),
            "checkpoint: time that training waits; until it is on the disk": self.checkpoint,
            **training,
        }

    def training(self, name: str, optimizer: str = "adamw", **options: Any) -> tuple[str, str]:
        """Tokens/s of training steps alone."""
        train = self.train.model_copy(update={"optimizer": optimizer})
        rate, _ = pipeline_loop(self.bench, changed(self.runtime, **options), train, self.folder)
        self.rates[name] = rate
        peak = peak_flops(self.bench.device)
        mfu = f"{rate * flops_per_token(self.bench.config) / peak:.1%}" if peak else "unknown"
        return f"{rate:,.0f} tokens/s", mfu

    def hellaswag(self, dtype: torch.dtype) -> tuple[str, str]:
        """Items/s of scoring under both protocols, with random ids in about the lengths of HellaSwag's texts."""
        model = self.bench.model().to(self.bench.device)
        random = np.random.default_rng(0)

        def tokens(low: int, high: int) -> list[int]:
            return random.integers(0, GPT2_VOCAB_SIZE, random.integers(low, high)).tolist()

        requests = [
            Request([tokens(20, 90)], [tokens(10, 38) for _ in range(4)])
            for _ in range(2 * self.scale.items)  # two protocols
        ]

        def score(requests: Sequence[Request]) -> None:
            score_requests(
                model, requests, batch_size=self.runtime.micro_batch_size, dtype=dtype, group=self.group
            )  # returns when the scores are on the host

        score(requests[:2])  # warmup
        began = time.perf_counter()
        score(requests)
        return f"{self.scale.items / (time.perf_counter() - began):,.1f} items/s", ""

    def generation(self, batch: int) -> tuple[str, str]:
        """Tokens/s of all texts together, greedy."""
        model = self.bench.model().to(self.bench.device)
        return f"{cached(model, self.scale.new_tokens, torch.bfloat16, self.bench.device, batch):,.1f} tokens/s", ""

    def checkpoint(self) -> tuple[str, str]:
        """Seconds that saving a checkpoint blocks training, and until it is on the disk: the medians of three."""
        store = CheckpointStore(self.folder / "checkpoints", kept=1)
        runtime, train = changed(self.runtime, compile="off"), self.train.model_copy(update={"max_steps": 1})
        trainer = Trainer(self.bench.model(), self.bench.stream, train, runtime, self.group, store, [], [])
        trainer.run()
        times = []
        for step in range(2, 5):
            began = time.perf_counter()
            store.save(step, collect(trainer.model, trainer.optimizer, self.group), trainer.metrics.state_dict())
            blocked = time.perf_counter() - began
            store.wait()
            times.append((blocked, time.perf_counter() - began))
        waits, written = (statistics.median(values) for values in zip(*times, strict=True))
        return f"{waits:.3f} s; {written:.2f} s", ""


def row(name: str, measure: Callable[[], tuple[str, str]], device: torch.device) -> str:
    """A row of the table, measured in a process that is as new as can be; with the error if the measurement fails."""
    torch.use_deterministic_algorithms(False)
    torch.compiler.reset()  # other shapes would be compiled as dynamic ones
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        result, mfu = measure()
    except Exception as error:
        message = next(iter(str(error).strip().splitlines()), "").replace("|", "/")
        return f"| {name} | {type(error).__name__}: {message[:100]} | | |\n"
    memory = f"{torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB" if device.type == "cuda" else ""
    return f"| {name} | {result} | {mfu} | {memory} |\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="markdown file to write")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the command")
    parser.add_argument("--minutes", type=float, default=7.5, help="after which no row starts (default: 7.5)")
    arguments = parser.parse_args(argv)
    deadline = time.monotonic() + 60 * arguments.minutes
    device = torch.device(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        benchmarks = Benchmarks(TINY if arguments.tiny else FULL, device, Path(folder))
        where = f"{device_name(device)}, PyTorch {torch.__version__}"
        table = f"{where}; {describe(benchmarks.bench.config)}\n\n{COLUMNS}"
        for name, measure in benchmarks.rows().items():
            started = time.monotonic()
            line = row(name, measure, device) if started < deadline else f"| {name} | not run: out of time | | |\n"
            logger.info("%s (%.0f s)", line.strip(), time.monotonic() - started)
            table += line
            arguments.out.write_text(table, encoding="utf-8")
    logger.info("\n%s", table)


if __name__ == "__main__":
    main()
