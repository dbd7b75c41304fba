"""Checkpoints are whole or absent, and a damaged one is never used."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.artifacts import Resume
from pipeline.files import sha256_of
from pipeline.log import UserError
from pipeline.model.config import GPTConfig
from pipeline.model.gpt import GPT
from pipeline.training import checkpoint
from pipeline.training.checkpoint import CheckpointManifest, CheckpointStore, restore
from pipeline.training.metrics import MetricsState, RunStats
from pipeline.training.optim import Optimizer
from pipeline.training.params import TrainParams
from tests.training.conftest import CONFIG, ONE_RANK, TRAIN, same, trainer

CODE = {"pipeline/training/trainer.py": "0" * 64}


def parts(value: float) -> dict[str, Any]:
    return {
        "weights": {"w": torch.full((3, 3), value)},
        "optimizer": [{"state": {0: {"step": torch.tensor(value)}}}],
        "rng": [{"cpu": torch.zeros(4)}],
    }


def metrics(step: int) -> MetricsState:
    stats = RunStats(train_time_s=1.5, resumes=[Resume(step=step, changed_files=["a.py"])], spikes=2)
    return MetricsState(stats=stats, recent_losses=[1.5, 0.1])


def store_with(directory: Path, steps: tuple[int, ...], kept: int = 3) -> CheckpointStore:
    store = CheckpointStore(directory, kept, CODE)
    for step in steps:
        store.save(step, parts(step), metrics(step), {"dtype": "float32"})
    store.wait()
    return store


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    newest = store_with(tmp_path, (5, 10)).newest()
    assert newest is not None
    manifest = newest.manifest
    assert (newest.step, manifest.metrics, manifest.code) == (10, metrics(10), CODE)
    assert manifest.execution == {"dtype": "float32"}
    assert torch.equal(newest.load("weights")["w"], torch.full((3, 3), 10.0))
    assert newest.load("optimizer")[0]["state"][0]["step"] == 10


def test_tensors_are_copied_before_training_goes_on(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 1)
    state = parts(1.0)
    store.save(1, state, MetricsState())
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
def test_a_damaged_checkpoint_is_renamed_and_the_one_before_it_is_used(
    tmp_path: Path, name: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    store = store_with(tmp_path, (5, 10))
    damage(tmp_path / "step_00000010" / name)
    newest = store.newest()
    assert newest is not None
    assert newest.step == 5
    assert "step_00000010" in capsys.readouterr().out
    assert (tmp_path / "damaged_step_00000010").is_dir()


def test_no_flipped_bit_in_a_manifest_goes_unnoticed(tmp_path: Path) -> None:
    """Nor in the step, which the data order follows from."""
    store = store_with(tmp_path, (10,))
    expected = store.newest().manifest  # type: ignore[union-attr]
    manifest = tmp_path / "step_00000010" / "manifest.json"
    content = manifest.read_bytes()
    for position in range(len(content)):
        manifest.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        try:
            read = checkpoint.verified_manifest(manifest.parent)
        except (OSError, ValueError):
            continue
        assert read == expected


def test_when_all_are_damaged_training_does_not_start_over_by_itself(tmp_path: Path) -> None:
    store = store_with(tmp_path, (5, 10))
    for directory in tmp_path.glob("step_*"):
        truncate(directory / "weights.pt")
    for _ in range(2):  # the second time they have been renamed already
        with pytest.raises(UserError, match=str(tmp_path)):
            store.newest()


def rewrite(directory: Path, part: str, change: Callable[[Any], Any]) -> None:
    """Changes a part of a checkpoint, or its manifest, with hashes that match."""
    manifest = json.loads((directory / "manifest.json").read_text())
    if part == "manifest":
        manifest = change(manifest)
    else:
        file = directory / f"{part}.pt"
        torch.save(change(torch.load(file, weights_only=True)), file)
        manifest["files"][file.name] = sha256_of(file)
    if isinstance(manifest, dict) and isinstance(manifest["step"], int):
        record = CheckpointManifest.model_validate(manifest)
        manifest = record.model_copy(update={"sha256": record.digest()}).model_dump()
    (directory / "manifest.json").write_text(json.dumps(manifest))


def without(tree: dict[Any, Any], key: Any) -> dict[Any, Any]:
    return {name: value for name, value in tree.items() if name != key}


def with_state(change: Callable[[dict[str, Any]], Any]) -> Callable[[Any], Any]:
    """Changes the moments of the first parameter."""
    return lambda states: [{**states[0], "state": {**states[0]["state"], 0: change(states[0]["state"][0])}}]


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of a run of ten steps: 5 and 10."""
    directory = tmp_path_factory.mktemp("trained")
    trainer(shards, directory, train={"max_steps": 10}).run()
    return directory


