"""W&B can neither stop nor slow a run: offline, missing, raising, hanging."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from pipeline.files import write_json
from pipeline.tracking import wandb_run
from pipeline.tracking.params import TrackingParams
from pipeline.tracking.wandb_run import RunIdentity, WandbRun, log_to_training_run, resolved_mode, run_identity

PARAMS = TrackingParams(mode="auto", project="tests", entity=None, tags=["a tag"])
ONLINE = RunIdentity(id="abc123", name="a-run", mode="online")


class FakeRun:
    """Stands for a run on a server: keeps what it is given."""

    url = "https://example.invalid/run"

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.axes: list[tuple[str, str | None]] = []
        self.summary: dict[str, Any] = {}
        self.exit_code: int | None = None

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.axes.append((name, step_metric))

    def log(self, cells: dict[str, Any], step: int | None) -> None:
        self.logged.append((step or 0, cells))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Replaces wandb.init; keeps the run and how it was asked for."""
    seen = SimpleNamespace(run=FakeRun(), asked={})

    def init(**asked: Any) -> FakeRun:
        seen.asked = asked
        return seen.run

    monkeypatch.setattr(wandb, "init", init)
    return seen


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def rows(*steps: int) -> list[dict[str, Any]]:
    return [{"step": step, "tokens": 8 * step, "train/loss": 1.0, "val/loss": None, "event": ""} for step in steps]


def test_without_a_key_a_run_is_offline_and_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert resolved_mode(PARAMS) == "offline"
    assert capsys.readouterr().out.count("\n") == 1


def test_a_key_or_the_environment_or_params_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert resolved_mode(PARAMS) == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolved_mode(PARAMS) == "disabled"
    assert resolved_mode(PARAMS.model_copy(update={"mode": "offline"})) == "offline"


def test_a_resumed_run_keeps_its_id(tmp_path: Path) -> None:
    first = run_identity(tmp_path / "wandb.json", "name", "offline")
    assert run_identity(tmp_path / "wandb.json", "another", "online") == RunIdentity(first.id, "name", "online")


def test_rows_go_over_tokens_with_their_step_and_no_empty_cells(server: SimpleNamespace) -> None:
    run = WandbRun(ONLINE, PARAMS, {"model": {"n_layer": 4}}, "train")
    run.record(rows(0, 1))
    run.summarise({"final": 2.0})
    found = run.finish()
    assert server.run.logged == [(0, {"tokens": 0, "train/loss": 1.0}), (1, {"tokens": 8, "train/loss": 1.0})]
    assert server.run.axes == [("tokens", None), ("*", "tokens")]
    assert (server.asked["id"], server.asked["name"], server.asked["resume"]) == ("abc123", "a-run", "allow")
    assert server.asked["config"] == {"model": {"n_layer": 4}}
    assert server.run.summary == {"final": 2.0}
    assert (server.run.exit_code, found.url) == (0, FakeRun.url)


def test_steps_that_an_earlier_process_logged_are_not_logged_again(server: SimpleNamespace) -> None:
    run = WandbRun(ONLINE, PARAMS, {}, "train", after_step=5)
    run.record(rows(4, 5, 6, 7))
    run.finish()
    assert [step for step, _ in server.run.logged] == [6, 7]


def test_a_server_that_raises_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def init(**_: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(wandb, "init", init)
    run = WandbRun(ONLINE, PARAMS, {}, "train")
    run.record(rows(*range(100)))
    assert run.finish() == ONLINE
    assert capsys.readouterr().out.count("no route to host") == 1


def test_a_server_that_hangs_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    release = threading.Event()
    monkeypatch.setattr(wandb, "init", lambda **_: release.wait(20))
    monkeypatch.setattr(wandb_run, "QUEUE_LENGTH", 50)
    monkeypatch.setattr(wandb_run, "FINISH_TIMEOUT_S", 0.2)
    began = time.monotonic()
    run = WandbRun(ONLINE, PARAMS, {}, "train")
    run.record(rows(*range(1000)))
    run.finish()
    assert time.monotonic() - began < 2
    assert "50 rows wait to be sent" in capsys.readouterr().out
    release.set()


def test_disabled_does_nothing(server: SimpleNamespace) -> None:
    run = WandbRun(RunIdentity("x", "y", "disabled"), PARAMS, {}, "train")
    run.record(rows(1))
    run.finish()
    assert server.asked == {}


def test_later_stages_land_on_the_training_run(server: SimpleNamespace, tmp_path: Path) -> None:
    write_json(tmp_path / "summary.json", {"wandb": {"id": "abc123", "name": "a-run", "mode": "online", "url": None}})
    log_to_training_run(PARAMS, tmp_path / "summary.json", {"val/loss": 3.0}, {"samples": (("prompt",), [("ROMEO",)])})
    assert server.asked["id"] == "abc123"
    assert server.run.summary == {"val/loss": 3.0}
    assert [list(cells) for _, cells in server.run.logged] == [["samples"]]


def test_an_offline_run_is_written_to_the_disk(tmp_path: Path) -> None:
    run = WandbRun(RunIdentity("abc123", "a-run", "offline"), PARAMS, {}, "train")
    run.record(rows(1, 2))
    run.finish()
    (file,) = tmp_path.glob("wandb/offline-run-*/run-abc123.wandb")
    assert b"train/loss" in file.read_bytes()
