"""Saves that are cut short or fail: the earlier checkpoint or the new one is there, whole, and nothing is silent."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.log import UserError
from pipeline.model.gpt import GPT
from pipeline.training import checkpoint
from pipeline.training.checkpoint import CheckpointStore
from pipeline.training.metrics import Row
from pipeline.training.trainer import Probe
from tests.faults.conftest import Begin
from tests.faults.saves import METRICS, parts
from tests.faults.small import ROOT, same
from tests.training.conftest import MemoryLogger, trainer


def test_killed_at_any_point_of_a_save_the_earlier_checkpoint_or_the_new_one_is_found_whole(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.saves", tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    steps = [step for _, step in printed["kills"]]
    assert len(steps) > 40, printed["kills"]
    assert steps == sorted(steps)
    assert set(steps) == {4, 6}
    assert (printed["exit"], printed["at the end"]) == (0, 6)


def test_damaged_checkpoints_are_passed_over_and_the_run_ends_the_same(begin: Begin, whole: dict[str, Any]) -> None:
    run = begin(runtime={"checkpoints_kept": 4})
    run.train("kill@17", ok=False)
    store = run.state / "checkpoints"
    newest, weights = store / "step_00000016/weights.pt", store / "step_00000012/weights.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    (store / "step_00000008/manifest.json").unlink()
    run.train()
    assert run.resumed_at() == [4]
    assert len(list(run.state.glob("checkpoints/damaged_step_*"))) == 3
    assert same(run.result(), whole)


def test_when_all_checkpoints_are_damaged_nothing_is_trained_until_someone_decides(begin: Begin) -> None:
    run = begin()
    run.train("kill@9", ok=False)
    for file in run.state.glob("checkpoints/*/weights.pt"):
        file.write_bytes(b"")
    output = run.train(ok=False).output
    assert str(run.state.relative_to(run.path)) in output
    assert "Traceback" not in output
    assert not (run.path / "data/model").exists()


@contextmanager
def tmpfs(directory: Path, size: int) -> Iterator[Path]:
    """A file system of `size` bytes at `directory`; yields a file that fills it."""
    directory.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield directory / "filler"
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def test_a_full_disk_during_a_save_stops_the_run_and_after_freeing_space_it_ends_the_same(
    begin: Begin, whole: dict[str, Any], checkpoint_bytes: int
) -> None:
    run = begin()
    with tmpfs(run.path / ".runs", size=8 * checkpoint_bytes) as filler:
        filler.write_bytes(bytes(int(5.2 * checkpoint_bytes)))  # room for two checkpoints, not for three
        stopped = run.train(ok=False)
        assert "No space left on device" in stopped.output
        assert "Traceback" not in stopped.output
        assert run.newest().step == 8
        filler.unlink()
        run.train()
        assert run.resumed_at() == [8]
        assert same(run.result(), whole)


def test_a_full_disk_under_curves_or_model_stops_the_run_and_costs_nothing(begin: Begin, whole: dict[str, Any]) -> None:
    run = begin()
    shards, benchmarks = ((run.path / "data" / name).resolve() for name in ("shards", "benchmarks"))
    with tmpfs(run.path / "reports", 80_000) as reports, tmpfs(run.path / "data", 80_000) as data:
        (data.parent / "shards").symlink_to(shards)
        (data.parent / "benchmarks").symlink_to(benchmarks)
        for filler, place in ((reports, "reports/train/"), (data, "data/")):
            filler.write_bytes(bytes(77_000))  # one page is left
            output = run.train(ok=False).output
            assert "No space left on device" in output
            assert place in output
            assert "Traceback" not in output
            filler.unlink()
        run.train()
        assert same(run.result(), whole)


def fail(*_: Any, **__: Any) -> None:
    raise OSError(5, "Input/output error")


def test_a_save_that_failed_stops_the_run_at_once_and_not_when_the_next_is_due(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait_for_the_save(_model: GPT, _step: int) -> Row:
        if run.store._saving is not None:
            run.store._saving.exception()
        return {}

    monkeypatch.setattr("torch.save", fail)
    recorder = MemoryLogger()
    run = trainer(
        data / "shards", tmp_path, recorder, runtime={"checkpoint_interval": 5}, probes=(Probe(3, wait_for_the_save),)
    )
    with pytest.raises(UserError, match="Input/output error"):
        run.run()
    assert recorder.rows[-1]["step"] == 6


@pytest.mark.parametrize("call", ["torch.save", "os.fsync", "pathlib.Path.replace", "os.open"])
def test_an_input_output_error_at_any_call_of_a_save_is_told_and_earlier_checkpoints_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    store = CheckpointStore(tmp_path, kept=2)
    store.save(2, parts(2), METRICS)
    store.wait()
    with monkeypatch.context() as broken:
        broken.setattr(call, fail)
        store.save(4, parts(4), METRICS)
        with pytest.raises(UserError, match="Input/output error"):
            store.wait()
    newest = store.newest()
    assert newest is not None
    assert newest.step == 2
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000002"]


def test_an_old_checkpoint_that_cannot_be_removed_is_a_warning_and_saving_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    remove: Callable[..., None] = checkpoint.shutil.rmtree  # type: ignore[attr-defined]

    def refuse(path: Path, ignore_errors: bool = False) -> None:
        if "step_00000002" in path.name and not ignore_errors:
            raise PermissionError(13, "Permission denied")
        remove(path, ignore_errors=ignore_errors)

    monkeypatch.setattr("shutil.rmtree", refuse)
    store = CheckpointStore(tmp_path, kept=1)
    for step in (2, 4, 6):
        store.save(step, parts(step), METRICS)
    store.wait()
    assert capsys.readouterr().out.count("cannot remove the old checkpoint step_00000002") == 1
    newest = store.newest()
    assert newest is not None
    assert newest.step == 6
    assert torch.equal(newest.load("weights")["other"], torch.tensor(6))
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000006"]  # what was left is tried again at a start
