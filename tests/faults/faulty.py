"""The train stage with faults in it: `python -m pipeline.launch tests.faults.faulty kill@13:1`.

Each argument names a fault, the step that it comes before, and the rank that it befalls (all, if none is named):

    kill@13:1           SIGKILL to the process itself, at a time when nothing is being saved
    term@9 int@9        SIGTERM, SIGINT to the process itself
    term-launcher@9:0   SIGTERM to torchrun
    term-in-save@9      SIGTERM, twice, in the middle of writing the checkpoint of step 9, if there is one
    nan@5:1             a loss that is no number
    patience@5          (seconds) waits no longer than that for W&B at the end
    hold@5              waits until a file `go` lies in the directory, and touches `held`

A process that torchrun has started again has no faults. `signalled` is written when a signal is sent.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

import stages.train
from pipeline.files import write_json
from pipeline.log import clear_errors, rank
from pipeline.tracking import wandb_run
from pipeline.training import checkpoint
from pipeline.training.trainer import Trainer


def befall(name: str, trainer: Trainer) -> None:
    """Lets a fault happen now."""
    if name == "kill":
        trainer.store.wait()
        os.kill(os.getpid(), signal.SIGKILL)
    elif name in ("term", "int"):
        send(os.getpid(), signal.SIGTERM if name == "term" else signal.SIGINT)
    elif name == "term-launcher":
        send(os.getppid(), signal.SIGTERM)
        time.sleep(1)  # for torchrun to hand it on
    elif name == "nan":
        lose_the_loss(trainer)
    elif name == "hold":
        Path("held").touch()
        while not Path("go").exists():
            time.sleep(0.02)
    else:
        raise ValueError(f"no such fault: {name}")


def send(process: int, number: signal.Signals) -> None:
    Path("signalled").write_text(str(time.monotonic()))
    os.kill(process, number)


def lose_the_loss(trainer: Trainer) -> None:
    """The next forward pass gives a loss that is no number."""
    forward = trainer.model.forward

    def poisoned(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        trainer.model.forward = forward  # type: ignore[method-assign]
        logits, loss = forward(*arguments)
        assert loss is not None
        return logits, loss * torch.nan

    trainer.model.forward = poisoned  # type: ignore[assignment, method-assign]


def signal_in_save(step: int) -> None:
    """Two signals while a checkpoint is half written."""

    def interrupted(path: Path, value: dict[str, Any]) -> None:
        if value.get("step") == step and path.parent.name.startswith(".step_"):
            for _ in range(2):
                send(os.getpid(), signal.SIGTERM)
                time.sleep(0.2)  # for the main thread to receive it
        write_json(path, value)

    checkpoint.write_json = interrupted  # type: ignore[attr-defined]


def install(fault: str) -> None:
    """Makes a fault, as the module's docstring names it, happen at its step."""
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
    step = Trainer._step

    def faulty(self: Trainer, number: int) -> None:
        if number == int(at):
            befall(name, self)
        step(self, number)

    Trainer._step = faulty  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        for argument in sys.argv[1:]:
            install(argument)
    with clear_errors("train"):
        stages.train.main()
