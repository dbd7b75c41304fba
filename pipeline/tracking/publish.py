"""Adds the results of the later stages to the training's W&B run: evaluation, samples, the report, a model reference.

Run by the report stage, the last one, so that one connection serves for all. Reads what the stages wrote, and dvc.lock.
"""

import hashlib
import os
from pathlib import Path

from pipeline.artifacts import EvaluationMetrics, RunSummary, Samples, TrainingSamples
from pipeline.curves import Curves, typed
from pipeline.dvc_lock import Lock, Output, read_lock
from pipeline.git import current_experiment
from pipeline.log import logger
from pipeline.tracking.params import TrackingParams
from pipeline.tracking.wandb_run import (
    SAMPLE_COLUMNS,
    SAMPLE_TABLE,
    Table,
    WandbRun,
    local_files,
    resolved_mode,
)

REPORTS, MODEL = Path("reports"), "data/model"
SUMMARY, CURVES = REPORTS / "train/summary.json", REPORTS / "train/curves.csv"
TRAINING_SAMPLES = REPORTS / "train/samples.json"
METRICS, SAMPLES = REPORTS / "evaluate/metrics.json", REPORTS / "sample/samples.json"


def publish(params: TrackingParams) -> None:
    """Logs online or offline as the training did, unless params or WANDB_MODE say otherwise.

    Does nothing if the training was not tracked, or not from this repository: in a clone, summary.json names the run of
    whoever trained.
    """
    summary = RunSummary.read(SUMMARY)
    if summary.wandb.mode == "disabled":
        return
    if not local_files(summary.wandb.id):
        logger.info("W&B: nothing logged: another machine trained run %s (no files in wandb/)", summary.wandb.id)
        return
    chosen = params.mode != "auto" or "WANDB_MODE" in os.environ
    mode = resolved_mode(params) if chosen else summary.wandb.mode
    run = WandbRun(summary.wandb.model_copy(update={"mode": mode}), params)
    # The whole summary: `wandb sync` replaces it by that of the run's last part.
    run.update_summary(last_values(Curves(CURVES, CURVES)) | summary_values(summary))
    if METRICS.exists():
        run.update_summary(evaluation_values(EvaluationMetrics.read(METRICS)))
    tables: dict[str, Table] = {}
    if samples := TrainingSamples.read(TRAINING_SAMPLES).samples:  # again, in one piece: W&B shows few increments
        tables[SAMPLE_TABLE] = SAMPLE_COLUMNS, [(sample.step, sample.tokens, sample.text) for sample in samples]
    if SAMPLES.exists():
        tables["samples"] = samples_table(Samples.read(SAMPLES))
    if tables:
        run.log_tables(tables, summary.steps, summary.tokens)
    run.save_files(REPORTS, [*sorted(REPORTS.glob("report.*")), *sorted(REPORTS.glob("figures/*.svg"))])
    if model := recorded_model(read_lock(Path("dvc.lock")), SUMMARY):
        metadata = {
            "path": MODEL,
            "md5": model.md5,
            "size": model.size,
            "files": model.files,
            "code_revision": summary.git.revision,
            "dvc_experiment": current_experiment().name,
        }
        run.log_reference(f"model-{run.identity.id}", "model", f"dvc:{MODEL}?md5={model.md5}", metadata)
    run.finish()


def last_values(curves: Curves) -> dict[str, float]:
    """The last value of each column, as in W&B's summary."""
    last: dict[str, float] = {}
    for row in curves.rows():
        last |= {
            name: value for name, value in typed(row).items() if value is not None and name not in ("step", "event")
        }
    return last


def summary_values(summary: RunSummary) -> dict[str, float]:
    """The numbers of summary.json, without those of its nested records."""
    return {name: value for name, value in summary if isinstance(value, int | float)}


def evaluation_values(metrics: EvaluationMetrics) -> dict[str, float]:
    """The numbers of the evaluation, as `evaluate/val/loss`."""
    return {
        f"evaluate/{section}/{name}": value
        for section, values in metrics.model_dump(exclude_none=True).items()
        for name, value in values.items()
        if not isinstance(value, str | bool)
    }


def samples_table(samples: Samples) -> Table:
    """One continuation per row."""
    rows = [(prompt.prompt or "", text) for prompt in samples.prompts for text in prompt.continuations]
    return ("prompt", "continuation"), rows


def recorded_model(lock: Lock | None, summary: Path) -> Output | None:
    """The model directory as DVC records it; None where dvc.lock does not record the training of this summary.

    The lock may still be that of an earlier training. The summary's hash tells: no other run writes the same file.
    """
    recorded = lock.output(summary.as_posix()) if lock else None
    md5 = hashlib.md5(summary.read_bytes(), usedforsecurity=False).hexdigest()
    return lock.output(MODEL) if lock and recorded and recorded.md5 == md5 else None
