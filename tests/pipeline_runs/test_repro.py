"""The pipeline as people use it: real DVC, real stages, in a clone, on a tiny model."""

import csv
import math
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.dag.imports import STAGES
from tests.pipeline_runs.project import Project, stages_run

pytestmark = pytest.mark.slow


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    return finished.copy(tmp_path / "copy")


@pytest.fixture
def fresh(tmp_path: Path) -> Project:
    """A project with its shards made and nothing trained."""
    project = Project.copy_of_this(tmp_path / "fresh")
    project.dvc("repro", "tokenize")
    return project


def curve(project: Project) -> list[tuple[str, ...]]:
    """What must be equal in two runs: all but times and rates."""
    with (project.path / "reports/train/curves.csv").open(newline="") as file:
        keep = ("step", "tokens", "train/loss", "train/lr", "train/grad_norm", "val/loss", "next_lines/acc", "event")
        return [tuple(row[name] for name in keep) for row in csv.DictReader(file)]


def test_one_command_leaves_a_model_and_a_report(finished: Project) -> None:
    for path in ("data/model/model.safetensors", "data/model/config.json", "data/model/encoding/encoding.json"):
        assert (finished.path / path).is_file(), path
    text = (finished.path / "reports/report.md").read_text()
    metrics = finished.json("reports/evaluate/metrics.json")
    assert f"{metrics['val']['loss']:.4f}" in text
    for figure in re.findall(r'(?:src|srcset)="(figures/[^"]+)"|\]\((figures/[^)]+)\)', text):
        assert (finished.path / "reports" / next(filter(None, figure))).is_file()
    assert finished.unfinished_runs() == []


def test_the_curves_are_whole_and_start_at_the_untrained_loss(finished: Project) -> None:
    rows = curve(finished)
    assert [int(row[0]) for row in rows] == list(range(31))
    assert float(rows[1][2]) == pytest.approx(math.log(257), abs=0.15)
    assert float(rows[0][5]) == pytest.approx(math.log(257), abs=0.15)
    assert float(rows[-1][2]) < float(rows[1][2]) - 1


def test_items_cut_from_the_documents_are_never_called_hellaswag(finished: Project) -> None:
    assert "hellaswag" not in finished.json("reports/evaluate/metrics.json")
    assert finished.json("reports/evaluate/metrics.json")["next_lines"]["is_hellaswag"] is False


def test_a_second_repro_runs_nothing(finished: Project) -> None:
    output = finished.dvc("repro")
    assert stages_run(output) == []
    assert "up to date" in output
    assert finished.git("status", "--porcelain") == ""


def test_another_temperature_runs_sample_and_report_alone(project: Project) -> None:
    assert stages_run(project.dvc("exp", "run", "-S", "sample.temperature=0.5")) == ["sample", "report"]


def test_another_depth_trains_and_does_not_tokenize(project: Project) -> None:
    assert stages_run(project.dvc("exp", "run", "-S", "model.n_layer=1")) == list(STAGES[2:])
    assert "n_layer" in project.dvc("params", "diff")
    assert "val.loss" in project.dvc("metrics", "diff")
    assert "model.n_layer" in (project.path / "reports/report.md").read_text()
    assert "index.html" in project.dvc("plots", "diff", "HEAD")


def test_how_a_run_is_executed_retrains_nothing(project: Project) -> None:
    project.set(**{"runtime.micro_batch_size": 2, "tracking.mode": "disabled"})
    assert stages_run(project.dvc("repro")) == []


@pytest.mark.parametrize("after", [1, 13])
def test_a_killed_run_goes_on_and_ends_bit_for_bit_as_one_never_killed(
    finished: Project, fresh: Project, after: int
) -> None:
    process = fresh.start("dvc", "repro")
    fresh.wait_for_step(process, after)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    output = fresh.dvc("repro")
    assert "resuming after step" in output or after < 5  # the first checkpoint lies behind step 5
    assert fresh.hash_of("data/model") == finished.hash_of("data/model")
    assert curve(fresh) == curve(finished)
    assert fresh.unfinished_runs() == []


def test_ctrl_c_saves_and_the_next_repro_continues(finished: Project, fresh: Project) -> None:
    process = fresh.start("dvc", "repro")
    fresh.wait_for_step(process, 8)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
    output, _ = process.communicate(timeout=20)
    assert process.returncode != 0, output
    assert "SIGINT: stopped after step" in output
    assert "train" not in fresh.lock()
    assert "resuming after step" in fresh.dvc("repro")
    assert fresh.hash_of("data/model") == finished.hash_of("data/model")
    assert curve(fresh) == curve(finished)


