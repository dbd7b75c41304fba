"""The comparison of experiments that a real DVC ran: its numbers are those of the experiments' own files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.log import Stop
from pipeline.reporting.compare import experiments_of, write_comparison

from . import fixtures
from .test_compare import rows

pytestmark = pytest.mark.slow

STAGE = """
import json, pathlib, sys
from ruamel.yaml import YAML
params = YAML(typ="safe").load(open("params.yaml"))
if params["model"]["n_layer"] < 1:
    sys.exit("train: it broke")
loss = 3.0 + 1.0 / params["model"]["n_layer"] + params["train"]["seed"] / 100
for folder in ("train", "evaluate", "sample"):
    pathlib.Path("reports", folder).mkdir(parents=True, exist_ok=True)
lines = [f"{i},{i * 10},{i},{loss + 1 / (i + 1)},{loss if i in (5, 9) else ''},\\n" for i in range(10)]
pathlib.Path("reports/train/curves.csv").write_text("step,tokens,time_s,train/loss,val/loss,event\\n" + "".join(lines))
summary = {"flops": 1e12, "train_time_s": 9, "tokens": 100, "parameters": {"total": params["model"]["n_layer"] * 1000}}
pathlib.Path("reports/train/summary.json").write_text(json.dumps(summary))
metrics = {"val": {"loss": loss, "bpb": loss / 2, "tokens": 100}}
pathlib.Path("reports/evaluate/metrics.json").write_text(json.dumps(metrics))
prompts = [{"prompt": "To be", "continuations": [f" of {params['model']['n_layer']} layers"]}]
pathlib.Path("reports/sample/samples.json").write_text(json.dumps({"prompts": prompts}))
"""

PIPELINE = {
    "stages": {
        "train": {
            "cmd": f"{sys.executable} stage.py",
            "deps": ["stage.py"],
            "params": ["model", "train"],
            "outs": [
                {path: {"cache": False}}
                for path in ("reports/train/curves.csv", "reports/train/summary.json", "reports/sample")
            ],
            "metrics": [{"reports/evaluate/metrics.json": {"cache": False}}],
        }
    }
}


def dvc(root: Path, *arguments: str, fails: bool = False) -> None:
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.org"}
    environment |= {"GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.org"}
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=root, env=environment, capture_output=True, text=True
    )
    assert (done.returncode != 0) == fails, done.stderr


def test_experiments_run_by_dvc_are_compared_by_what_they_left_in_git(tmp_path: Path) -> None:
    fixtures.git(tmp_path, "init", "--quiet", "--initial-branch=main")
    dvc(tmp_path, "init", "--quiet")
    (tmp_path / "stage.py").write_text(STAGE)
    fixtures.write_yaml(tmp_path / "params.yaml", {"model": {"n_layer": 2}, "train": {"seed": 1}})
    fixtures.write_yaml(tmp_path / "dvc.yaml", PIPELINE)
    dvc(tmp_path, "repro", "--quiet")
    fixtures.commit(tmp_path)

    alone = experiments_of(tmp_path, [], None, False)
    assert [(one.name, one.committed) for one in alone] == [("main", True)]

    dvc(tmp_path, "exp", "run", "--quiet", "--name", "deep", "-S", "model.n_layer=4")
    dvc(tmp_path, "exp", "run", "--quiet", "--name", "deep-again", "-S", "model.n_layer=4", "-S", "train.seed=2")
    dvc(tmp_path, "exp", "run", "--quiet", "--queue", "--name", "waiting", "-S", "model.n_layer=0")
    found = experiments_of(tmp_path, [], None, False)
    page = (tmp_path / write_comparison(tmp_path, found, "Depth", 0.5)).read_text(encoding="utf-8")
    table = rows(page)
    assert table["Run"][:3] == ["`model.n_layer`", "`train.seed`", "Loss"]
    assert list(table)[1:] == ["`deep`", "`deep-again`", "`main` (committed)", "`waiting` (queued)"]
    for name, cells in list(table.items())[1:4]:
        one = next(one for one in found if one.name == name.split("`")[1])
        own = json.loads(fixtures.git(tmp_path, "show", f"{one.rev}:reports/evaluate/metrics.json"))
        assert cells[2].strip("*") == f"{own['val']['loss']:.4f}"
        assert one.curves is not None
    assert (tmp_path / "compare/validation.svg").exists()
    for layers in (4, 2):
        assert f"<code>n_layer={layers}</code><br>&nbsp;of {layers} layers" in page
    kept = write_comparison(tmp_path / "kept", found, "Depth", 0.5, kept=True).read_text(encoding="utf-8")
    base = fixtures.git(tmp_path, "rev-parse", "HEAD")[:10]
    assert f"git checkout {base}\ndvc exp run -S model.n_layer=4                  # deep\n" in kept
    assert "dvc exp run -S model.n_layer=4 -S train.seed=2  # deep-again\n" in kept
    assert f"Run from commit `{base}`, 20" in kept

    assert [one.name for one in experiments_of(tmp_path, ["deep"], None, False)] == ["deep"]
    with pytest.raises(Stop, match="no experiment is called shallow"):
        experiments_of(tmp_path, ["shallow"], None, False)

    (old,) = experiments_of(tmp_path, ["deep"], None, False)
    (tmp_path / "README.md").write_text("A later commit.")
    fixtures.commit(tmp_path)
    dvc(tmp_path, "exp", "run", "--quiet", "--name", "deep", "-S", "model.n_layer=5")
    (new,) = experiments_of(tmp_path, ["deep"], None, False)
    assert new.params["model.n_layer"] == 5, "the one that starts from HEAD"
    assert experiments_of(tmp_path, [old.rev[:7]], None, False)[0].params["model.n_layer"] == 4


def test_outside_a_dvc_repository_the_error_is_dvc_s(tmp_path: Path) -> None:
    with pytest.raises(Stop, match="dvc exp show"):
        experiments_of(tmp_path, [], None, False)
