"""The end of a run's state: kept until dvc.lock records the run, then gone."""

import hashlib
from pathlib import Path

import pytest

from pipeline.log import Stop
from pipeline.training.run_state import finish, locked, remove_recorded


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state of a run that has ended under DVC, in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "train")
    state = tmp_path / ".runs" / "train-abc"
    (state / "checkpoints").mkdir(parents=True)
    Path("summary.json").write_text("a run like no other")
    finish(state, Path("summary.json"))
    return state


def record(content: bytes) -> None:
    """dvc.lock as DVC writes it for an output with this content."""
    md5 = hashlib.md5(content).hexdigest()
    Path("dvc.lock").write_text(f"stages:\n  train:\n    outs:\n    - path: summary.json\n      md5: {md5}\n")


def test_a_finished_run_that_dvc_has_not_recorded_can_be_taken_up(finished: Path) -> None:
    remove_recorded(finished.parent)
    record(b"an earlier run")
    remove_recorded(finished.parent)
    assert (finished / "checkpoints").is_dir()


def test_a_finished_run_that_dvc_has_recorded_is_removed(finished: Path) -> None:
    record(b"a run like no other")
    remove_recorded(finished.parent)
    assert list(finished.parent.iterdir()) == []


def test_an_unfinished_run_is_never_removed(finished: Path) -> None:
    record(b"a run like no other")
    unfinished = finished.with_name("train-def")
    unfinished.mkdir()
    remove_recorded(finished.parent)
    assert list(finished.parent.iterdir()) == [unfinished]


def test_without_dvc_nothing_is_waited_for(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_STAGE")
    finish(finished, Path("summary.json"))
    assert not finished.exists()


def test_a_removal_that_was_killed_leaves_nothing_that_could_be_taken_up(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(b"a run like no other")

    def killed(_: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError("no time left")

    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", killed)
        remove_recorded(finished.parent)
    assert not finished.exists()
    remove_recorded(finished.parent)
    assert list(finished.parent.iterdir()) == []


def test_a_run_directory_is_held_by_one_process(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "run"),
        pytest.raises(Stop, match="the same configuration is being trained already"),
        locked(tmp_path / "run"),
    ):
        pass
    with locked(tmp_path / "run"):
        pass
