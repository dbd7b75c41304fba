"""Runs as a server receives them from wandb's own client: online, or offline and then by `wandb sync`."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import EvaluationMetrics, RunSummary, Samples, TrackedRun, TrainingSamples
from tests.pipeline_runs.project import ROOT, Project
from tests.tracking.records import write_outputs
from tests.tracking.wandb_server import Run, Server, wandb_server

pytestmark = pytest.mark.slow

VOLATILE = {"_timestamp", "_runtime", "_wandb"}
PANEL_KEYS = {"tokens", "train/loss", "val/bpb", "time_s", "train/tokens_per_sec", "evaluate/val/bpb", "flops"}
"""What docs/wandb.md says to draw."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with wandb_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("WANDB_MODE", raising=False)
        yield server


def start(folder: Path, *arguments: str | int) -> subprocess.Popen[str]:
    """Starts logging_run in `folder`, in a process group of its own."""
    (folder / "state").mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "tests.tracking.logging_run", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def log(folder: Path, *arguments: str | int) -> str:
    """Runs logging_run to its end; returns what it printed: nothing if W&B took everything."""
    process = start(folder, *arguments)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0
    return output


def log_and_kill(folder: Path, *arguments: str | int) -> None:
    """Kills logging_run, and wandb's own process with rows that it has not written yet."""
    process = start(folder, *arguments, "killed")
    deadline = time.monotonic() + 60
    while not any(file.stat().st_size > 50_000 for file in folder.glob("wandb/offline-run-*/*.wandb")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def sync(folder: Path) -> str:
    """Runs the command in docs/wandb.md; returns what it printed."""
    runs = sorted(map(str, folder.glob("wandb/offline-run-*")))
    assert runs
    command = [Path(sys.executable).with_name("wandb"), "sync", *runs]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout + done.stderr


def identity(folder: Path) -> TrackedRun:
    return TrackedRun.read(folder / "state/wandb.json")


def steps(run: Run) -> list[int]:
    return [row["_step"] for row in run.history]


def content(run: Run) -> dict[str, Any]:
    """What the server holds of a run, without what differs between any two runs: times and random names."""

    def steady(values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key not in VOLATILE | {"samples", "train/samples"}}

    return {
        "about": {key: run.about[key] for key in ("displayName", "groupName", "jobType", "tags")},
        "config": {key: value for key, value in run.config.items() if key != "_wandb"},
        "history": [steady(row) for row in run.history],
        "summary": steady(run.summary),
        "tables": [run.files[run.summary[name]["path"]] for name in ("samples", "train/samples")],
        "files": {name: text for name, text in run.files.items() if name.startswith(("report", "figures"))},
        "artifacts": sorted(
            (artifact["artifactTypeName"], artifact["digest"])
            for artifact in run.artifacts
            if artifact["artifactTypeName"] != "wandb-run-incremental-table"  # contains random names
        ),
        "exit codes": run.exit_codes,
    }


def sample_steps(run: Run) -> list[int]:
    """The steps in the increments of the table of samples drawn during training."""
    tables = [json.loads(run.files[row["train/samples"]["path"]]) for row in run.history if "train/samples" in row]
    return [step for table in tables for step, *_ in table["data"]]


def test_an_offline_run_after_sync_equals_an_online_run(tmp_path: Path, server: Server) -> None:
    def logged(mode: str) -> dict[str, Any]:
        folder = tmp_path / mode
        TrackedRun(id="abcd1234", name="n_layer=6", mode=mode, group="depth @ 80a69db").write(
            folder / "state/wandb.json"
        )
        write_outputs(folder)
        assert log(folder, mode, 0, 3, "publish") == ""
        if mode == "offline":
            assert not server.runs
            sync(folder)
        return content(server.runs.pop("abcd1234"))

    online, offline = logged("online"), logged("offline")
    for part, value in online.items():
        assert offline[part] == value, part
    assert [row["_step"] for row in online["history"]] == [0, 1, 2, 3, 4]
    assert json.loads(online["tables"][1])["data"] == [[2, 16, "sample 2"]]
    assert online["summary"]["evaluate/val/loss"] == 2.5
    assert (online["summary"]["val/loss"], online["summary"]["train_time_s"]) == (4.5, 1.5)


def test_the_run_of_a_whole_pipeline_arrives_with_all_results(finished: Project, server: Server) -> None:
    sync(finished.path)
    reports = finished.path / "reports"
    summary = RunSummary.read(reports / "train/summary.json")
    metrics = EvaluationMetrics.read(reports / "evaluate/metrics.json")
    ((name, run),) = server.runs.items()
    trained_at = finished.git("rev-list", "--max-parents=0", "HEAD").strip()  # the results were committed later
    assert name == summary.wandb.id
    assert (run.about["displayName"], run.about["groupName"]) == (summary.wandb.name, trained_at[:7])
    assert (run.about["jobType"], run.about["tags"]) == ("train", ["files", "bytes"])
    assert (run.config["model"]["n_layer"], run.config["train"]["max_lr"]) == (2, 0.006)
    assert run.config["run"]["parameters"] == summary.parameters.model_dump()
    assert (run.config["git"]["revision"], run.config["dvc"]["baseline"]) == (trained_at, trained_at)
    with (reports / "train/curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    *curve, last = run.history
    assert [(row["_step"], row["tokens"]) for row in curve] == [(int(row["step"]), int(row["tokens"])) for row in rows]
    for column in ("train/loss", "val/loss", "val/bpb", "train/lr", "next_lines/acc_norm"):
        cells = [(row["_step"], row[column]) for row in curve if column in row]
        assert cells == [(int(row["step"]), pytest.approx(float(row[column]))) for row in rows if row[column]], column
    assert run.summary["evaluate/val/loss"] == metrics.val.loss
    assert run.summary["train_time_s"] == summary.train_time_s
    assert run.summary.keys() >= PANEL_KEYS
    (prompt,) = Samples.read(reports / "sample/samples.json").prompts
    table = json.loads(run.files[last["samples"]["path"]])
    assert table["data"] == [["The ", text] for text in prompt.continuations]
    samples = TrainingSamples.read(reports / "train/samples.json").samples
    assert [sample.step for sample in samples] == [0, 15, 30]
    assert json.loads(run.files[last["train/samples"]["path"]])["data"] == [[s.step, s.tokens, s.text] for s in samples]
    log = run.files["output.log"].decode()
    assert re.search(
        r"^model: .*^data: .*^step 10: validation loss .*^trained 30 steps in ", log, re.MULTILINE | re.DOTALL
    )
    for path in ("report.md", "report.html", "figures/loss.svg"):
        assert run.files[path] == (reports / path).read_bytes(), path
    (model,) = (artifact for artifact in run.artifacts if artifact["artifactTypeName"] == "model")
    assert json.loads(model["metadata"])["md5"] == finished.hash_of("data/model")
    manifest = run.files[f"manifest {run.artifacts.index(model) + 1}"]
    assert finished.hash_of("data/model") in json.loads(manifest)["contents"]["model"]["ref"]
    assert run.exit_codes == [0, 0]


def test_a_killed_and_resumed_offline_run_has_each_step_once(tmp_path: Path, server: Server) -> None:
    log_and_kill(tmp_path, "offline", 0, 300)
    first = identity(tmp_path)
    assert log(tmp_path, "offline", 201, 320) == ""
    assert identity(tmp_path) == first
    assert "ERROR" not in sync(tmp_path)
    assert {name: steps(run) for name, run in server.runs.items()} == {first.id: list(range(321))}
    assert sample_steps(server.runs[first.id]) == [2, 102, 202, 302]


def test_a_run_that_was_synced_before_it_was_resumed_becomes_another_one(tmp_path: Path, server: Server) -> None:
    log_and_kill(tmp_path, "offline", 0, 300)
    first = identity(tmp_path)
    sync(tmp_path)  # up to the record that the kill cut off
    part = steps(server.runs[first.id])
    assert part == list(range(len(part)))
    assert log(tmp_path, "offline", 201, 320) == ""
    second = identity(tmp_path)
    assert (second.id != first.id, second.name, second.group) == (True, first.name, first.group)
    sync(tmp_path)
    assert {name: steps(run) for name, run in server.runs.items()} == {first.id: part, second.id: list(range(321))}


def test_a_server_that_stops_answering_holds_no_process_up(tmp_path: Path, server: Server) -> None:
    server.silent = True  # once a run has begun
    output = log(tmp_path, "online", 0, 3, "impatient")
    assert "W&B:" in output
    assert list(server.runs) == [identity(tmp_path).id]
