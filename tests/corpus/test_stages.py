"""The download and tokenize stages: light to start, run again at will, one line on an error."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
SHAKESPEARE = {
    "data.source": "shakespeare",
    "data.val_every": 10,
    "data.max_documents": None,
    "data.max_bytes": None,
    "hellaswag.source": "documents",
    "tokenizer.encoding": "bpe",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with the repository's params.yaml."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    return tmp_path


def run(project: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def set_params(project: Path, **values: Any) -> None:
    """Sets keys of params.yaml, named as `dvc exp run -S` names them."""
    yaml = YAML()
    params = yaml.load(project / "params.yaml")
    for key, value in values.items():
        section, _, name = key.partition(".")
        assert name in params[section]
        params[section][name] = value
    yaml.dump(params, project / "params.yaml")


@pytest.mark.parametrize("stage", ["download", "tokenize"])
def test_a_stage_imports_no_torch(stage: str) -> None:
    code = (
        f"import sys, stages.{stage}\n"
        "from pipeline.config import load_yaml, validate, PARAMS_FILE\n"
        "validate(load_yaml(PARAMS_FILE))\n"
        "heavy = {'torch', 'datasets', 'transformers', 'wandb', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plays' data/raw and data/hellaswag."""
    project = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "params.yaml", project)
    set_params(project, **SHAKESPEARE)
    done = run(project, "stages.download")
    assert done.returncode == 0, done.stderr
    assert "train 708 documents" in done.stdout
    assert "items, Next lines of the validation documents" in done.stdout
    return project


def test_the_plays_go_from_documents_to_sound_shards_and_again(downloaded: Path) -> None:
    for _ in range(2):
        done = run(downloaded, "stages.tokenize")
        assert done.returncode == 0, done.stderr
        assert re.search(r"data/shards: val: [\d,]+ tokens of bpe-\d+ in 1 shard", done.stdout)
    assert not list((downloaded / ".runs").iterdir())
    verified = run(downloaded, "pipeline.corpus.verify", "data/shards")
    assert verified.returncode == 0
    assert "sound" in verified.stdout


def test_parts_and_a_merge_are_the_stage_itself(downloaded: Path, tmp_path: Path) -> None:
    shutil.copytree(downloaded, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("shards"))
    for part in ("1/2", "2/2"):
        done = run(tmp_path, "stages.tokenize", "--part", part)
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / "data" / "shards").exists()
    assert re.search(r"(\d+) of \1 units are there", run(tmp_path, "stages.tokenize").stdout)
    assert "must be I/N" in run(tmp_path, "stages.tokenize", "--part", "3/2").stderr


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"data.source": "nowhere"}, "data.source ('nowhere')"),
        ({"tokenizer.vocab_size": 256}, "tokenizer.vocab_size (256)"),
        ({"data.source": "files", "data.files": []}, "data.files ([]) must name at least one glob"),
    ],
)
def test_a_wrong_parameter_is_one_clear_error_before_any_work(
    project: Path, changes: dict[str, Any], complaint: str
) -> None:
    set_params(project, **changes)
    failed = run(project, "stages.download")
    assert failed.returncode == 1
    assert complaint in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (project / "data").exists()


def test_a_missing_source_is_one_line(project: Path) -> None:
    set_params(project, **{"data.source": "files", "data.files": ["none/*.txt"]})
    failed = run(project, "stages.download")
    assert failed.returncode == 1
    assert failed.stderr.startswith("download: data.files (none/*.txt) matches no file")
    failed = run(project, "stages.tokenize")
    assert failed.returncode == 1
    assert (
        failed.stderr.strip() == "tokenize: data/raw/source.json not found: run the download stage (dvc repro download)"
    )
