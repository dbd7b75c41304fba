"""Trains the model: `python -m pipeline launch stages.train`, on every visible GPU or on the CPU's cores.

Reads data/shards and, for a probe, data/benchmarks. Writes data/model (weights, config, tokenizer) and, in
reports/train, curves.csv (one row per step), samples.json (samples drawn during training), metrics.json (tokens, FLOPs
and speed) and summary.json (what the report says about the run). Unfinished runs are kept in .runs/ and resumed by the
same command.
"""

import platform
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import tiktoken
import torch

from pipeline import distributed
from pipeline.artifacts import (
    MANIFEST_FILE,
    Hardware,
    Manifest,
    ParameterCounts,
    RunSummary,
    TokenizerInfo,
    TrainMetrics,
)
from pipeline.config import PARAMS_FILE, load_yaml, read_sections
from pipeline.corpus.shards import open_split
from pipeline.corpus.tokenizer import TOKENIZER_DIRECTORY, TOKENIZER_FILE, TokenizerConfig, load_tokenizer
from pipeline.curves import Curves, SampleLog
from pipeline.distributed import Group, autocast_dtype, device_name, total_memory
from pipeline.evaluation.val_loss import validation_loss
from pipeline.files import check_replaceable, exclusive_lock, run_directory, set_aside, sha256_of
from pipeline.formatting import format_bytes, format_duration
from pipeline.git import code_revision
from pipeline.log import UserError, cli_errors, logger
from pipeline.model.accounting import describe, memory, parameters
from pipeline.model.config import GPTConfig, ModelParams
from pipeline.model.gpt import GPT
from pipeline.model_directory import MODEL_FILES, initial_model, initial_weights_hash, save_model
from pipeline.probes import benchmark_columns, training_probes
from pipeline.run_state import code_hashes, finish, remove_recorded, run_key
from pipeline.runtime import RuntimeParams, cores
from pipeline.tracking.params import TrackingParams
from pipeline.tracking.wandb_run import WandbRun, training_run
from pipeline.training.checkpoint import CHECKPOINT_FORMAT, CheckpointStore, checkpoint_directories
from pipeline.training.continuation import continue_another_run
from pipeline.training.metrics import Logger, Row
from pipeline.training.optim import decay_start
from pipeline.training.parallel import is_sharded
from pipeline.training.params import TrainParams
from pipeline.training.trainer import Probe, Trainer

SHARDS, BENCHMARKS, MODEL = Path("data/shards"), Path("data/benchmarks"), Path("data/model")
REPORTS = Path("reports/train")
CURVES, SAMPLES = REPORTS / "curves.csv", REPORTS / "samples.json"
METRICS, SUMMARY = REPORTS / "metrics.json", REPORTS / "summary.json"


