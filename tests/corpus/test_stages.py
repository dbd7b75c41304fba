"""The download and tokenize stages: light to start, run again at will, one line on an error."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import load_yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with the repository's params.yaml."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    return tmp_path


def run(project: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def set_param(project: Path, old: str, new: str) -> None:
    path = project / "params.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


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
    """The default's data/raw and data/hellaswag."""
    project = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "params.yaml", project)
    done = run(project, "stages.download")
    assert done.returncode == 0, done.stderr
    assert "train 708 documents" in done.stdout
    assert "items, Next lines of the validation documents" in done.stdout
    return project


def test_the_default_goes_from_documents_to_sound_shards_and_again(downloaded: Path) -> None:
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
    ("old", "new", "complaint"),
    [
        ("source: shakespeare", "source: nowhere", "data.source ('nowhere')"),
        ("vocab_size: 4096", "vocab_size: 256", "tokenizer.vocab_size (256)"),
        ("source: shakespeare", "source: files", "data.files ([]) must name at least one glob"),
    ],
)
def test_a_wrong_parameter_is_one_clear_error_before_any_work(
    project: Path, old: str, new: str, complaint: str
) -> None:
    set_param(project, old, new)
    failed = run(project, "stages.download")
    assert failed.returncode == 1
    assert complaint in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (project / "data").exists()


def test_a_missing_source_is_one_line(project: Path) -> None:
    set_param(project, "source: shakespeare", "source: files")
    set_param(project, "files: []", "files: [none/*.txt]")
    failed = run(project, "stages.download")
    assert failed.returncode == 1
    assert failed.stderr.startswith("download: data.files (none/*.txt) matches no file")
    failed = run(project, "stages.tokenize")
    assert failed.returncode == 1
    assert (
        failed.stderr.strip() == "tokenize: data/raw/source.json not found: run the download stage (dvc repro download)"
    )


def test_the_sections_of_this_floor_are_commented_key_by_key() -> None:
    lines = (ROOT / "params.yaml").read_text().splitlines()
    for section in ("data", "hellaswag", "tokenizer"):
        start = lines.index(f"{section}:")
        keys = list(load_yaml(ROOT / "params.yaml")[section])
        for line, key in zip(lines[start + 1 :], keys, strict=False):
            assert line.strip().startswith(f"{key}:")
