"""Experiments that a real DVC ran are compared with the numbers of their own files."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.comparison.experiments import Experiment, read_experiments, runs_of
from pipeline.comparison.page import write_comparison
from pipeline.config import load_yaml
from pipeline.log import UserError
from tests.dag.imports import ROOT
from tests.reporting import fixtures

pytestmark = pytest.mark.slow

STAGE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from pipeline.artifacts import ValidationMetrics
from pipeline.config import load_yaml
from tests.reporting import fixtures
params = load_yaml(Path("params.yaml"))
layers = params["model"]["n_layer"]
loss = 3.0 + 1.0 / layers + params["train"]["seed"] / 100
val = ValidationMetrics(loss=loss, perplexity=20.0, bpb=loss / 2, tokens=100)
fixtures.write_run(Path("run"), metrics=fixtures.evaluation_metrics(val=val))
Path("run/reports").rename("reports")
"""

PARAMS: dict[str, Any] = load_yaml(ROOT / "params.yaml")
PARAMS["model"]["n_layer"] = 2

PIPELINE = {
    "stages": {
        "train": {
            "cmd": f"rm -rf run reports && {sys.executable} stage.py",
            "deps": ["stage.py"],
            "params": ["model", "train"],
            "outs": [{path: {"cache": False}} for path in ("reports/train", "reports/evaluate", "reports/sample")],
        },
        "sample": {
            "cmd": "cp params.yaml sampled",
            "deps": ["reports/train"],
            "params": ["sample"],
            "outs": ["sampled"],
        },
    }
}


def python(root: Path, *arguments: str) -> str:
    """What `python -m` with these arguments prints."""
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "PYTHONPATH": str(ROOT)}
    for role in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{role}_NAME": "A", f"GIT_{role}_EMAIL": "a@example.org"}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=root, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def dvc(root: Path, *arguments: str) -> None:
    python(root, "dvc", *arguments)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with a committed run of 2 layers, loss 3.51."""
    fixtures.git(tmp_path, "init", "--quiet", "--initial-branch=main")
    dvc(tmp_path, "init", "--quiet")
    (tmp_path / ".gitignore").write_text("run\n")
    (tmp_path / "stage.py").write_text(STAGE)
    fixtures.write_yaml(tmp_path / "params.yaml", PARAMS)
    fixtures.write_yaml(tmp_path / "dvc.yaml", PIPELINE)
    dvc(tmp_path, "repro", "--quiet")
    fixtures.commit(tmp_path)
    return tmp_path


def losses(experiments: list[Experiment]) -> dict[str, float]:
    return {run.name: run.evaluation.val.loss for run in runs_of(experiments)}


def test_experiments_are_read_with_their_results(project: Path, tmp_path: Path) -> None:
    dvc(project, "exp", "run", "--quiet", "--name", "deep", "-S", "model.n_layer=4")
    dvc(project, "exp", "apply", "--quiet", "HEAD")
    dvc(project, "exp", "run", "--quiet", "--name", "other-samples", "-S", "sample.seed=2")
    dvc(project, "exp", "run", "--quiet", "--queue", "--name", "waiting", "-S", "train.seed=3")
    experiments = read_experiments(project)
    assert experiments[0].name == "main"
    assert {e.name: (e.state, e.committed) for e in experiments} == {
        "main": ("done", True),
        "deep": ("done", False),
        "other-samples": ("done", False),
        "waiting": ("queued", False),
    }
    assert losses(experiments) == pytest.approx({"main": 3.51, "deep": 3.26, "other-samples": 3.51})
    page = write_comparison(tmp_path / "kept", experiments, "Depth", 0.5, kept=True).read_text(encoding="utf-8")
    base = fixtures.git(project, "rev-parse", "HEAD")[:10]
    deep = next(e for e in experiments if e.name == "deep")
    assert f"git checkout {base}\ndvc exp run -S model.n_layer=4  # deep\n" in page
    assert "| `other-samples` (same model as `main`) |" in page

    (project / "README.md").write_text("A later commit.")
    fixtures.commit(project)
    dvc(project, "exp", "run", "--quiet", "--name", "deep", "-S", "model.n_layer=5")
    assert losses(read_experiments(project, ["deep"])) == pytest.approx({"deep": 3.21}), "the one from HEAD"
    assert losses(read_experiments(project, [deep.rev[:7]])) == pytest.approx({"deep": 3.26})
    found = losses(read_experiments(project, commits=["--num", "2"]))
    assert found["deep"] == pytest.approx(3.21)
    assert found[f"deep@{base[:7]}"] == pytest.approx(3.26)


def test_an_ablation_is_run_once_and_compared_in_the_order_of_its_file(project: Path) -> None:
    """Of 2 and 4 layers: losses 3.51 and 3.26."""
    (project / "steps.yaml").write_text("start: {}\ndeep: {model.n_layer: 4}\nnormed: {model.qk_norm: true}\n")
    swept = python(project, "pipeline", "sweep", "--cumulative", "steps.yaml")
    planned = python(project, "pipeline", "sweep", "--leave-one-out", "steps.yaml", "--dry-run")
    assert [tuple(line.split(maxsplit=1)) for line in planned.splitlines()[1:4]] == [
        ("full", "done"),
        ("without-deep", "to run"),
        ("without-normed", "done"),
    ]
    (command,) = re.findall(r"^compare them: python -m (.*)", swept, re.MULTILINE)
    dvc(project, "exp", "run", "--quiet", "--name", "another", "-S", "model.n_layer=5")
    printed = python(project, *command.split())
    assert "compared 4 experiments" in printed, "and the committed run"
    rows = [
        [cell.strip(" `") for cell in line.split("|")[1:6]]
        for line in (project / "reports/compare.md").read_text(encoding="utf-8").split("## Runs")[0].splitlines()
        if line.startswith("| `")
    ]
    assert rows == [
        ["start", "–", "1", "3.5100", "–"],
        ["deep", "n_layer=4", "1", "3.2600", "−0.2500"],
        ["normed", "qk_norm=true", "1", "3.2600", "+0.0000"],
    ]


def test_outside_a_dvc_repository_the_error_is_dvc_s(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dvc exp show"):
        read_experiments(tmp_path)
