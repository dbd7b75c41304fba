"""Speed of the training loop beside a plain loop over the same model, and the cost of checkpoints.

    python -m benchmarks.train                    # 6 layers of 384, context 256, on a CPU
    python -m benchmarks.train --size gpt2        # GPT-2 124M at context 1,024, on a GPU
    python -m benchmarks.train --peer ../nanoGPT  # beside nanoGPT's model too

The loops take turns for several rounds, training the same model on a shard of random tokens. Prints, as markdown, the
median tokens per second of each in training steps alone, compilation and checkpoints not included; then the wall time
that checkpoints add to the pipeline's loop, and its share where runtime.checkpoint_interval is null. `--peer` is a
directory whose model.py has nanoGPT's GPT and GPTConfig; the plain loop trains its model. Float32 is strict in all
loops, not TF32.
"""

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.loader import write_stream
from pipeline.config import read_sections
from pipeline.corpus.shards import TokenStream
from pipeline.distributed import Group, autocast_dtype, device_name
from pipeline.log import logger
from pipeline.model.accounting import describe, flops_per_token
from pipeline.model.config import GPTConfig, gpt2_config
from pipeline.model.gpt import GPT
from pipeline.runtime import RuntimeParams
from pipeline.training.checkpoint import CheckpointStore
from pipeline.training.metrics import Row, StepClock, peak_flops
from pipeline.training.params import TrainParams
from pipeline.training.trainer import CHECKPOINT_SECONDS, Probe, Trainer

NEVER = 10**9
PLAIN_COMPILED = "plain loop: compiled, float32"
ADAMW = {"optimizer": "adamw", "max_lr": 1e-4, "schedule": "constant", "warmup_steps": 0}  # as in the plain loop


@dataclass(frozen=True)
class Size:
    """A model and how it is trained."""

    model: dict[str, Any]
    micro_batch: int
    """Sequences."""
    accumulation: int
    """Micro-batches per step."""
    steps: int
    """Optimizer steps per round."""


