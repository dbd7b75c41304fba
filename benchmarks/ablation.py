"""Time of a training step after each step of an ablation: what an ablation's ingredients cost in time.

    python -m benchmarks.ablation docs/experiments/modern-recipe/steps.yaml
    python -m benchmarks.ablation docs/experiments/modern-recipe/steps.yaml model.n_layer=6 model.n_embd=320

The configurations take turns for several rounds, over params.yaml, on the shards of `dvc repro`. Prints, as markdown,
the median time of an optimizer step of each, compilation not included, and its ratio to that of the first.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.train import NEVER, Bench, Size, changed, pipeline_loop, time_in_turns
from pipeline.ablation import read_ablation
from pipeline.config import PARAMS_FILE, load_yaml
from pipeline.corpus.shards import open_split
from pipeline.distributed import device_name
from pipeline.dvc_lock import flat
from pipeline.experiment_queue import combinations
from pipeline.log import logger
from pipeline.model.config import GPTConfig, ModelParams
from pipeline.runtime import RuntimeParams
from pipeline.training.params import TrainParams

SHARDS = Path("data/shards")


def section(params: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The keys of a section of dotted params."""
    return {key.partition(".")[2]: value for key, value in params.items() if key.startswith(f"{name}.")}


def loop(params: Mapping[str, Any], steps: int, device: torch.device, folder: Path) -> Callable[[], float]:
    """Trains with these dotted params; returns steps per second."""
    stream = open_split(SHARDS, "train")
    model = ModelParams(**section(params, "model"))
    train = TrainParams(**{**section(params, "train"), "max_steps": steps})
    runtime = changed(RuntimeParams(**section(params, "runtime")), checkpoint_interval=NEVER, compile="on")
    config = GPTConfig.from_params(model, text_vocab_size=stream.manifest.vocab_size)
    sequences = train.total_batch_size // config.block_size
    bench = Bench(config, Size({}, sequences, 1, steps), stream, device)
    return lambda: pipeline_loop(bench, runtime, train, folder)[0] / bench.step_tokens


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of all steps")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps per round, half of them timed")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    (settings,) = combinations(options.settings)
    params = flat(load_yaml(PARAMS_FILE)) | {key: value for key, (value, _) in settings.items()}
    with tempfile.TemporaryDirectory() as name:
        loops = {
            step: loop({**params, **of_step}, options.steps, device, Path(name))
            for step, of_step in read_ablation(options.file).cumulative().items()
        }
        rates = time_in_turns(loops, options.rounds)
    milliseconds = {step: 1000 / rate for step, rate in rates.items()}
    first = next(iter(milliseconds.values()))
    logger.info("%s\n\n| step | ms per optimizer step | ratio |\n|---|---:|---:|", device_name(device))
    for step, value in milliseconds.items():
        logger.info("| %s | %.1f | %.2f |", step, value, value / first)


if __name__ == "__main__":
    main()
