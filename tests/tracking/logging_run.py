"""A program that logs as the train stage and the report stage do, without a model.

python -m tests.tracking.logging_run MODE FIRST LAST [publish | killed | impatient]

Trains steps FIRST to LAST after a checkpoint at FIRST - 1. `publish`: also logs what the report stage adds. `killed`:
waits to be killed instead of finishing. `impatient`: waits 6 s at most for W&B at the end.
"""

import sys
import time
from pathlib import Path

from pipeline.curves import Curves, SampleLog
from pipeline.tracking import wandb_run
from pipeline.tracking.params import TrackingParams
from pipeline.tracking.publish import CURVES, SUMMARY, TRAINING_SAMPLES, publish
from pipeline.tracking.wandb_run import training_run
from pipeline.training.metrics import Row
from tests.tracking import records

STATE = Path("state")
PARAMS = {"data": {"source": "files"}, "tokenizer": {"encoding": "bytes"}, "model": {"n_layer": 6}}


def main(mode: str, first: int, last: int, ending: str = "") -> None:
    # A busy machine can take longer to start wandb than a training run waits for it at its end.
    wandb_run.FINISH_TIMEOUT_S = 6 if ending == "impatient" else 150
    tracking = TrackingParams.model_validate(
        {"mode": mode, "project": "tests", "entity": None, "group": "depth", "tags": ["a tag"]}
    )
    curves = Curves(STATE / "curves.csv", CURVES)
    samples = SampleLog(STATE / "samples.json", TRAINING_SAMPLES)
    run = training_run(STATE, tracking, PARAMS, "0123456789abcdef", curves, samples)
    rows: list[Row] = [
        {"step": step, "tokens": 8 * step, "train/loss": 5 - step / 100} for step in range(first, last + 1)
    ]
    for row in rows:
        if row["step"] == 2:
            row["val/loss"] = 4.5
        if row["step"] % 100 == 2:
            row["sample"] = f"sample {row['step']}"
    for logger in (curves, samples, run):
        logger.rewind(first - 1 if first else 0)
        logger.record(rows)
    curves.flush()
    if ending == "killed":
        time.sleep(600)
    run.update_config({"run": {"parameters": {"total": 1000}}})
    run.update_summary({"train_time_s": 1.5})
    records.summary(run.finish(), last).write(SUMMARY)
    if ending == "publish":
        publish(tracking)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