def main() -> None:
    """Trains on all ranks; rank 0 writes the outputs and keeps the run's state (pipeline.run_state)."""
    model, train, runtime, tracking = read_sections(ModelParams, TrainParams, RuntimeParams, TrackingParams)
    check_replaceable(MODEL, MODEL_FILES)  # now, not after days of training
    initial_weights, code = initial_weights_hash(model.init_from), code_hashes("train")
    params = {"model": model.model_dump(), "train": train.model_dump()}
    key = run_key(params, SHARDS / MANIFEST_FILE, initial_weights, CHECKPOINT_FORMAT)
    state, milestones = run_directory(f"train-{key}"), run_directory(f"milestones-{key}")
    store = CheckpointStore(
        state / "checkpoints",
        runtime.checkpoints_kept,
        code,
        milestones,
        runtime.milestone_interval,
        run=key,
        pinned=decay_start(train) if train.schedule == "wsd" else None,  # where a longer run can continue
    )
    with distributed.start(runtime.collective_timeout) as group:
        group.check_same(
            {f"{part.section}.{key}": str(value) for part in (model, train, runtime) for key, value in part}
            | {str(SHARDS / MANIFEST_FILE): sha256_of(SHARDS / MANIFEST_FILE), "torch": torch.__version__}
            | {f"models/{model.init_from}": initial_weights}
            | code
        )
        if not group.is_main:
            make_trainer(model, train, runtime, group, store, loggers=[]).run()
            return
        with exclusive_lock(state, wait=False):
            forced = remove_recorded(state)
            if state.exists() and starts_over(runtime, store):
                logger.info("starting over; the earlier state is kept in %s", set_aside(state, "old-"))
            elif not (forced or runtime.resume == "never" or checkpoint_directories(store.directory)):
                continue_another_run(state, store, train, same_code=runtime.resume == "same-code")
            curves = Curves(state / "curves.csv", CURVES, extra_columns=benchmark_columns(BENCHMARKS))
            samples = SampleLog(state / "samples.json", SAMPLES)
            wandb_run = training_run(state, tracking, load_yaml(PARAMS_FILE), key, curves, samples)
            try:
                trainer = make_trainer(model, train, runtime, group, store, [curves, samples, wandb_run])
                metrics = trainer.run()
            except BaseException as error:
                wandb_run.write_log("".join(traceback.format_exception(error)))
                wandb_run.finish(exit_code=getattr(error, "exit_code", 1))
                raise
            write_outputs(trainer, metrics, model, wandb_run)
            finish(state, SUMMARY)


def starts_over(runtime: RuntimeParams, store: CheckpointStore) -> bool:
    """Whether runtime.resume says to train from the start, whatever checkpoints there are."""
    newest = store.newest() if runtime.resume == "same-code" else None
    return runtime.resume == "never" or (newest is not None and bool(newest.changed_files))


def make_trainer(
    model_params: ModelParams,
    train: TrainParams,
    runtime: RuntimeParams,
    group: Group,
    store: CheckpointStore,
    loggers: Sequence[Logger],
) -> Trainer:
    """The trainer of the run on this rank, with a model that is the same on every rank."""
    stream = open_split(SHARDS, "train")
    tokenizer = load_tokenizer(SHARDS / TOKENIZER_DIRECTORY)
    config = GPTConfig.from_params(model_params, tokenizer.n_vocab)
    check_memory(config, train, runtime, group)
    torch.manual_seed(train.seed)  # the same initial weights on every rank
    if is_sharded(runtime.sharding, group) and not group.is_main:
        with torch.device("meta"):  # receives its part of rank 0's weights
            model = GPT(config)
    else:
        extends = TokenizerConfig.read(SHARDS / TOKENIZER_DIRECTORY / TOKENIZER_FILE).extends
        model = initial_model(model_params, tokenizer.n_vocab, stream.manifest.tokenizer_sha256, extends)
    logger.info("model: %s", describe(model.config))
    probes = [
        Probe(train.eval_interval, validation_probe(train, runtime, group, tokenizer)),
        *training_probes(train, runtime, group, tokenizer, SHARDS / TOKENIZER_DIRECTORY, BENCHMARKS),
    ]
    trainer = Trainer(model, stream, train, runtime, group, store, loggers, probes)
    counted = stream.manifest.splits["train"].counted
    logger.info(
        "data: %s tokens%s, %.2f epochs in %d steps of %d tokens (micro-batches: %d of %d x %d on each of %d rank(s))",
        f"{len(stream):,}",
        "" if counted is None else f", of which {counted:,} count in the loss",
        train.max_steps * trainer.loader.sequences / trainer.loader.n_blocks,
        train.max_steps,
        train.total_batch_size,
        trainer.loader.accumulation_steps,
        trainer.loader.micro_batch_size,
        model.config.block_size,
        group.world_size,
    )
    return trainer


