"""W&B that raises or never answers: training ends with its curves complete."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Begin
from tests.faults.small import SmallRun, same

ONLINE = {"mode": "online"}
PATIENCE_S = 2.0  # in place of the minute that a run waits for W&B at its end


def key_and(url: str) -> dict[str, str]:
    return {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": url}


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Accepts every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def ends_whole(run: SmallRun, whole: dict[str, Any], **environment: str) -> None:
    run.environment |= environment
    output = run.train(f"patience@{PATIENCE_S}", timeout_s=60).output
    assert same(run.result(), whole)
    assert "W&B: " in output
    assert "Traceback" not in output


def test_training_ends_with_its_curves_whole_where_wandb_never_answers(
    begin: Begin, whole: dict[str, Any], silent_server: str
) -> None:
    ends_whole(begin(tracking=ONLINE), whole, **key_and(silent_server))


def test_training_ends_with_its_curves_whole_where_wandb_raises(
    begin: Begin, whole: dict[str, Any], tmp_path: Path
) -> None:
    run = begin(tracking=ONLINE)
    (run.path / "wandb.py").write_text("raise RuntimeError('not today')")
    ends_whole(run, whole, PYTHONPATH=f"{run.path}:{run.environment['PYTHONPATH']}")


def test_a_signal_ends_training_in_time_where_wandb_never_answers(begin: Begin, silent_server: str) -> None:
    run = begin(tracking=ONLINE)
    run.environment |= key_and(silent_server)
    assert run.train("term@9", ok=False, timeout_s=60).code == 143  # torchrun and schedulers kill after 30 s
    assert run.newest().step == 9