SIZES = {
    "small": Size({"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256}, 8, 2, 12),
    "gpt2": Size({}, 64, 8, 20),
}


@dataclass(frozen=True)
class Bench:
    """The model, data and device of all loops."""

    config: GPTConfig
    size: Size
    stream: TokenStream
    device: torch.device

    @property
    def step_tokens(self) -> int:
        """Tokens of an optimizer step."""
        return self.size.micro_batch * self.size.accumulation * self.config.block_size

    def model(self) -> GPT:
        """A new model, the same each time."""
        torch.manual_seed(0)
        return GPT(self.config)


def peer_model(bench: Bench, directory: Path) -> nn.Module:
    """A new model of nanoGPT's class in `directory`/model.py, of the same size."""
    spec = importlib.util.spec_from_file_location("peer_model", directory / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["peer_model"] = importlib.util.module_from_spec(spec)  # the compiler looks it up
    spec.loader.exec_module(module)
    names = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
    torch.manual_seed(0)
    return module.GPT(module.GPTConfig(**{name: getattr(bench.config, name) for name in names}))


def plain_loop(bench: Bench, build: Callable[[], nn.Module], dtype: torch.dtype, compiled: bool) -> float:
    """Tokens/s of a minimal loop, as in nanoGPT's train.py: batches from random positions, autocast to `dtype`.

    `build`: a new model, whose forward returns the loss, or as nanoGPT's the logits and the loss.
    """
    torch.use_deterministic_algorithms(False)
    model = build().to(bench.device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=bench.device.type == "cuda"
    )
    network = torch.compile(model) if compiled else model

    def step() -> None:
        for _ in range(bench.size.accumulation):
            inputs, targets = next(batches)
            with torch.autocast(bench.device.type, dtype, enabled=dtype != torch.float32):
                output = network(inputs, targets)
            loss = output[1] if isinstance(output, tuple) else output
            (loss / bench.size.accumulation).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    batches = _random_batches(bench)
    step()
    clock = StepClock(bench.device)
    clock.start()
    for _ in range(bench.size.steps):
        step()
    return bench.size.steps * bench.step_tokens / clock.stop()


def _random_batches(bench: Bench) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    length, count = bench.config.block_size, bench.size.micro_batch
    while True:
        starts = torch.randint(len(bench.stream) - length - 1, (count,)).tolist()
        rows = torch.stack([torch.from_numpy(bench.stream.read(s, length + 1).astype("int64")) for s in starts])
        if bench.device.type == "cuda":
            rows = rows.pin_memory()
        rows = rows.to(bench.device, non_blocking=True)
        yield rows[:, :-1].contiguous(), rows[:, 1:].contiguous()  # nanoGPT takes a view of the targets


def pipeline_loop(bench: Bench, runtime: RuntimeParams, train: TrainParams, folder: Path) -> tuple[float, float]:
    """Tokens/s of the pipeline's loop in steps alone, and the seconds from its first step to its last checkpoint.

    The first half of the steps warms up and does not count in tokens/s. Raises RuntimeError if compiling fails.
    """
    marks: list[tuple[int, float, float]] = []  # step, seconds in steps, time

    def mark(_model: GPT, step: int) -> Row:
        marks.append((step, trainer.metrics.clock.elapsed, time.perf_counter()))
        return {}

    with tempfile.TemporaryDirectory(dir=folder) as state:
        store, group = CheckpointStore(Path(state), runtime.checkpoints_kept), Group(0, 1, bench.device)
        probes = [Probe(bench.size.steps // 2, mark)]  # also before the first step, and after the last
        trainer = Trainer(bench.model(), bench.stream, train, runtime, group, store, [], probes)
        trainer.run()
        ended = time.perf_counter()
    if runtime.compile in ("on", "max-autotune") and not trainer.compiled:
        raise RuntimeError("compiling failed")
    (_, _, began), (half, warmup, _), *_, (steps, seconds, _) = marks
    return (steps - half) * bench.step_tokens / (seconds - warmup), ended - began


def time_in_turns(loops: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median over the rounds of what each loop returns. Taking turns, a busy machine slows all of them alike."""
    results: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(rounds):
        for name, loop in loops.items():
            results[name].append(loop())
            logger.info("round %d of %d: %s %s", number + 1, rounds, name, f"{results[name][-1]:,.1f}")
    return {name: statistics.median(values) for name, values in results.items()}


def speeds(
    bench: Bench, runtime: RuntimeParams, train: TrainParams, rounds: int, folder: Path, peer: Path | None
) -> None:
    """Prints the speed of each loop, and its ratio to the plain compiled one's."""

    def plain(build: Callable[[], nn.Module], dtype: torch.dtype, compiled: bool) -> Callable[[], float]:
        return lambda: plain_loop(bench, build, dtype, compiled)

    def pipeline(**changes: Any) -> Callable[[], float]:
        return lambda: pipeline_loop(bench, changed(runtime, checkpoint_interval=NEVER, **changes), train, folder)[0]

    best = autocast_dtype("auto", bench.device)
    fast = str(best).removeprefix("torch.")
    loops: dict[str, Callable[[], float]] = {
        "plain loop: eager, float32": plain(bench.model, torch.float32, False),
        PLAIN_COMPILED: plain(bench.model, torch.float32, True),
        "pipeline: eager, float32": pipeline(compile="off", dtype="float32", deterministic=False),
        "pipeline: compiled, float32": pipeline(compile="on", dtype="float32", deterministic=False),
        f"pipeline: compiled, {fast}": pipeline(compile="on", dtype="auto", deterministic=False),
        f"pipeline: compiled, {fast}, deterministic": pipeline(compile="on", dtype="auto", deterministic=True),
    }
    if peer:
        for dtype in (torch.float32, torch.bfloat16):
            name = f"{peer.resolve().name}: compiled, {str(dtype).removeprefix('torch.')}"
            loops[name] = plain(lambda: peer_model(bench, peer), dtype, True)
    rates = time_in_turns(loops, rounds)
    flops, peak = flops_per_token(bench.config), peak_flops(bench.device)
    logger.info("\n| loop | tokens/s | ratio | MFU |\n|---|---:|---:|---:|")
    for name, rate in rates.items():
        mfu = f"{rate * flops / peak:.1%}" if peak else "unknown"
        logger.info("| %s | %s | %.2f | %s |", name, f"{rate:,.0f}", rate / rates[PLAIN_COMPILED], mfu)


def checkpoint_cost(bench: Bench, runtime: RuntimeParams, train: TrainParams, rounds: int, folder: Path) -> None:
    """Prints what a checkpoint adds to the wall time, in seconds and in percent of the time between two."""
    interval = max(bench.size.steps // 3, 1)

    def seconds(every: int) -> Callable[[], float]:
        execution = changed(runtime, checkpoint_interval=every, compile="on", dtype="auto")
        return lambda: pipeline_loop(bench, execution, train, folder)[1]

    # Both save after the last step, as every run does.
    loops = {"seconds, saving at the end": seconds(NEVER), f"seconds, saving every {interval} steps": seconds(interval)}
    rare, often = time_in_turns(loops, rounds).values()
    saves = (bench.size.steps - 1) // interval
    each = (often - rare) / saves
    share = 100 * each / CHECKPOINT_SECONDS
    logger.info("\na checkpoint adds %.2f s; at one every %.0f s that is %.2f %%", each, CHECKPOINT_SECONDS, share)


def changed(runtime: RuntimeParams, **values: Any) -> RuntimeParams:
    """The params with `values` in place of their own, validated."""
    return RuntimeParams.model_validate({**runtime.model_dump(), **values})


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--micro-batch", type=int, help="sequences (default: the size's)")
    parser.add_argument("--steps", type=int, help="per round, at least 2 (default: the size's)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", type=Path, help="a checkout of nanoGPT, to train its model too")
    arguments = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = SIZES[arguments.size]
    sizes = {"micro_batch": arguments.micro_batch, "steps": arguments.steps}
    size = replace(size, **{name: number for name, number in sizes.items() if number})
    config = gpt2_config("gpt2").changed(vocab_size=50304, dropout=0.0, **size.model)
    runtime, train = read_sections(RuntimeParams, TrainParams)
    runtime = changed(runtime, micro_batch_size=size.micro_batch)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench = Bench(config, size, write_stream(folder, 10_000_000), device)
        train = TrainParams.model_validate(
            {**train.model_dump(), **ADAMW, "total_batch_size": bench.step_tokens, "max_steps": size.steps}
        )
        logger.info("%s: %s; micro-batch %d\n", device_name(device), describe(config), size.micro_batch)
        speeds(bench, runtime, train, arguments.rounds, folder, arguments.peer)
        checkpoint_cost(bench, runtime, train, arguments.rounds, folder)


if __name__ == "__main__":
    main()
