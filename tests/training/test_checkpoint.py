"""Checkpoints are whole or absent, and a damaged one is never used."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.log import Stop
from pipeline.training import checkpoint
from pipeline.training.checkpoint import CheckpointStore


def parts(value: float) -> dict[str, Any]:
    weights = {"w": torch.full((3, 3), value)}
    return {
        "weights": weights,
        "optimizer": [{"state": {0: {"step": torch.tensor(value)}}}],
        "rng": [{"cpu": torch.zeros(4)}],
    }


def store_with(directory: Path, steps: tuple[int, ...], kept: int = 3) -> CheckpointStore:
    store = CheckpointStore(directory, kept)
    for step in steps:
        store.save(step, parts(step), {"recent_losses": [1.5], "counters": {"resumes": step}})
    store.wait()
    return store


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    found = store_with(tmp_path, (5, 10)).newest()
    assert found is not None
    assert (found.step, found.counters["counters"]) == (10, {"resumes": 10})
    assert torch.equal(found.load("weights")["w"], torch.full((3, 3), 10.0))
    assert found.load("optimizer")[0]["state"][0]["step"] == 10


def test_tensors_are_copied_before_training_goes_on(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 1)
    state = parts(1.0)
    store.save(1, state, {})
    state["weights"]["w"].fill_(99)
    store.wait()
    assert store.newest().load("weights")["w"].max() == 1  # type: ignore[union-attr]


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["weights.pt", "optimizer.pt", "rng.pt", "manifest.json"])
@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(
    tmp_path: Path, name: str, damage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    store = store_with(tmp_path, (5, 10))
    damage(tmp_path / "step_00000010" / name)
    found = store.newest()
    assert found is not None
    assert found.step == 5
    assert "step_00000010 is damaged" in capsys.readouterr().out
    assert (tmp_path / "damaged_step_00000010").is_dir()


def test_no_flipped_bit_in_a_manifest_goes_unseen(tmp_path: Path) -> None:
    """Not that of the step either, from which the order of the data follows."""
    store = store_with(tmp_path, (10,))
    manifest = tmp_path / "step_00000010" / "manifest.json"
    sound = manifest.read_bytes()
    for position in range(len(sound)):
        manifest.write_bytes(sound[:position] + bytes([sound[position] ^ 1]) + sound[position + 1 :])
        try:
            read = checkpoint._verified(manifest.parent)
        except (OSError, ValueError, KeyError):
            continue
        assert (read.step, read.counters) == (10, {"recent_losses": [1.5], "counters": {"resumes": 10}})
    manifest.write_bytes(sound)
    assert store.newest() is not None


def test_when_all_are_damaged_the_run_stops_and_says_so_each_time(tmp_path: Path) -> None:
    store = store_with(tmp_path, (5, 10))
    for directory in tmp_path.glob("step_*"):
        truncate(directory / "weights.pt")
    for _ in range(2):  # the second time they have been set aside already: no reason to train anew in silence
        with pytest.raises(Stop, match=r"all 2 checkpoints .* are damaged"):
            store.newest()


def test_no_checkpoint_is_a_fresh_start(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "none", 1).newest() is None


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    store_with(tmp_path, (1, 2, 3, 4), kept=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000003", "step_00000004"]


def test_milestones_outlive_rotation_and_the_run_itself(tmp_path: Path) -> None:
    run, milestones = tmp_path / "run", tmp_path / "milestones"
    store = CheckpointStore(run, 1, milestones, milestone_interval=4)
    for step in (2, 4, 6, 8, 10):
        store.save(step, parts(step), {})
    store.wait()
    assert [path.name for path in run.iterdir()] == ["step_00000010"]
    shutil.rmtree(run)
    assert sorted(path.name for path in milestones.iterdir()) == ["step_00000004", "step_00000008"]
    old = CheckpointStore(milestones, 1).newest()
    assert old is not None
    assert torch.equal(old.load("weights")["w"], torch.full((3, 3), 8.0))


def test_a_half_written_checkpoint_is_not_seen(tmp_path: Path) -> None:
    store = store_with(tmp_path, (5,))
    half = tmp_path / ".step_00000010.123.tmp"
    half.mkdir()
    (half / "weights.pt").write_bytes(b"half")
    assert store.newest().step == 5  # type: ignore[union-attr]
    assert not half.exists()


def test_a_full_disk_ends_in_one_clear_error_and_earlier_checkpoints_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_with(tmp_path, (5,))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    store.save(10, parts(10), {})
    with pytest.raises(Stop, match=r"cannot save a checkpoint.*No space left"):
        store.wait()
    monkeypatch.undo()
    assert store.newest().step == 5  # type: ignore[union-attr]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000005"]


def test_a_checkpoint_that_cannot_be_removed_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = store_with(tmp_path, (5,), kept=1)

    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint.shutil, "rmtree", refuse)
    store._rotate()
    (tmp_path / "step_00000006").mkdir()
    store._rotate()
    assert "cannot remove the old checkpoint step_00000005" in capsys.readouterr().out
