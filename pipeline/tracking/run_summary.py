"""summary.json: what was trained, on what, how long it took and where it came from."""

import math
import platform
from dataclasses import asdict
from typing import Any

import torch

from pipeline.corpus.shards import Manifest
from pipeline.distributed import Group
from pipeline.machine import cores
from pipeline.model.accounting import parameters
from pipeline.model.config import GPTConfig, ModelParams
from pipeline.tracking.provenance import git_revision
from pipeline.training.hardware import device_name
from pipeline.training.params import TrainParams
from pipeline.training.trainer import Outcome


def run_metrics(outcome: Outcome) -> dict[str, Any]:
    """What `dvc exp show` compares: the numbers of a finished run, as JSON."""
    return {
        "final_train_loss": outcome.final_train_loss if math.isfinite(outcome.final_train_loss) else None,
        "tokens": outcome.tokens,
        "flops": outcome.flops,
        "train_time_s": round(outcome.counters.train_time_s, 2),
        "tokens_per_sec": round(outcome.tokens_per_sec, 1),
        "mfu": None if outcome.mfu is None else round(outcome.mfu, 4),
    }


def run_summary(
    outcome: Outcome, config: GPTConfig, model: ModelParams, train: TrainParams, group: Group, manifest: Manifest
) -> dict[str, Any]:
    """The summary of a finished run, as JSON; the W&B run is for the caller to add."""
    counts = parameters(config)
    counters = outcome.counters
    return {
        "params": {"model": model.model_dump(mode="json"), "train": train.model_dump(mode="json")},
        "parameters": {"total": counts.total, "without_embeddings": counts.without_embeddings},
        "steps": outcome.steps,
        **run_metrics(outcome),
        "wall_time_s": round(counters.wall_time_s, 2),
        "energy_j": None if counters.energy_j is None else round(counters.energy_j),
        "resumes": len(counters.resumed_at),
        "resumed_at": counters.resumed_at,
        "skipped_steps": counters.skipped_steps,
        "spikes": counters.spikes,
        "hardware": {
            "device": group.device.type,
            "device_name": device_name(group.device),
            "world_size": group.world_size,
            "cores": cores(),
            "dtype": str(outcome.dtype).removeprefix("torch."),
            "compile": outcome.compiled,
            "micro_batch_size": outcome.micro_batch_size,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "encoding": {"name": manifest.encoding_name, "vocab_size": manifest.vocab_size},
        "data": {name: split.model_dump(exclude={"shards"}) for name, split in manifest.splits.items()},
        "git": asdict(git_revision()),
    }
