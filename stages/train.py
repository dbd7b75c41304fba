"""Trains the model: `python -m pipeline.launch stages.train`, on every visible GPU or on the CPU's cores.

Reads data/shards and data/hellaswag. Writes data/model (weights, config, encoding) and, in reports/train, curves.csv
(one row per step), metrics.json (what experiments are compared by) and summary.json (what the report tells). Unfinished
work is kept under .runs/ and taken up by the same command.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from pipeline import distributed
from pipeline.config import PARAMS_FILE, load_yaml, read_sections
from pipeline.corpus import encodings
from pipeline.corpus.shards import ENCODING_DIRECTORY, Manifest, open_split
from pipeline.distributed import Group
from pipeline.files import write_json
from pipeline.log import clear_errors, logger
from pipeline.model.accounting import describe
from pipeline.model.config import ModelParams
from pipeline.model.files import save_model
from pipeline.model.gpt import GPT
from pipeline.model.initial import initial_model
from pipeline.probes import choice_columns, training_probes
from pipeline.progress import format_duration
from pipeline.runs import run_directory
from pipeline.runtime import RuntimeParams
from pipeline.tracking.curves import Curves
from pipeline.tracking.params import TrackingParams
from pipeline.tracking.run_summary import run_metrics, run_summary
from pipeline.tracking.wandb_run import WandbRun, training_run
from pipeline.training.checkpoint import CheckpointStore
from pipeline.training.params import TrainParams
from pipeline.training.run_state import fingerprint, finish, locked, remove_recorded
from pipeline.training.trainer import Outcome, Recorder, Trainer

SHARDS, HELLASWAG, MODEL = Path("data/shards"), Path("data/hellaswag"), Path("data/model")
REPORTS = Path("reports/train")
CURVES, METRICS, SUMMARY = REPORTS / "curves.csv", REPORTS / "metrics.json", REPORTS / "summary.json"


def main() -> None:
    """Trains, then writes the outputs; the run's state is kept until they are recorded."""
    model, train, runtime, tracking = read_sections(ModelParams, TrainParams, RuntimeParams, TrackingParams)
    inputs = fingerprint("train", {"model": model.model_dump(), "train": train.model_dump()})
    state = run_directory(f"train-{inputs}")
    milestones = run_directory(f"milestones-{inputs}")
    store = CheckpointStore(state / "checkpoints", runtime.checkpoints_kept, milestones, runtime.milestone_interval)
    with distributed.start(runtime.collective_timeout) as group:
        if not group.is_main:
            run_training(model, train, runtime, group, store, recorders=[])
            return
        remove_recorded(state.parent)
        with locked(state):
            curves = Curves(state / "curves.csv", CURVES, extra_columns=choice_columns(HELLASWAG))
            wandb_run = training_run(state, tracking, load_yaml(PARAMS_FILE), inputs, curves)
            try:
                trained, outcome = run_training(model, train, runtime, group, store, [curves, wandb_run])
            except BaseException as error:
                wandb_run.finish(exit_code=getattr(error, "exit_code", 1))
                raise
            write_outputs(trained, outcome, model, train, group, wandb_run)
            finish(state, SUMMARY)


def run_training(
    model_params: ModelParams,
    train: TrainParams,
    runtime: RuntimeParams,
    group: Group,
    store: CheckpointStore,
    recorders: Sequence[Recorder],
) -> tuple[GPT, Outcome]:
    """The model trained to the end, on this rank of the group."""
    stream = open_split(SHARDS, "train")
    encoding = encodings.load(SHARDS / ENCODING_DIRECTORY)
    torch.manual_seed(train.seed)  # the same first weights on every rank
    model = initial_model(model_params, encoding.n_vocab, encodings.identity(encoding))
    logger.info("model: %s", describe(model.config))
    probes = training_probes(train, runtime, group, encoding, SHARDS, HELLASWAG)
    trainer = Trainer(model, stream, train, runtime, group, store, recorders, probes)
    logger.info(
        "data: %s tokens, %.2f epochs in %d steps of %d tokens (micro-batches: %d of %d x %d on each of %d rank(s))",
        f"{len(stream):,}",
        train.max_steps * train.total_batch_size / len(stream),
        train.max_steps,
        train.total_batch_size,
        trainer.loader.micro_batches,
        trainer.loader.micro_batch_size,
        model.config.block_size,
        group.world_size,
    )
    outcome = trainer.run()
    return trainer.model, outcome


def write_outputs(
    trained: GPT, outcome: Outcome, model: ModelParams, train: TrainParams, group: Group, wandb_run: WandbRun
) -> None:
    """The model directory and the summary; the curves are there already."""
    save_model(MODEL, trained, SHARDS / ENCODING_DIRECTORY)
    summary = run_summary(outcome, trained.config, model, train, group, Manifest.read(SHARDS))
    wandb_run.describe({"run": {name: summary[name] for name in ("parameters", "hardware", "encoding", "data")}})
    wandb_run.summarise(run_metrics(outcome))
    write_json(METRICS, run_metrics(outcome))
    write_json(SUMMARY, {**summary, "wandb": asdict(wandb_run.finish())})
    logger.info(
        "trained %s steps in %s: loss %.4f, %s tokens/s; model in %s",
        outcome.steps,
        format_duration(outcome.counters.train_time_s),
        outcome.final_train_loss,
        f"{outcome.tokens_per_sec:,.0f}",
        MODEL,
    )


if __name__ == "__main__":
    with clear_errors("train"):
        main()