def test_forced_training_after_a_finished_run_starts_anew(project: Project) -> None:
    output = project.dvc("repro", "-f", "-s", "train")
    assert "resuming" not in output
    assert stages_run(output) == ["train"]


def test_another_configuration_never_resumes(fresh: Project) -> None:
    process = fresh.start("dvc", "repro")
    fresh.wait_for_step(process, 8)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    fresh.set(**{"train.seed": 2})
    assert "resuming" not in fresh.dvc("repro", "train")


def test_training_with_and_without_probes_gives_the_same_weights(finished: Project, fresh: Project) -> None:
    """The promise that lets the train stage leave its probes out of its deps."""
    fresh.set(**{"train.eval_interval": 0, "train.hellaswag_interval": 0, "train.sample_interval": 0})
    fresh.dvc("repro", "train")
    assert fresh.hash_of("data/model") == finished.hash_of("data/model")


def test_two_processes_train_through_torchrun(fresh: Project, finished: Project) -> None:
    fresh.environment["NPROC_PER_NODE"] = "2"
    fresh.set(**{"model.dropout": 0.0})
    output = fresh.dvc("repro", "evaluate")
    assert "on each of 2 rank(s)" in output
    assert finished.json("reports/train/summary.json")["hardware"]["world_size"] == 1
    assert fresh.json("reports/train/summary.json")["hardware"]["world_size"] == 2
    two = fresh.json("reports/evaluate/metrics.json")["val"]
    fresh.environment.pop("NPROC_PER_NODE")
    fresh.dvc("repro", "-f", "-s", "train")
    fresh.dvc("repro", "evaluate")
    assert two["loss"] == pytest.approx(fresh.json("reports/evaluate/metrics.json")["val"]["loss"], rel=1e-4)


def test_a_remote_gives_a_fresh_clone_the_model_without_training(project: Project, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    project.dvc("remote", "add", "-d", "store", str(remote))
    project.commit("a remote")
    project.dvc("push")
    project.git("clone", "-q", ".", str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone")
    assert stages_run(clone.dvc("repro", "--pull")) == []
    assert (clone.path / "data/model/model.safetensors").is_file()
    clone.dvc("pull")
    assert (clone.path / "data/shards/manifest.json").is_file()


def test_queued_experiments_run_in_copies_and_are_kept(project: Project) -> None:
    project.dvc("exp", "run", "--queue", "-S", "model.n_layer=1,3")
    project.dvc("queue", "start")
    for _ in range(240):
        status = project.dvc("queue", "status")
        if "Queued" not in status and "Running" not in status:
            break
        subprocess.run(["sleep", "0.5"], check=True)
    assert status.count("Success") == 2, status
    shown = project.dvc("exp", "show", "--csv")
    assert len([line for line in shown.splitlines() if "branch_" in line]) == 2, shown
    assert project.unfinished_runs() == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.n_head", 5, r"model\.n_embd \(32\).*n_head \(5\)"),
        ("train.total_batch_size", 100, r"train\.total_batch_size \(100\).*model\.block_size \(32\)"),
        ("train.max_lr", "fast", r"train\.max_lr \('fast'\)"),
        ("sample.tempreature", 1.0, r"sample\.tempreature: unknown key"),
    ],
)
def test_bad_params_end_in_one_clear_error_before_work(project: Project, key: str, value: object, message: str) -> None:
    project.set(**{key: value, "data.max_documents": 19})  # download would have to run first
    before = project.hash_of("data/model")
    output = project.dvc("repro", ok=False)
    assert re.search(message, output), output
    assert "Traceback" not in output
    assert stages_run(output) == ["download"]
    assert project.hash_of("data/model") == before


def test_a_mistake_in_params_costs_no_finished_training(project: Project) -> None:
    params = (project.path / "params.yaml").read_text(encoding="utf-8")
    project.set(**{"model.n_head": 5})
    assert "train: params.yaml has 1 mistake(s)" in project.dvc("repro", ok=False)
    assert (project.path / "data/model/model.safetensors").is_file()
    (project.path / "params.yaml").write_text(params, encoding="utf-8")
    assert stages_run(project.dvc("repro")) == []


def test_plots_are_shown(finished: Project) -> None:
    assert "index.html" in finished.dvc("plots", "show", "-o", str(finished.path / ".dvc/tmp/plots"))
