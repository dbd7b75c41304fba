"""`python -m pipeline doctor`: what a kill leaves is repaired, nothing else is touched."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli.doctor import repair
from pipeline.files import exclusive_lock
from pipeline.log import UserError

SUMMARY = "of this training"
STAGE = """\
  {name}:
    cmd: {name}
    outs:
    - path: {path}
      md5: {md5}
"""


def lock(training: str, *names: str) -> str:
    """A dvc.lock with the named stages; that of training records a summary with this text."""
    md5 = hashlib.md5(training.encode()).hexdigest()
    paths = {"train": "reports/train/summary.json"}
    stages = (STAGE.format(name=name, path=paths.get(name, name), md5=md5) for name in names)
    return "schema: '2.0'\nstages:\n" + "".join(stages)


def git(*arguments: str) -> None:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.invalid"]
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


def commit(training: str) -> str:
    text = lock(training, "train", "report")
    Path("dvc.lock").write_text(text)
    git("add", "dvc.lock")
    git("commit", "-qm", training)
    return text


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose dvc.lock and reports are of a committed training."""
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    (tmp_path / "reports/train").mkdir(parents=True)
    (tmp_path / "reports/train/summary.json").write_text(SUMMARY)
    commit(SUMMARY)
    return tmp_path


def test_a_sound_repository_is_left_alone(repository: Path) -> None:
    (repository / ".dvc/tmp/rwlock").write_text('{"read": {}}')
    (repository / "data").mkdir()
    (repository / "data/.mine.tmp").touch()
    (repository / ".dvc/tmp/exps/run").mkdir(parents=True)
    before = sorted(repository.rglob("*"))
    assert list(repair()) == []
    assert set(repository.rglob("*")) - set(before) == {repository / ".dvc/tmp/rwlock.lock"}
    assert set(before) <= set(repository.rglob("*"))


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        ("", "empty"),
        (lock(SUMMARY, "train", "report")[:60], "not valid"),
        (lock(SUMMARY, "train", "report")[:-3], "cut off"),
        (lock(SUMMARY, "train"), "without report"),
        (lock(SUMMARY, "train", "report").partition("    outs")[0], "without report, train"),
    ],
)
def test_a_damaged_dvc_lock_is_restored_from_git_and_kept(repository: Path, damaged: str, reason: str) -> None:
    committed = (repository / "dvc.lock").read_text()
    (repository / "dvc.lock").write_text(damaged)
    (line,) = repair()
    assert f"dvc.lock: {reason}," in line
    assert (repository / "dvc.lock").read_text() == committed
    assert (repository / ".runs/damaged-dvc.lock").read_text() == damaged
    assert list(repair()) == []


def test_the_version_that_records_the_training_in_the_workspace_is_preferred(repository: Path) -> None:
    """An applied experiment: its dvc.lock is not HEAD's."""
    of_experiment = (repository / "dvc.lock").read_text()
    git("update-ref", "refs/exps/ab/cdef/name", "HEAD")
    of_head = commit("of another training")
    git("reset", "-q", "--soft", "HEAD~1")
    git("commit", "-q", "--amend", "-m", "another")
    (repository / "dvc.lock").write_text("")
    assert len(list(repair())) == 1
    assert (repository / "dvc.lock").read_text() == of_experiment != of_head


def test_a_damaged_dvc_lock_that_was_never_committed_is_moved_away(repository: Path) -> None:
    git("rm", "-q", "--cached", "dvc.lock")
    git("commit", "-q", "--amend", "--allow-empty", "-m", "without")
    (repository / "dvc.lock").write_text("")
    assert len(list(repair())) == 1
    assert not (repository / "dvc.lock").exists()


@pytest.mark.parametrize("content", ["", '{"write": {', "[]", '{"write": {"data": {"pid": 1, "cmd": "dvc repro"}}}'])
@pytest.mark.parametrize("path", [".dvc/tmp/rwlock", ".dvc/tmp/exps/rwlock"])
def test_a_damaged_or_stale_rwlock_is_removed(repository: Path, path: str, content: str) -> None:
    (repository / path).parent.mkdir(exist_ok=True)
    (repository / path).write_text(content)
    (line,) = repair()
    assert path in line
    assert not (repository / path).exists()


def test_temporaries_and_copies_are_removed_but_not_one_that_is_in_use(repository: Path) -> None:
    leftovers = [
        Path("data/.model.host-12.tmp/model.safetensors"),
        Path("reports/train/.curves.csv.host-12.tmp"),
        Path(".runs/.train-abc.other-host-12.old.tmp/checkpoints/x"),
        Path(".dvc/tmp/exps/standalone/tmpabc/.git/HEAD"),
        Path(".dvc/tmp/exps/tmpdef/.git/HEAD"),
    ]
    used = Path(".dvc/tmp/exps/tmpused/open")
    for path in (*leftovers, used):
        path.parent.mkdir(parents=True) if not path.parent.exists() else None
        path.touch()
    with used.open():
        lines = list(repair())
    assert sum("removed" in line for line in lines) == len(leftovers)
    (kept,) = [line for line in lines if "removed" not in line]
    assert str(used.parent) in kept
    assert f"process {os.getpid()} " in kept
    assert [path for path in leftovers if path.exists()] == []
    assert used.exists()


def test_nothing_is_touched_while_a_run_is_locked_or_a_process_works(repository: Path) -> None:
    (repository / "dvc.lock").write_text("")
    with exclusive_lock(repository / ".runs/train-abc"), pytest.raises(UserError, match=str(os.getpid())):
        list(repair())
    with exclusive_lock(repository / ".dvc/tmp/rwlock"), pytest.raises(UserError, match=str(os.getpid())):
        list(repair())
    code = "import time; print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, "stages.sample"], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            with pytest.raises(UserError, match=str(process.pid)):
                list(repair())
        finally:
            process.kill()
    assert (repository / "dvc.lock").read_text() == ""


def test_outside_a_dvc_repository_it_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="DVC"):
        list(repair())
