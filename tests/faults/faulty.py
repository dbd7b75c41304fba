"""The train stage with injected faults: `python -m pipeline launch tests.faults.faulty kill@13:1`.

Each argument names a fault, the step before which it happens, and the rank (all ranks if none is named):

    kill@13:1           SIGKILL to the process itself, while nothing is being saved
    kill-launcher@13:0  SIGKILL to torchrun
    raise@13:1          an error of the code, after which the process group would take a minute to end
    term@9 int@9        SIGTERM, SIGINT to the process itself
    term-launcher@9:0   SIGTERM to torchrun
    term-in-save@9      SIGTERM, twice, in the middle of writing the checkpoint of step 9, if there is one
    nan@5:1             a loss that is not a number
    patience@5          (seconds) waits no longer than that for W&B at the end
    hold@5              touches `held` and waits until a file `go` appears

A process that torchrun has restarted has no faults.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

import stages.train
from pipeline.log import cli_errors, rank
from pipeline.tracking import wandb_run
from pipeline.training import trainer
from pipeline.training.checkpoint import CheckpointManifest
from pipeline.training.params import TrainParams
from pipeline.training.trainer import Trainer


def happen(name: str, run: Trainer) -> None:
    """Injects a fault now."""
    if name == "kill":
        run.store.wait()
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "kill-launcher":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(1)  # the ranks learn of it
    elif name == "raise":
        torch.distributed.destroy_process_group = lambda: time.sleep(60)
        raise RuntimeError("no such kernel")
    elif name in ("term", "int"):
        os.kill(os.getpid(), signal.SIGTERM if name == "term" else signal.SIGINT)
    elif name == "term-launcher":
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(1)  # torchrun passes it on
    elif name == "nan":
        make_loss_nan(run)
    elif name == "hold":
        Path("held").touch()
        while not Path("go").exists():
            time.sleep(0.02)
    else:
        raise ValueError(f"no such fault: {name}")


def make_loss_nan(run: Trainer) -> None:
    """The next forward pass gives a NaN loss."""
    forward = run.model.forward

    def poisoned(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        run.model.forward = forward  # type: ignore[method-assign]
        logits, loss = forward(*arguments)
        assert loss is not None
        return logits, loss * torch.nan

    run.model.forward = poisoned  # type: ignore[assignment, method-assign]


def signal_in_save(step: int) -> None:
    """Two signals while a checkpoint is half written."""

    write = CheckpointManifest.write

    def interrupted(manifest: CheckpointManifest, path: Path) -> None:
        if manifest.step == step:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.2)  # the main thread receives it
        write(manifest, path)

    CheckpointManifest.write = interrupted  # type: ignore[method-assign]


def install(fault: str) -> None:
    """Arranges for a fault to happen at its step."""
    name, _, place = fault.partition("@")
    at, _, on = place.partition(":")
    if name == "patience":
        wandb_run.FINISH_TIMEOUT_S = float(at)
        return
    if on and int(on) != rank():
        return
    if name == "term-in-save":
        signal_in_save(int(at))
        return
    learning_rate = trainer.learning_rate

    def faulty(step: int, params: TrainParams) -> float:  # called before each step
        if step == int(at):
            happen(name, running[0])
        return learning_rate(step, params)

    trainer.learning_rate = faulty


running: list[Trainer] = []


def remember_trainer() -> None:
    run = Trainer.run

    def remembered(self: Trainer) -> Any:
        running.append(self)
        return run(self)

    Trainer.run = remembered  # type: ignore[method-assign]


if __name__ == "__main__":
    remember_trainer()
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        for argument in sys.argv[1:]:
            install(argument)
    with cli_errors("train"):
        stages.train.main()
