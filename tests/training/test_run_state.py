"""The key of a run, and its directory: kept until the run's record cannot be lost, then removed."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from pipeline.files import exclusive_lock
from pipeline.run_state import changed_files, code_hashes, finish, remove_finished, remove_recorded, run_key
from pipeline.runtime import RuntimeParams
from pipeline.training.checkpoint import CheckpointStore
from pipeline.training.metrics import MetricsState
from stages.train import starts_over
from tests.training.conftest import RUNTIME
from tests.training.test_checkpoint import parts


def test_the_key_depends_on_params_data_weights_and_format(tmp_path: Path) -> None:
    (manifest := tmp_path / "manifest.json").write_text("data")
    (other := tmp_path / "other.json").write_text("other data")
    params = {"model": {"n_layer": 2}, "train": {"seed": 1, "max_steps": 600}}
    keys = [
        run_key(params, manifest, "weights", 3),
        run_key({**params, "train": {"seed": 2, "max_steps": 600}}, manifest, "weights", 3),
        run_key(params, other, "weights", 3),
        run_key(params, manifest, "other weights", 3),
        run_key(params, manifest, "weights", 4),
    ]
    assert len(set(keys)) == len(keys)
    assert run_key(dict(reversed(params.items())), manifest, "weights", 3) == keys[0]
    longer = run_key({**params, "train": {"seed": 1, "max_steps": 1200}}, manifest, "weights", 3)
    assert (keys[0].partition("-")[2], longer) == ("600", keys[0].replace("-600", "-1200"))


def test_the_code_of_a_stage_is_its_python_deps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "stages/train.py",
        "pipeline/files.py",
        "pipeline/model/gpt.py",
        "pipeline/model/notes.md",
        "data/a.py",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    deps = "[stages/train.py, pipeline/files.py, pipeline/model, data, 'models/${model.init_from}']"
    Path("dvc.yaml").write_text(f"stages: {{train: {{deps: {deps}}}}}")
    before = code_hashes("train")
    assert sorted(before) == ["pipeline/files.py", "pipeline/model/gpt.py", "stages/train.py"]
    Path("pipeline/model/gpt.py").write_text("edited")
    Path("pipeline/files.py").unlink()
    Path("dvc.yaml").write_text("stages: {train: {deps: [stages/train.py, pipeline/model]}}")
    assert changed_files(before, code_hashes("train")) == ["pipeline/files.py", "pipeline/model/gpt.py"]


@pytest.mark.parametrize(
    ("resume", "code", "expected"),
    [
        ("auto", {"a.py": "2"}, False),
        ("same-code", {"a.py": "1"}, False),
        ("same-code", {"a.py": "2"}, True),
        ("never", {"a.py": "1"}, True),
    ],
)
def test_runtime_resume_says_when_to_start_over(
    tmp_path: Path, resume: str, code: dict[str, str], expected: bool
) -> None:
    before = CheckpointStore(tmp_path / "train-abc" / "checkpoints", 1, {"a.py": "1"})
    before.save(5, parts(5), MetricsState())
    before.wait()
    now = CheckpointStore(before.directory, 1, code)
    runtime = RuntimeParams.model_validate({**RUNTIME, "resume": resume})
    assert starts_over(runtime, now) == expected


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state of a run that has finished under DVC, in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "train")
    state = tmp_path / ".runs" / "train-abc"
    (state / "checkpoints").mkdir(parents=True)
    Path("summary.json").write_text("this run")
    finish(state, Path("summary.json"))
    return state


def record(content: bytes, commit: bool = False) -> None:
    """dvc.lock as DVC writes it for an output with this content."""
    md5 = hashlib.md5(content).hexdigest()
    Path("dvc.lock").write_text(
        f"schema: '2.0'\nstages:\n  train:\n    cmd: train\n    outs:\n    - path: summary.json\n      md5: {md5}\n"
    )
    if commit:
        for command in (["init", "-q"], ["add", "dvc.lock"], [*IDENTITY, "commit", "-qm", "record"]):
            subprocess.run(["git", *command], check=True)


IDENTITY = ["-c", "user.name=test", "-c", "user.email=test@example.invalid"]


def test_a_finished_run_that_dvc_runs_again_is_removed_only_where_dvc_lock_records_it(finished: Path) -> None:
    remove_recorded(finished)
    record(b"an earlier run")
    remove_recorded(finished)
    assert (finished / "checkpoints").is_dir()
    record(b"this run")
    remove_recorded(finished)
    assert list(finished.parent.iterdir()) == []


def test_a_finished_run_is_kept_until_it_is_committed(finished: Path) -> None:
    """A kill while DVC writes dvc.lock can lose what is not committed."""
    record(b"this run")
    assert remove_finished(finished.parent) == []
    record(b"an earlier run", commit=True)
    assert remove_finished(finished.parent) == []
    record(b"this run", commit=True)
    assert remove_finished(finished.parent, kept=finished) == []
    assert remove_finished(finished.parent) == [finished]
    assert not finished.exists()


def test_an_experiment_is_a_commit_too(finished: Path) -> None:
    record(b"this run", commit=True)
    subprocess.run(["git", "update-ref", "refs/exps/ab/cdef/name", "HEAD"], check=True)
    record(b"another run")
    subprocess.run(["git", *IDENTITY, "commit", "-q", "--amend", "-am", "another"], check=True)
    assert remove_finished(finished.parent) == [finished]


def test_the_next_training_removes_the_finished_run_that_it_replaces(finished: Path) -> None:
    record(b"this run")
    Path("summary.json").write_text("next run")
    following = finished.with_name("train-def")
    following.mkdir()
    finish(following, Path("summary.json"))
    assert sorted(finished.parent.glob("train-*/")) == [following]


def test_a_finished_run_in_use_is_not_removed(finished: Path) -> None:
    record(b"this run", commit=True)
    with exclusive_lock(finished):
        assert remove_finished(finished.parent) == []
    assert finished.exists()


def test_an_unfinished_run_is_never_removed(finished: Path) -> None:
    record(b"this run", commit=True)
    unfinished = finished.with_name("train-def")
    unfinished.mkdir()
    remove_finished(finished.parent)
    assert list(finished.parent.glob("*/")) == [unfinished]


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"md5": 1}', b"\xff"])
def test_a_damaged_note_of_a_finished_run_is_named_and_ignored(
    finished: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    record(b"this run")
    (finished / "finished.json").write_bytes(content)
    remove_recorded(finished)
    assert finished.exists()
    assert "train-abc" in capsys.readouterr().out


def test_without_dvc_a_finished_run_is_removed_at_once(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_STAGE")
    finish(finished, Path("summary.json"))
    assert not finished.exists()


def test_a_killed_removal_leaves_nothing_to_resume(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(b"this run")

    def killed(_: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(OSError, match="killed"):
            remove_recorded(finished)
    assert not finished.exists()
    (leftover,) = finished.parent.iterdir()
    # as if the process had died
    leftover.rename(leftover.with_name(leftover.name.replace(f"-{os.getpid()}.", f"-{dead_pid()}.")))
    remove_finished(finished.parent)
    assert list(finished.parent.iterdir()) == []


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid
