"""The pipeline as people use it: real DVC and real stages, in a clone, on a tiny model."""

import csv
import json
import math
import os
import re
import signal
from pathlib import Path

import pytest

from tests.pipeline_runs.project import Project, stages_run

pytestmark = pytest.mark.slow


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    return finished.copy(tmp_path / "copy")


@pytest.fixture
def fresh(tmp_path: Path) -> Project:
    """A project with shards and nothing trained."""
    project = Project.copy_of_this(tmp_path / "fresh")
    project.dvc("repro", "tokenize")
    return project


def curve(project: Project) -> list[tuple[str, ...]]:
    """What is equal in two equal runs: everything but times and rates."""
    with (project.path / "reports/train/curves.csv").open(newline="") as file:
        keep = ("step", "tokens", "train/loss", "train/lr", "train/grad_norm", "val/loss", "next_lines/acc", "event")
        return [tuple(row[name] for name in keep) for row in csv.DictReader(file)]


def test_one_command_leaves_a_model_and_a_report(finished: Project) -> None:
    for path in ("data/model/model.safetensors", "data/model/config.json", "data/model/tokenizer/config.json"):
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
    assert list(finished.json("reports/evaluate/metrics.json")) == ["val", "next_lines"]


def test_a_second_repro_runs_nothing(finished: Project) -> None:
    output = finished.dvc("repro")
    assert stages_run(output) == []
    assert "up to date" in output
    assert finished.git("status", "--porcelain") == ""


