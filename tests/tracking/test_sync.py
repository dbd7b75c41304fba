"""Runs as they arrive at a server, sent by wandb's own client: online, or offline first and then by `wandb sync`."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.tracking.wandb_report import panels
from tests.pipeline_runs.project import Project
from tests.tracking.offline import of_kind
from tests.tracking.wandb_server import Run, Server, wandb_server

pytestmark = pytest.mark.slow

# Training and what is published after it, as the stages call them, without a model.
STAGES = """
import sys
import time
from pathlib import Path
from pipeline.files import read_json, write_json
from pipeline.tracking.identity import RunIdentity
from pipeline.tracking.params import TrackingParams
from pipeline.tracking.publish import publish
from pipeline.tracking.curves import Curves
from pipeline.tracking.wandb_run import training_run

tracking = TrackingParams(mode=sys.argv[1], project="tests", entity=None, group="depth", tags=["a tag"])
Path("wandb.json").write_text('{"id": "abcd1234", "name": "n_layer=6", "group": "depth @ 80a69db"}')
params = {"data": {"source": "files"}, "tokenizer": {"encoding": "bytes"}, "model": {"n_layer": 6}}
run = training_run(Path(), tracking, params, "0123456789abcdef", Curves(Path("curves.csv"), Path("published.csv")))
run.record([{"step": step, "tokens": 8 * step, "train/loss": 5 - step, "val/loss": 4.5 if step == 2 else ""}
            for step in range(4)])
