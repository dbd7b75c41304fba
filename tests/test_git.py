"""What Git says of a working tree."""

import subprocess
from pathlib import Path

import pytest

from pipeline.git import Experiment, code_revision, current_experiment, params_at, revision, same_files, show


def git(*arguments: str) -> str:
    identity = ["-c", "user.name=Someone", "-c", "user.email=someone@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout


def commit(seed: int) -> str:
    Path("params.yaml").write_text(f"train: {{seed: {seed}}}\n")
    git("add", ".")
    git("commit", "-q", "-m", "a commit")
    return git("rev-parse", "HEAD").strip()


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(variable, raising=False)
    git("init", "-q", "-b", "main")


def test_before_the_first_commit_there_is_no_revision() -> None:
    assert revision(Path()).commit is None
    assert code_revision().revision is None
    assert current_experiment() == Experiment(None, None)
    assert params_at("HEAD") == {}
    assert show(Path(), "HEAD", "params.yaml") is None


def test_an_experiment_starts_from_its_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    base = commit(seed=1)
    assert current_experiment() == Experiment(None, base)
    head = commit(seed=2)
    monkeypatch.setenv("DVC_EXP_NAME", "faery-wind")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", base)
    assert current_experiment() == Experiment("faery-wind", base)
    assert (params_at(base), params_at(head)) == ({"train": {"seed": 1}}, {"train": {"seed": 2}})


def test_changes_of_generated_files_are_left_out() -> None:
    head = commit(seed=1)
    Path("reports").mkdir()
    for name in ("reports/report.md", "dvc.lock", "new.py"):
        Path(name).touch()
    at = revision(Path())
    assert (at.commit, at.changed) == (head, ("new.py",))
    git("add", "reports", "dvc.lock")  # committed reports that a run rewrites
    assert code_revision().dirty is False
    Path("params.yaml").write_text("train: {seed: 3}\n")
    assert code_revision().dirty is True
    assert (same_files(head, "params.yaml"), same_files(head, "params.yml")) == (False, True)


@pytest.mark.parametrize(
    ("remote", "public"),
    [
        ("https://me:secret@example.org/a/b.git", "https://example.org/a/b.git"),
        ("git@example.org:a/b.git", "git@example.org:a/b.git"),
        ("ssh://git@example.org/a/b.git", "ssh://git@example.org/a/b.git"),
        ("/srv/git/b.git", None),
        ("file:///srv/git/b.git", None),
    ],
)
def test_a_remote_is_named_without_password(remote: str, public: str | None) -> None:
    git("remote", "add", "origin", remote)
    assert revision(Path()).remote == public
