"""The download and tokenize stages and `pipeline verify`, as commands in a project of their own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.artifacts import MANIFEST_FILE, SOURCE_FILE, BenchmarkSource, Manifest, RawCorpus

ROOT = Path(__file__).parents[2]
SHAKESPEARE = {
    "data.source": "shakespeare",
    "data.val_every": 10,
    "data.max_documents": None,
    "data.max_bytes": None,
    "tokenizer.encoding": "bpe",
}


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


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the plays' data/raw and data/benchmarks."""
    project = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "params.yaml", project)
    set_params(project, **SHAKESPEARE)
    process = run(project, "stages.download")
    assert process.returncode == 0, process.stderr
    assert RawCorpus.read(project / "data/raw" / SOURCE_FILE).documents("train") == 708
    assert list(BenchmarkSource.read(project / "data/benchmarks" / SOURCE_FILE).tasks) == ["next_lines"]
    return project


def test_the_plays_become_shards_without_defects(downloaded: Path) -> None:
    for _ in range(2):
        process = run(downloaded, "stages.tokenize")
        assert process.returncode == 0, process.stderr
    assert not list((downloaded / ".runs").glob("*/"))
    assert Manifest.read(downloaded / "data/shards" / MANIFEST_FILE).splits["val"].documents == 73
    process = run(downloaded, "pipeline", "verify", "data/shards")
    assert process.returncode == 0, process.stderr
    shard = downloaded / "data/shards/val_000000.npy"
    shard.write_bytes(shard.read_bytes()[:-1])
    process = run(downloaded, "pipeline", "verify")
    assert process.returncode == 1
    assert "val_000000.npy" in process.stderr


def test_the_stage_uses_a_part_that_was_encoded_before(downloaded: Path, tmp_path: Path) -> None:
    shutil.copytree(downloaded, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("shards"))
    process = run(tmp_path, "stages.tokenize", "--part", "1/1")
    assert process.returncode == 0, process.stderr
    assert not (tmp_path / "data" / "shards").exists()
    assert re.search(r"(\d+) of \1 row groups", run(tmp_path, "stages.tokenize").stdout)
    assert run(tmp_path, "stages.tokenize", "--part", "3/2").returncode == 2


@pytest.mark.parametrize(
    ("stage", "changes", "error"),
    [
        ("download", {"tokenizer.vocab_size": 256}, "tokenizer.vocab_size (256)"),
        ("download", {"data.source": "files", "data.files": ["none/*.txt"]}, "data.files (none/*.txt)"),
        ("tokenize", {}, "data/raw/source.json"),
    ],
)
def test_an_error_of_the_user_is_one_line(tmp_path: Path, stage: str, changes: dict[str, Any], error: str) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    set_params(tmp_path, **changes)
    failed = run(tmp_path, f"stages.{stage}")
    assert failed.returncode == 1
    assert error in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "data").exists()


def test_a_mistake_in_benchmarks_does_not_cost_the_download(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "a.txt").write_text(" ".join(map(str, range(5000))))
    set_params(tmp_path, **{"data.source": "files", "data.files": ["a.txt"], "data.val_every": 2})
    set_params(tmp_path, **{"benchmarks.tasks": ["piqa"], "benchmarks.directory": "nowhere"})
    assert "benchmarks.directory (nowhere)" in run(tmp_path, "stages.download").stderr
    set_params(tmp_path, **{"benchmarks.tasks": ["next_lines"]})
    assert "resuming after 1 documents" in run(tmp_path, "stages.download").stdout
    assert not list((tmp_path / ".runs").glob("*/"))