def test_a_clone_has_nothing_to_run_and_never_logs_to_the_author_s_w_and_b_run(
    project: Project, tmp_path: Path
) -> None:
    project.dvc("remote", "add", "-d", "store", str(tmp_path / "store"))
    project.commit("keep data in the store")
    project.dvc("push")
    project.dvc("exp", "run", "--name", "retitled", "-S", "report.title=Another")
    project.git("clone", "-q", str(project.path), str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone")
    assert stages_run(clone.dvc("repro", "--pull")) == []
    for command in (("push",), ("exp", "apply", "HEAD"), ("exp", "pull", "origin", "retitled")):
        printed = clone.dvc(*command)
        assert not re.search("WARNING|ERROR|missing", printed), printed
    clone.run("python", "-m", "pipeline", "report")
    assert (clone.path / "reports/report.html").is_file()
    assert clone.git("status", "--porcelain") == ""
    clone.dvc("exp", "apply", "retitled")
    assert stages_run(clone.dvc("repro")) == []
    assert "W&B: nothing logged" in clone.dvc("repro", "-f", "-s", "report")
    assert not (clone.path / "wandb").exists()


def changed_stages(project: Project) -> set[str]:
    """The stages whose own deps or params `dvc status` reports as changed."""
    return set(re.findall(r"^(\w+):$", project.dvc("status"), re.MULTILINE))


def test_edits_rerun_what_they_can_change(project: Project) -> None:
    """tests/dag/test_dvc_yaml.py checks the deps of every module; this checks that DVC sees them so."""
    for observer in ("pipeline/progress.py", "pipeline/tracking/wandb_run.py", "pipeline/probes.py"):
        append(project, observer)
    assert changed_stages(project) == set()
    append(project, "pipeline/training/optim.py")
    assert changed_stages(project) == {"train"}
    append(project, "pipeline/generation/sampling.py")
    assert changed_stages(project) == {"train", "evaluate", "sample"}  # evaluate: answers of conversations


def test_other_benchmarks_neither_download_nor_train_again(project: Project) -> None:
    raw = project.path / "data/raw/train/000000.parquet"
    before = raw.stat().st_mtime_ns
    project.set(**{"benchmarks.tasks": []})
    assert stages_run(project.dvc("repro")) == ["download", "evaluate", "report"]
    assert list(project.json("reports/evaluate/metrics.json")) == ["val"]
    assert raw.stat().st_mtime_ns == before
    project.dvc("repro", "-f", "-s", "download")
    assert raw.stat().st_mtime_ns > before


def test_initial_weights_and_their_tokenizer_replaced_in_place_are_noticed(project: Project) -> None:
    project.run("cp", "-r", "data/model", "models/base")
    shards = project.hash_of("data/shards")
    project.set(**{"model.init_from": "base", "tokenizer.encoding": "base", "train.max_steps": 5})
    assert stages_run(project.dvc("repro", "train")) == ["tokenize", "train"]
    assert project.hash_of("data/shards") == shards
    assert changed_stages(project) & {"tokenize", "train"} == set()
    append(project, "models/base/config.json", " ")
    assert changed_stages(project) >= {"tokenize", "train"}


def append(project: Project, path: str, text: str = "# a comment\n") -> None:
    with (project.path / path).open("a") as file:
        file.write(text)


def test_a_killed_run_resumes_and_ends_bit_for_bit_as_one_never_killed(finished: Project, fresh: Project) -> None:
    process = fresh.start("dvc", "repro")
    fresh.wait_for_step(process, 13)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    fresh.dvc("repro")
    assert [resume["step"] for resume in fresh.json("reports/train/summary.json")["resumes"]] != []
    assert fresh.hash_of("data/model") == finished.hash_of("data/model")
    assert curve(fresh) == curve(finished)
    assert fresh.json("reports/train/samples.json") == finished.json("reports/train/samples.json")
    assert fresh.unfinished_runs() == []


def test_ctrl_c_saves_and_the_next_repro_continues(finished: Project, fresh: Project) -> None:
    process = fresh.start("dvc", "repro")
    fresh.wait_for_step(process, 8)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole process group
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0, output
    assert "train" not in fresh.lock()
    fresh.dvc("repro", "train")
    (resume,) = fresh.json("reports/train/summary.json")["resumes"]
    assert resume["step"] >= 8
    assert fresh.hash_of("data/model") == finished.hash_of("data/model")
    assert curve(fresh) == curve(finished)


def test_training_without_probes_gives_the_same_weights(finished: Project, fresh: Project) -> None:
    """The promise that lets dvc.yaml leave the observers out of the deps of train."""
    fresh.set(**{"train.eval_interval": 0, "train.benchmark_interval": 0, "train.sample_interval": 0})
    fresh.set(**{"tracking.mode": "disabled"})
    fresh.dvc("repro", "train")
    assert fresh.hash_of("data/model") == finished.hash_of("data/model")


def test_bad_params_end_in_one_error_before_work_and_cost_no_finished_model(project: Project) -> None:
    params, before = (project.path / "params.yaml").read_text(encoding="utf-8"), project.hash_of("data/model")
    project.set(**{"model.n_head": 5, "train.max_lr": "fast", "data.max_documents": 19})
    output = project.dvc("repro", ok=False)
    assert stages_run(output) == ["download"]  # which validates all of params.yaml first
    assert "train.max_lr ('fast')" in output
    assert "Traceback" not in output
    (project.path / "params.yaml").write_text(params, encoding="utf-8")
    project.set(**{"model.n_head": 5})
    assert "model.n_embd (32)" in project.dvc("repro", ok=False)
    assert (project.path / "data/model/model.safetensors").is_file()
    (project.path / "params.yaml").write_text(params, encoding="utf-8")
    assert stages_run(project.dvc("repro")) == []
    assert project.hash_of("data/model") == before


def test_a_finished_run_that_dvc_did_not_record_is_not_trained_again(project: Project) -> None:
    """As when DVC is killed while it caches the outputs. A forced run afterwards starts from step 0."""
    project.set(**{"train.seed": 2})
    project.run("env", "DVC_STAGE=train", "python", "-m", "pipeline", "launch", "stages.train")
    steps = project.json("reports/train/summary.json")["steps"]
    project.dvc("repro", "train")
    resumes = project.json("reports/train/summary.json")["resumes"]
    assert [resume["step"] for resume in resumes] in ([], [steps])
    trained = project.hash_of("data/model")
    project.dvc("repro", "-f", "-s", "train")
    assert project.json("reports/train/summary.json")["resumes"] == []
    assert project.hash_of("data/model") == trained


def test_a_killed_experiment_in_a_copy_of_the_repository_resumes_when_it_is_repeated(project: Project) -> None:
    command = ("exp", "run", "--temp", "--name", "seven", "-S", "train.seed=7")
    dvc = project.start("dvc", *command)
    project.wait_for_step(dvc, 11)
    os.killpg(dvc.pid, signal.SIGKILL)
    dvc.communicate(timeout=60)
    project.dvc(*command)
    base = project.git("rev-parse", "HEAD").strip()
    shown = project.git("show", f"refs/exps/{base[:2]}/{base[2:]}/seven:reports/train/summary.json")
    (resume,) = json.loads(shown)["resumes"]
    assert resume["step"] in (5, 10)  # checkpoints are written in the background
    assert project.unfinished_runs() == []
