"""W&B can neither stop nor slow a run: offline, missing, raising, hanging."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from pipeline.tracking import wandb_run
from pipeline.tracking.curves import Curves
from pipeline.tracking.identity import RunIdentity
from pipeline.tracking.params import TrackingParams
from pipeline.tracking.wandb_run import WandbRun, resolved_mode

PARAMS = TrackingParams(mode="auto", project="tests", entity=None, group=None, tags=["a tag"])
ONLINE = RunIdentity(id="abc123", name="a-run", mode="online", group="80a69db")


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

    @property
    def step(self) -> int:
        """The next one."""
        return self.logged[-1][0] + 1 if self.logged else 0

    def log(self, cells: dict[str, Any], step: int) -> None:
        self.logged.append((step, cells))

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


def test_wandb_s_other_words_for_its_modes_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for word, mode in (("dryrun", "offline"), ("run", "online"), ("offline", "offline")):
        monkeypatch.setenv("WANDB_MODE", word)
        assert resolved_mode(PARAMS) == mode


def started(
    identity: RunIdentity = ONLINE, about: dict[str, Any] | None = None, curves: Curves | None = None
) -> WandbRun:
    return WandbRun(identity, PARAMS, about or {}, curves)


def test_rows_go_over_tokens_with_their_step_and_no_empty_cells(server: SimpleNamespace) -> None:
    run = started(about={"config": {"model": {"n_layer": 4}}, "tags": ["a tag", "bytes"]})
    run.record(rows(0, 1))
    run.summarise({"final": 2.0})
    found = run.finish()
    assert server.run.logged == [(0, {"tokens": 0, "train/loss": 1.0}), (1, {"tokens": 8, "train/loss": 1.0})]
    assert server.run.axes == [("tokens", None), ("*", "tokens")]
    assert {key: server.asked[key] for key in ("id", "name", "group", "job_type", "resume")} == {
        "id": "abc123",
        "name": "a-run",
        "group": "80a69db",
        "job_type": "train",
        "resume": "allow",
    }
    assert (server.asked["config"], server.asked["tags"]) == ({"model": {"n_layer": 4}}, ["a tag", "bytes"])
    assert server.run.summary == {"final": 2.0}
    assert (server.run.exit_code, found.url) == (0, FakeRun.url)


@pytest.mark.parametrize(
    ("arrived", "checkpoint"),
    [(3, 4), (5, 2), (0, 4)],
    ids=["some were on their way", "some were after the checkpoint", "the server was away"],
)
def test_a_resumed_run_logs_each_step_once(
    server: SimpleNamespace, tmp_path: Path, arrived: int, checkpoint: int
) -> None:
    curves = Curves(tmp_path / "curves.csv", tmp_path / "published.csv")
    curves.rewind(0)
    curves.record(rows(*range(5)))
    server.run.log({}, step=arrived - 1)  # by the process that was killed
    again = started(curves=curves)
    for recorder in (curves, again):
        recorder.rewind(checkpoint)
        recorder.record(rows(*range(checkpoint + 1, 7)))
    again.finish()
    assert server.run.logged[1:] == [(step, {"tokens": 8 * step, "train/loss": 1.0}) for step in range(arrived, 7)]


def test_what_one_call_cannot_send_keeps_nothing_else_back(
    server: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    run = started()
    run.save_files(Path("reports"), [Path("reports/report.md")] * 3)  # the run here has no method for it
    run.summarise({"final": 2.0})
    run.finish()
    assert server.run.summary == {"final": 2.0}
    assert capsys.readouterr().out.count("W&B:") == 1


def test_a_server_that_raises_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def init(**_: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(wandb, "init", init)
    run = started()
    for step in range(100):
        run.record(rows(step))
    assert run.finish() == ONLINE
    assert capsys.readouterr().out.count("W&B:") == 1


def test_a_server_that_hangs_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    release = threading.Event()
    monkeypatch.setattr(wandb, "init", lambda **_: release.wait(20))
    monkeypatch.setattr(wandb_run, "QUEUE_LENGTH", 50)
    monkeypatch.setattr(wandb_run, "FINISH_TIMEOUT_S", 0.2)
    began = time.monotonic()
    run = started()
    for step in range(1000):
        run.record(rows(step))
    run.finish()
    assert time.monotonic() - began < 2
    assert "50 calls wait to be sent" in capsys.readouterr().out
    release.set()


def test_disabled_does_nothing(server: SimpleNamespace) -> None:
    run = started(RunIdentity("x", "y", "disabled"))
    run.record(rows(1))
    run.finish()
    assert server.asked == {}
