"""Continues a shorter run: its checkpoint and curves become the beginning of a longer one.

Two runs that differ only in train.max_steps are bit-identical as long as their learning rates are equal: with a
constant schedule always, with wsd until the decay of the shorter one begins, with cosine and linear during warmup.
"""

import shutil
from pathlib import Path

from pipeline.files import atomic_directory, atomic_path, exclusive_lock, link_or_copy
from pipeline.log import logger
from pipeline.run_state import changed_files
from pipeline.training.checkpoint import (
    CHECKPOINT_FILES,
    CheckpointStore,
    checkpoint_directories,
    step_of,
    verified_manifest,
)
from pipeline.training.optim import learning_rate
from pipeline.training.params import TrainParams

RECORDS = ("curves.csv", "samples.json")
"""What loggers write beside the checkpoints."""


def continue_another_run(state: Path, store: CheckpointStore, train: TrainParams, same_code: bool) -> None:
    """Copies the newest checkpoint that another run shares with this new run, if there is one, and that run's curves.

    `state`: the new run's directory, `train-<hash>-<max_steps>`. `same_code`: only a checkpoint of the present code.
    """
    for checkpoint in shared_checkpoints(state, train):
        other = checkpoint.parents[1]
        try:
            with exclusive_lock(other, wait=False):
                manifest = verified_manifest(checkpoint)
                if same_code and changed_files(manifest.code, store.code):
                    continue
                for name in RECORDS:
                    if (other / name).exists():
                        with atomic_path(state / name) as temporary:
                            shutil.copyfile(other / name, temporary)
                with atomic_directory(store.directory / checkpoint.name, CHECKPOINT_FILES) as directory:
                    for file in checkpoint.iterdir():
                        link_or_copy(file, directory / file.name)
        except (OSError, ValueError) as error:
            logger.warning("cannot continue the run in %s from %s: %s", other, checkpoint.name, error)
            continue
        steps = other.name.rpartition("-")[2]
        logger.info("continuing the %s-step run in %s from step %d", steps, other, manifest.step)
        return


def shared_checkpoints(state: Path, train: TrainParams) -> list[Path]:
    """The checkpoints of other runs up to which this run is the same, the newest first."""
    found = []
    for other in state.parent.glob(f"{state.name.rpartition('-')[0]}-*/"):
        length = other.name.rpartition("-")[2]
        if other == state or not length.isdecimal():
            continue
        params = train.model_copy(update={"max_steps": int(length)})
        steps = range(1, min(params.max_steps, train.max_steps - 1) + 1)
        same = next((s - 1 for s in steps if learning_rate(s, train) != learning_rate(s, params)), len(steps))
        if train.loss_decides and params.max_steps % train.eval_interval:
            same = min(same, params.max_steps - 1)  # the other run has measured a loss at its end, this one does not
        found += [path for path in checkpoint_directories(other / "checkpoints") if step_of(path) <= same]
    return sorted(found, key=step_of, reverse=True)