def validation_probe(
    train: TrainParams, runtime: RuntimeParams, group: Group, tokenizer: tiktoken.Encoding
) -> Callable[[GPT, int], Row]:
    """Measures the loss on the first train.eval_tokens of the validation split.

    Not in pipeline.probes, which is not a dep of the stage: train.keep and train.patience depend on this loss.
    """
    val, dtype = open_split(SHARDS, "val"), autocast_dtype(runtime.dtype, group.device)

    def measure(model: GPT, step: int) -> Row:
        loss = validation_loss(
            model,
            val,
            tokenizer,
            tokens=train.eval_tokens,
            stride=None,
            batch_size=runtime.micro_batch_size,
            dtype=dtype,
            group=group,
        )
        logger.info("step %d: validation loss %.4f, %.3f bits per byte", step, loss.nats_per_token, loss.bits_per_byte)
        return {"val/loss": loss.nats_per_token, "val/bpb": loss.bits_per_byte}

    return measure


def check_memory(config: GPTConfig, train: TrainParams, runtime: RuntimeParams, group: Group) -> None:
    """Raises UserError if weights, gradients and optimizer state alone need more memory than the device has."""
    shards = group.world_size if runtime.sharding == "fsdp" else 1
    need = memory(config, sequences=0, bfloat16=False, optimizer=train.optimizer, shards=shards).total
    if need > (limit := total_memory(group.device)):
        raise UserError(
            f"model: {parameters(config).total:,} parameters need {format_bytes(need)} for weights, gradients and "
            f"optimizer state, more than {device_name(group.device)} has ({format_bytes(limit)})",
            all_ranks=True,
        )


def write_outputs(trainer: Trainer, metrics: TrainMetrics, model: ModelParams, wandb_run: WandbRun) -> None:
    """Writes the model directory, metrics.json and summary.json; ends the W&B run. The curves are complete already."""
    save_model(MODEL, trainer.model, SHARDS / TOKENIZER_DIRECTORY)
    train, group, stats = trainer.train, trainer.group, trainer.metrics.stats
    manifest, counts = Manifest.read(SHARDS / MANIFEST_FILE), parameters(trainer.model.config)
    summary = RunSummary(
        **metrics.model_dump(),
        params={"model": model.model_dump(mode="json"), "train": train.model_dump(mode="json")},
        parameters=ParameterCounts(total=counts.total, without_embeddings=counts.without_embeddings),
        steps=trainer.steps,
        epochs=trainer.steps * trainer.loader.sequences / trainer.loader.n_blocks,
        kept_step=trainer.metrics.best.step if trainer.best_weights else None,
        wall_time_s=round(stats.wall_time_s, 2),
        resumes=stats.resumes,
        skipped_steps=stats.skipped_steps,
        spikes=stats.spikes,
        hardware=Hardware(
            device=group.device.type,
            device_name=device_name(group.device),
            world_size=group.world_size,
            cores=cores(),
            dtype=str(trainer.dtype).removeprefix("torch."),
            compile=trainer.compiled,
            micro_batch_size=trainer.loader.micro_batch_size,
            torch=torch.__version__,
            python=platform.python_version(),
        ),
        tokenizer=TokenizerInfo(name=manifest.tokenizer_name, vocab_size=manifest.vocab_size),
        data={name: split.size for name, split in manifest.splits.items()},
        git=code_revision(),
        wandb=wandb_run.identity,
    )
    described = {"parameters", "hardware", "tokenizer", "data", "resumes"}
    wandb_run.update_config({"run": summary.model_dump(include=described)})
    wandb_run.update_summary(metrics.model_dump())
    metrics.write(METRICS)
    logger.info(
        "trained %d steps in %s, %s tokens/s; model%s in %s",
        trainer.steps,
        format_duration(metrics.train_time_s),
        f"{metrics.tokens_per_sec:,.0f}",
        f" of step {summary.kept_step}" if summary.kept_step is not None else "",
        MODEL,
    )
    summary.model_copy(update={"wandb": wandb_run.finish()}).write(SUMMARY)


if __name__ == "__main__":
    with cli_errors("train", __doc__):
        main()
