"""A longer run continues a shorter one where both are the same up to a checkpoint."""

from pathlib import Path

import pytest

from pipeline.artifacts import Resume
from pipeline.files import exclusive_lock
from pipeline.training.checkpoint import step_of
from pipeline.training.continuation import continue_another_run, shared_checkpoints
from pipeline.training.optim import decay_start
from pipeline.training.trainer import Trainer
from tests.training.conftest import same, trainer, weights_of

HALF = {"decay_fraction": 0.5}


def run_of(shards: Path, runs: Path, steps: int, schedule: str) -> Trainer:
    """A run that saves after steps 5, 10, ... and the last, and keeps two checkpoints and that before the decay."""
    params = {**HALF, "max_steps": steps, "schedule": schedule}
    run = trainer(shards, runs / f"train-abc-{steps}" / "checkpoints", train=params)
    run.store.run = f"abc-{steps}"
    run.store.pinned = decay_start(run.train) if schedule == "wsd" else None
    return run


@pytest.mark.parametrize(("schedule", "shared"), [("constant", [12, 10]), ("wsd", [6]), ("cosine", []), ("linear", [])])
def test_a_longer_run_begins_where_the_schedules_part(
    shards: Path, tmp_path: Path, schedule: str, shared: list[int]
) -> None:
    run_of(shards, tmp_path, 12, schedule).run()
    longer, state = run_of(shards, tmp_path, 20, schedule), tmp_path / "train-abc-20"
    assert [step_of(checkpoint) for checkpoint in shared_checkpoints(state, longer.train)] == shared
    if not shared:
        return
    with exclusive_lock(tmp_path / "train-abc-12"):
        continue_another_run(state, longer.store, longer.train, same_code=False)
    assert not state.exists()  # the other run is in use
    continue_another_run(state, longer.store, longer.train, same_code=False)
    longer.run()
    assert longer.metrics.stats.resumes == [Resume(step=shared[0], changed_files=[], run="abc-12")]
    at_once = run_of(shards, tmp_path / "at once", 20, schedule)
    at_once.run()
    assert same(weights_of(longer), weights_of(at_once))


def test_a_damaged_checkpoint_or_one_of_other_code_is_not_continued(shards: Path, tmp_path: Path) -> None:
    run_of(shards, tmp_path, 12, "constant").run()
    (tmp_path / "train-abc-12/checkpoints/step_00000012/weights.pt").write_bytes(b"")
    longer, state = run_of(shards, tmp_path, 20, "constant"), tmp_path / "train-abc-20"
    longer.store.code = {"edited.py": "1"}
    continue_another_run(state, longer.store, longer.train, same_code=True)
    assert not state.exists()
    continue_another_run(state, longer.store, longer.train, same_code=False)
    assert [path.name for path in longer.store.directory.iterdir()] == ["step_00000010"]


@pytest.mark.parametrize(("eval_interval", "shared"), [(4, [12, 10]), (5, [10])])
def test_a_loss_that_only_the_shorter_run_measured_does_not_count(
    shards: Path, tmp_path: Path, eval_interval: int, shared: list[int]
) -> None:
    for step in (10, 12):
        (tmp_path / f"train-abc-12/checkpoints/step_{step:08d}").mkdir(parents=True)
    train = run_of(shards, tmp_path, 20, "constant").train
    for decides in ({"keep": "best"}, {"patience": 9}):
        longer = train.model_copy(update={**decides, "eval_interval": eval_interval})
        assert [step_of(checkpoint) for checkpoint in shared_checkpoints(tmp_path / "train-abc-20", longer)] == shared