run.describe({"run": {"parameters": {"total": 1000}}})
run.summarise({"mfu": 0.4})
identity = run.finish()
write_json(Path("reports/train/summary.json"), {
    "steps": 3, "tokens": 24, "mfu": 0.4, "data": {}, "resumed_at": [],
    "wandb": {"id": identity.id, "name": identity.name, "mode": identity.mode, "group": identity.group},
})
publish(tracking)
"""
VOLATILE = {"_timestamp", "_runtime", "_wandb"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    with wandb_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("WANDB_MODE", raising=False)
        yield server


def sync(folder: Path, server: Server) -> None:
    """What docs/wandb.md says to type."""
    runs = sorted(map(str, folder.glob("wandb/offline-run-*")))
    assert runs
    done = subprocess.run(
        [Path(sys.executable).with_name("wandb"), "sync", *runs],
        cwd=folder,
        env={**os.environ, **server.environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def drawn() -> set[str]:
    """The keys that the panels of a W&B report draw."""

    class Reports:
        def __getattr__(self, name: str) -> Any:
            return lambda *values, **settings: values[0] if values else settings

    shown = [
        key for panel in panels(Reports(), by=None) for name, key in panel.items() if name in ("x", "y", "metrics")
    ]
    return {key for keys in shown for key in ([keys] if isinstance(keys, str) else keys)}


def held(run: Run) -> dict[str, Any]:
    """What the server holds of a run, without what differs between any two runs: times, and names made at random."""

    def steady(values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key not in VOLATILE | {"samples"}}

    return {
        "about": {key: run.about[key] for key in ("displayName", "groupName", "jobType", "tags")},
        "config": {key: value for key, value in run.config.items() if key not in ("_wandb", "tracking")},
        "history": [steady(row) for row in run.history],
        "summary": steady(run.summary),
        "table": run.files[run.summary["samples"]["path"]],
        "files": {name: text for name, text in run.files.items() if name.startswith(("report", "figures"))},
        "artifacts": [(one["artifactTypeName"], one["digest"]) for one in run.artifacts],
        "ended": run.exit_codes,
    }


def stages_run(folder: Path, mode: str) -> None:
    """Training and publishing in `folder`."""
    (folder / "reports/train").mkdir(parents=True)
    (folder / "reports/evaluate").mkdir()
    (folder / "reports/sample").mkdir()
    (folder / "reports/figures").mkdir()
    (folder / "reports/train/curves.csv").write_text("step,tokens,train/loss,val/loss,event\n2,16,3,4.5,\n3,24,2,,\n")
    (folder / "reports/evaluate/metrics.json").write_text('{"val": {"loss": 2.5}, "next_lines": {"name": "lines"}}')
    (folder / "reports/sample/samples.json").write_text('{"prompts": [{"prompt": null, "continuations": ["To be"]}]}')
    (folder / "reports/report.md").write_text("# A report\n")
    (folder / "reports/figures/loss.svg").write_text("<svg/>")
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    subprocess.run([sys.executable, "-c", STAGES, mode], cwd=folder, env=environment, check=True, timeout=120)


def test_a_run_synced_later_is_as_one_that_was_online(tmp_path: Path, server: Server) -> None:
    stages_run(tmp_path / "online", "online")
    online = held(server.runs.pop("abcd1234"))
    stages_run(tmp_path / "offline", "offline")
    assert not server.runs
    sync(tmp_path / "offline", server)
    offline = held(server.runs["abcd1234"])
    for part, content in online.items():
        assert offline[part] == content, part
    assert [row["_step"] for row in online["history"]] == [0, 1, 2, 3, 4]
    assert online["summary"]["evaluate/val/loss"] == 2.5
    assert (online["summary"]["val/loss"], online["summary"]["train/loss"], online["summary"]["mfu"]) == (4.5, 2, 0.4)


def test_a_whole_pipeline_s_run_arrives_with_all_that_it_left(finished: Project, server: Server) -> None:
    sync(finished.path, server)
    summary, metrics = finished.json("reports/train/summary.json"), finished.json("reports/evaluate/metrics.json")
    ((name, run),) = server.runs.items()
    head = finished.git("rev-list", "--max-parents=0", "HEAD").strip()  # what it was trained at: results came later
    assert name == summary["wandb"]["id"]
    assert (run.about["displayName"], run.about["groupName"]) == (summary["wandb"]["name"], head[:7])
    assert (run.about["jobType"], run.about["tags"]) == ("train", ["files", "bytes"])
    assert (run.config["model"]["n_layer"], run.config["train"]["max_lr"]) == (2, 0.006)
    assert run.config["run"]["parameters"] == summary["parameters"]
    assert (run.config["git"]["revision"], run.config["dvc"]["baseline"]) == (head, head)
    with (finished.path / "reports/train/curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    *curve, last = run.history
    assert [(row["_step"], row["tokens"]) for row in curve] == [(int(row["step"]), int(row["tokens"])) for row in rows]
    for column in ("train/loss", "val/loss", "val/bpb", "train/lr", "next_lines/acc_norm"):
        cells = [(row["_step"], row[column]) for row in curve if column in row]
        assert cells == [(int(row["step"]), pytest.approx(float(row[column]))) for row in rows if row[column]], column
    assert run.summary["evaluate/val/loss"] == metrics["val"]["loss"]
    assert run.summary["final_train_loss"] == summary["final_train_loss"]
    assert last["samples"]["nrows"] == 1
    for key in drawn():
        assert key in run.summary or any(key in row for row in run.history), key
    (prompt,) = finished.json("reports/sample/samples.json")["prompts"]
    table = json.loads(run.files[last["samples"]["path"]])
    assert table["data"] == [["The ", text] for text in prompt["continuations"]]
    for path in ("report.md", "report.html", "figures/loss.svg"):
        assert run.files[path] == (finished.path / "reports" / path).read_bytes(), path
    (model,) = (one for one in run.artifacts if one["artifactTypeName"] == "model")
    assert json.loads(model["metadata"])["md5"] == finished.hash_of("data/model")
    manifest = run.files[f"manifest {run.artifacts.index(model) + 1}"]
    assert finished.hash_of("data/model") in json.loads(manifest)["contents"]["model"]["ref"]
    assert run.exit_codes == [0, 0]


def test_a_killed_and_resumed_run_is_one_run_with_each_step_once(
    finished: Project, tmp_path: Path, server: Server
) -> None:
    project = finished.copy(tmp_path / "copy")
    known = set(project.path.glob("wandb/offline-run-*"))
    project.set(**{"train.seed": 7, "train.max_steps": 300, "train.eval_interval": 100, "tracking.group": "seeds"})

    def parts() -> list[Path]:
        return sorted(set(project.path.glob("wandb/offline-run-*")) - known)

    def has_begun() -> bool:
        return any(file.stat().st_size > 50_000 for part in parts() for file in part.glob("*.wandb"))

    process = project.start("dvc", "repro", "train")
    project.wait_until(process, has_begun, timeout=90)
    os.killpg(process.pid, signal.SIGKILL)  # wandb's own process among them, with what it had not written yet
    process.wait()
    project.dvc("repro", "train")
    first, second = parts()
    early, late = ([row["item"]["_step"] for row in of_kind(part, "history")] for part in (first, second))
    assert 0 < len(early) < 301
    head = project.git("rev-parse", "HEAD")[:7]
    name = project.json("reports/train/summary.json")["wandb"]["id"]
    for part in (first, second):
        (run,) = of_kind(part, "run")
        assert (run["run_id"], run["run_group"]) == (name, f"seeds @ {head}")
        assert run["display_name"] == "seed=7 max_steps=300 eval_interval=100"
    assert early + late == list(range(301))
    sync(project.path, server)
    assert [row["_step"] for row in server.runs[name].history] == list(range(301))


def test_a_server_that_falls_silent_holds_no_process_up(tmp_path: Path, server: Server) -> None:
    server.silent = True  # once a run has begun
    (tmp_path / "reports/train").mkdir(parents=True)
    short = "from pipeline.tracking import wandb_run; wandb_run.FINISH_TIMEOUT_S = 6\n"
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", short + STAGES.partition("identity =")[0] + "identity = run.finish()", "online"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert time.monotonic() - began < 40
    assert "W&B:" in done.stdout
    assert server.runs["abcd1234"].about["displayName"] == "n_layer=6"
