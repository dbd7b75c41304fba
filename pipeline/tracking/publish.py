"""Adds to a training's W&B run what the stages after it found: numbers, samples, the report, the model by reference.

Reads what the stages left in reports/, and dvc.lock. Run by the report stage, the last one, so that one connection does
for all.
"""

import csv
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import load_yaml
from pipeline.files import read_json
from pipeline.tracking.identity import RunIdentity
from pipeline.tracking.params import TrackingParams
from pipeline.tracking.provenance import experiment, git_revision
from pipeline.tracking.wandb_run import Table, WandbRun, resolved_mode

REPORTS, LOCK, MODEL = Path("reports"), Path("dvc.lock"), "data/model"
SUMMARY = REPORTS / "train/summary.json"


def publish(params: TrackingParams) -> None:
    """Adds it online or offline as training was, unless told otherwise. Does nothing where training was not tracked."""
    summary = read_json(SUMMARY)
    run = _training_run(params, summary.get("wandb") or {})
    if run is None:
        return
    # All of the summary: `wandb sync` replaces it with that of the run's last part.
    run.summarise(last_cells(REPORTS / "train/curves.csv") | training_numbers(summary))
    if (metrics := REPORTS / "evaluate/metrics.json").exists():
        run.summarise(evaluation_numbers(read_json(metrics)))
    if (samples := REPORTS / "sample/samples.json").exists():
        run.log_table("samples", samples_table(read_json(samples)), summary["steps"], summary["tokens"])
    run.save_files(REPORTS, [*sorted(REPORTS.glob("report.*")), *sorted(REPORTS.glob("figures/*.svg"))])
    if model := recorded_model(LOCK, SUMMARY):
        facts = {**model, "git_revision": git_revision().revision, "dvc_experiment": experiment().experiment}
        run.log_reference(f"model-{run.identity.id}", "model", f"dvc:{MODEL}?md5={model['md5']}", facts)
    run.finish()


def last_cells(curves: Path) -> dict[str, float]:
    """The last value of each column of curves.csv, as W&B's summary has it."""
    last: dict[str, str] = {}
    with curves.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            last |= {name: cell for name, cell in row.items() if cell and name not in ("step", "event")}
    return {name: float(cell) for name, cell in last.items()}


def training_numbers(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What summary.json tells in single values."""
    return {name: value for name, value in summary.items() if not isinstance(value, dict | list)}


def evaluation_numbers(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """What metrics.json holds, as `evaluate/val/loss`."""
    return {
        f"evaluate/{section}/{name}": value
        for section, values in metrics.items()
        for name, value in values.items()
        if not isinstance(value, str | bool)
    }


def samples_table(samples: Mapping[str, Any]) -> Table:
    """What samples.json holds, a continuation a row."""
    rows = [(found["prompt"] or "", text) for found in samples["prompts"] for text in found["continuations"]]
    return ("prompt", "continuation"), rows


def recorded_model(lock: Path, summary: Path) -> dict[str, Any] | None:
    """The model directory as DVC identifies it: path, md5, size in bytes, files.

    None where dvc.lock does not record this training, told by the hash of its summary: its model's hash would be that
    of another one.
    """
    if not lock.exists():
        return None
    stage = (load_yaml(lock).get("stages") or {}).get("train") or {}
    outs = {out["path"]: out for out in stage.get("outs") or []}
    md5 = hashlib.md5(summary.read_bytes(), usedforsecurity=False).hexdigest()
    if MODEL not in outs or (outs.get(summary.as_posix()) or {}).get("md5") != md5:
        return None
    model = outs[MODEL]
    return {"path": MODEL, "md5": model["md5"], "size": model["size"], "files": model["nfiles"]}


def _training_run(params: TrackingParams, known: Mapping[str, Any]) -> WandbRun | None:
    if known.get("mode", "disabled") == "disabled":
        return None
    chosen = params.mode != "auto" or "WANDB_MODE" in os.environ
    mode = resolved_mode(params) if chosen else known["mode"]
    return WandbRun(RunIdentity(known["id"], known["name"], mode, known.get("group")), params, about={})
