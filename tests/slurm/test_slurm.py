"""Training, tokenization and sweeps on a SLURM cluster: its scheduler, real DVC and real stages, on a tiny model."""

import json
import re
import shutil
from pathlib import Path

import pytest

from pipeline.config import load_yaml
from pipeline.corpus.params import TokenizerParams
from pipeline.corpus.tokenization import Job
from pipeline.files import exclusive_lock
from tests.corpus.tokenizing import contents
from tests.pipeline_runs.project import Project
from tests.slurm.conftest import Cluster

pytestmark = pytest.mark.slow


def test_training_on_two_nodes_is_requeued_after_a_signal_and_equals_two_ranks_on_one(
    cluster: Cluster, project: Project, tmp_path: Path
) -> None:
    project.set(
        **{
            "train.max_steps": 300,
            "train.eval_interval": 0,
            "train.benchmark_interval": 0,
            "train.sample_interval": 0,
            "runtime.checkpoint_interval": 20,
        }
    )
    whole = project.copy(tmp_path / "whole")
    whole.environment["NPROC_PER_NODE"] = "2"
    whole.dvc("repro", "train")

    (job,) = re.findall(r"submitted train as job (\d+)\n", cluster.slurm(project, "train"))
    cluster.wait(project, lambda: project._steps_done() > 30)
    assert f"job {job} is running; log: .runs/slurm/train-{job}.out" in cluster.slurm(project, "train")
    cluster.run(project, "scancel", "--signal=TERM", job)  # as SLURM does before the time limit, and on preemption
    log = project.path / f".runs/slurm/train-{job}.out"
    cluster.wait(project, lambda: "resuming after step" in log.read_text())
    assert "SIGTERM: stopped and saved after step" in log.read_text()
    steps = project._steps_done()
    cluster.wait(project, lambda: project._steps_done() > steps + 30)
    cluster.run(project, "scancel", "--signal=KILL", job)
    cluster.wait_for_end(project)

    (job,) = re.findall(r"submitted train as job (\d+)\n", cluster.slurm(project, "train"))
    cluster.wait_for_end(project)
    summary = project.json("reports/train/summary.json")
    assert len(summary["resumes"]) == 2
    assert summary["hardware"]["world_size"] == 2
    assert project.hash_of("data/model") == whole.hash_of("data/model")
    assert project.dvc("status") == "Data and pipelines are up to date.\n"


def test_a_failed_part_of_the_tokenization_is_submitted_alone(cluster: Cluster, project: Project) -> None:
    shards, runs = project.path / "data/shards", project.path / ".runs"
    whole = contents(shards)
    shutil.rmtree(shards)
    shutil.rmtree(project.path / ".dvc/cache/runs")
    params = TokenizerParams(**load_yaml(project.path / "params.yaml")["tokenizer"])
    work = Job.open(params, project.path / "data/raw", runs).work
    with exclusive_lock(work / "part-2-of-2"):  # so that it runs until it is killed
        printed = cluster.slurm(project, "tokenize", "--parts", "2")
        array, assembly = re.findall(r"job (\d+)\n", printed)
        log = runs / f"slurm/tokenize-{array}_2.out"
        cluster.wait(project, lambda: log.exists() and "waiting for process" in log.read_text())
        cluster.wait(project, lambda: f"{array}_1" not in cluster.states(project))
        assert cluster.states(project) == {f"{array}_2": "RUNNING", assembly: "PENDING"}
        cluster.run(project, "scancel", f"{array}_2")
        cluster.wait_for_end(project)
    assert not shards.exists()
    dry = cluster.slurm(project, "tokenize", "--parts", "2", "--dry-run")
    assert "--array=2 " in dry
    cluster.slurm(project, "tokenize", "--parts", "2")
    cluster.wait_for_end(project)
    assert contents(shards) == whole
    assert "up to date" in cluster.slurm(project, "tokenize", "--parts", "2")


# At the second of these rates the loss is soon no number any more.
SWEEP = ("train.max_lr=1e-3,100", "train.seed=1,2")


def test_experiments_of_a_sweep_run_in_parallel_and_are_dvc_s_own(cluster: Cluster, project: Project) -> None:
    project.set(**{"train.weight_decay": 1000, "train.max_skipped_steps": 0})
    project.commit("params")
    trainer = project.path / "pipeline/training/trainer.py"
    trainer.write_text(trainer.read_text() + "# edited\n")  # an experiment starts from the workspace
    (array,) = re.findall(r"job (\d+)\n", cluster.slurm(project, "sweep", *SWEEP))
    cluster.wait(project, lambda: list(cluster.states(project).values()) == ["RUNNING"] * 4)
    assert cluster.slurm(project, "sweep", *SWEEP).count("  running\n") == 4
    cluster.wait_for_end(project)
    names = {f"max_lr={rate},seed={seed}" for rate in ("0.001", "100") for seed in (1, 2)}
    done = {name for name in names if "max_lr=0.001" in name}

    base = project.git("rev-parse", "HEAD").strip()
    refs = project.git("for-each-ref", "--format=%(refname:lstrip=4)", "refs/exps")
    assert set(refs.split()) == done
    shown = project.dvc("exp", "show", "--csv")
    for name in done:
        ref = f"refs/exps/{base[:2]}/{base[2:]}/{name}"
        assert name in shown
        assert project.git("show", f"{ref}:pipeline/training/trainer.py").endswith("# edited\n")
        assert json.loads(project.git("show", f"{ref}:reports/evaluate/metrics.json"))["val"]["loss"] > 0
    assert not list((project.path / ".dvc/tmp/exps").glob("slurm-*"))

    again = cluster.slurm(project, "sweep", *SWEEP, "--dry-run")
    assert dict(re.findall(r"^  (max_lr=\S+) +(\w+)", again, re.MULTILINE)) == {
        name: "done" if name in done else "failed" for name in names
    }
    assert "more than train.max_skipped_steps (0)" in again
    assert re.search(rf"failed; full log: .runs/slurm/sweep-{array}_\d.out\n", again)
    assert "--array=0-1 " in again