BIAS = "transformer.ln_f.bias"


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("weights", lambda weights: without(weights, BIAS)),
        ("weights", lambda weights: {**weights, "extra": weights[BIAS]}),
        ("weights", lambda weights: {**weights, BIAS: weights[BIAS][:-1]}),
        ("weights", lambda weights: {**weights, BIAS: weights[BIAS].long()}),
        ("weights", lambda weights: list(weights.values())),
        ("weights", lambda weights: None),
        ("optimizer", lambda states: []),
        ("optimizer", lambda states: {"state": states}),
        ("optimizer", lambda states: [without(states[0], "state")]),
        ("optimizer", lambda states: [{**states[0], "state": without(states[0]["state"], 3)}]),
        ("optimizer", with_state(lambda moments: without(moments, "exp_avg"))),
        ("optimizer", with_state(lambda moments: {**moments, "exp_avg": moments["exp_avg"][:1]})),
        ("optimizer", with_state(lambda moments: {**moments, "step": 5})),
        ("rng", lambda rng: rng[0]),
        ("rng", lambda rng: [{"cuda": rng[0]["cpu"]}]),
        ("rng", lambda rng: [{"cpu": rng[0]["cpu"][:8]}]),
        ("rng", lambda rng: [{"cpu": rng[0]["cpu"].float()}]),
        ("manifest", lambda manifest: None),
        ("manifest", lambda manifest: {**manifest, "step": -1}),
        ("manifest", lambda manifest: {**manifest, "step": 11}),
        ("manifest", lambda manifest: {**manifest, "step": 1.5}),
        ("manifest", lambda manifest: {**manifest, "step": "x"}),
    ],
)
def test_a_checkpoint_that_does_not_fit_the_run_is_never_loaded_in_part(
    trained: Path, tmp_path: Path, part: str, change: Callable[[Any], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    store = CheckpointStore(shutil.copytree(trained, tmp_path / "checkpoints"), 1)
    model = GPT(GPTConfig.model_validate(CONFIG))
    optimizer = Optimizer(model, TrainParams.model_validate(TRAIN), ONE_RANK)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    for step in (5, 10):
        rewrite(store.directory / f"step_{step:08d}", part, change)
    with pytest.raises(UserError, match=str(tmp_path)):
        restore(store, model, optimizer, ONE_RANK)
    assert same(model.state_dict(), before)
    assert optimizer.state_dict()[0]["state"] == {}
    assert capsys.readouterr().out.count(f"{part}.") == 2
    shutil.copytree(trained / "step_00000005", store.directory / "step_00000005")
    restored = restore(store, model, optimizer, ONE_RANK)
    assert restored is not None
    assert same(model.state_dict(), restored.load("weights"))


def test_foreign_files_beside_checkpoints_are_left_alone(tmp_path: Path) -> None:
    for name in ("step_x", "step_", "notes"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "step_00000099").write_text("no directory")
    store = store_with(tmp_path, (1, 2, 3), kept=2)
    assert store.newest().step == 3  # type: ignore[union-attr]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "damaged_step_00000099",
        "notes",
        "step_",
        "step_x",
    ]


def test_no_checkpoint_is_a_fresh_start(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "none", 1).newest() is None


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    store_with(tmp_path, (1, 2, 3, 4), kept=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000003", "step_00000004"]


@pytest.mark.parametrize("hard_links", [True, False])
def test_milestones_outlive_rotation_and_the_run_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool
) -> None:
    def no_links(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not hard_links:
        monkeypatch.setattr("os.link", no_links)
    run, milestones = tmp_path / "run", tmp_path / "milestones"
    store = CheckpointStore(run, 1, CODE, milestones, milestone_interval=4)
    for step in (2, 4, 6, 8, 10):
        store.save(step, parts(step), MetricsState())
    store.wait()
    assert [path.name for path in run.iterdir()] == ["step_00000010"]
    shutil.rmtree(run)
    assert sorted(path.name for path in milestones.iterdir()) == ["step_00000004", "step_00000008"]
    milestone = CheckpointStore(milestones, 1).newest()
    assert milestone is not None
    assert torch.equal(milestone.load("weights")["w"], torch.full((3, 3), 8.0))


def test_a_partly_written_checkpoint_is_not_seen(tmp_path: Path) -> None:
    store = store_with(tmp_path, (5,))
    partial = tmp_path / ".step_00000010.123.tmp"
    partial.mkdir()
    (partial / "weights.pt").write_bytes(b"half")
    assert store.newest().step == 5  # type: ignore[union-attr]
    assert not partial.exists()


def test_a_full_disk_is_a_user_error_and_earlier_checkpoints_are_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_with(tmp_path, (5,))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    store.save(10, parts(10), MetricsState())
    with pytest.raises(UserError, match=f"{tmp_path}.*No space left"):
        store.wait()
    monkeypatch.undo()
    assert store.newest().step == 5  # type: ignore[union-attr]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000005"]
