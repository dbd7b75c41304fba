"""The W&B run of a training: its identity, and that W&B can neither stop nor slow a run."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from pipeline.artifacts import TrackedRun
from pipeline.curves import Curves
from pipeline.tracking import wandb_run
from pipeline.tracking.params import TrackingParams
from pipeline.tracking.wandb_run import WandbRun, resolved_mode, run_identity

PARAMS = TrackingParams(mode="auto", project="tests", entity=None, group=None, tags=["a tag"])
ONLINE = TrackedRun(id="abc123", name="a-run", mode="online", group="80a69db")


class FakeRun:
    """A run on a server: keeps what it receives."""

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
    """Replaces wandb.init; keeps the run and the arguments."""
    server = SimpleNamespace(run=FakeRun(), arguments={})

    def init(**arguments: Any) -> FakeRun:
        server.arguments = arguments
        return server.run

    monkeypatch.setattr(wandb, "init", init)
    return server


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def rows(*steps: int) -> list[dict[str, Any]]:
    return [{"step": step, "tokens": 8 * step, "train/loss": 1.0, "val/loss": None, "event": ""} for step in steps]


# Identity


def identity(mode: str) -> TrackedRun:
    """The identity of the training in the current directory, in a new process."""
    return run_identity(Path("wandb.json"), "seed=2", "80a69db", mode)


def offline_part(run: TrackedRun, *files: str) -> Path:
    """The offline files of a process that logged the run."""
    part = Path(f"wandb/offline-run-20260101_000000-{run.id}")
    part.mkdir(parents=True)
    for name in (f"run-{run.id}.wandb", *files):
        (part / name).touch()
    return part


@pytest.mark.parametrize(
    ("first", "second"),
    [("offline", "offline"), ("online", "online"), ("offline", "online"), ("online", "disabled")],
)
def test_a_resumed_run_keeps_id_name_and_group(first: str, second: str) -> None:
    before = identity(first)
    after = run_identity(Path("wandb.json"), "another", "another", second)
    assert after == before.model_copy(update={"mode": second})


def test_an_offline_run_whose_rows_may_be_on_the_server_becomes_another_one_when_it_is_resumed() -> None:
    online = identity("online")
    offline = identity("offline")
    offline_part(offline, f"run-{offline.id}.wandb.synced")
    after_sync = identity("offline")
    assert len({online.id, offline.id, after_sync.id}) == 3
    assert TrackedRun.read(Path("wandb.json")) == after_sync


def test_a_resumed_run_replaces_its_own_offline_files_only() -> None:
    part, other = offline_part(identity("offline")), offline_part(ONLINE)
    identity("disabled")  # logs nothing
    assert part.exists()
    identity("offline")
    assert (part.exists(), other.exists()) == (False, True)


@pytest.mark.parametrize("content", [b"", b"{}", b"null", b"\xff", b'{"id": "*", "name": "a", "mode": "offline"}'])
def test_a_damaged_identity_is_set_aside_for_a_new_one(content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    other = offline_part(ONLINE)
    Path("wandb.json").write_bytes(content)
    new = identity("offline")
    assert (new.name, new.group) == ("seed=2", "80a69db")
    assert identity("offline") == new
    assert Path("damaged_wandb.json").read_bytes() == content
    assert capsys.readouterr().out.count("W&B:") == 1
    assert other.exists()


def test_an_odd_identity_does_not_stop_a_run_without_tracking() -> None:
    for _ in range(2):
        Path("wandb.json").mkdir()
        assert identity("disabled").mode == "disabled"
        Path("wandb.json").unlink()
    assert sorted(path.name for path in Path().iterdir()) == ["damaged_wandb.json", "damaged_wandb.json-2"]


# Mode


def test_without_a_key_a_run_is_offline_with_one_line_about_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert resolved_mode(PARAMS) == "offline"
    assert capsys.readouterr().out.count("\n") == 1


def test_params_win_over_the_environment_and_that_over_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert resolved_mode(PARAMS) == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolved_mode(PARAMS) == "disabled"
    assert resolved_mode(PARAMS.model_copy(update={"mode": "offline"})) == "offline"


@pytest.mark.parametrize(("value", "mode"), [("dryrun", "offline"), ("run", "online"), ("offline", "offline")])
def test_older_names_of_modes_are_accepted(monkeypatch: pytest.MonkeyPatch, value: str, mode: str) -> None:
    monkeypatch.setenv("WANDB_MODE", value)
    assert resolved_mode(PARAMS) == mode


# Logging


def test_rows_are_logged_over_tokens_with_their_step_and_without_empty_cells(server: SimpleNamespace) -> None:
    run = WandbRun(ONLINE, PARAMS, {"config": {"model": {"n_layer": 4}}, "tags": ["a tag", "bytes"]})
    run.record(rows(0, 1))
    run.update_summary({"final": 2.0})
    finished = run.finish()
    assert server.run.logged == [(0, {"tokens": 0, "train/loss": 1.0}), (1, {"tokens": 8, "train/loss": 1.0})]
    assert server.run.axes == [("tokens", None), ("*", "tokens")]
    expected = {
        "id": "abc123",
        "name": "a-run",
        "group": "80a69db",
        "job_type": "train",
        "resume": "allow",
        "config": {"model": {"n_layer": 4}},
        "tags": ["a tag", "bytes"],
    }
    assert {key: server.arguments[key] for key in expected} == expected
    assert server.run.summary == {"final": 2.0}
    assert (server.run.exit_code, finished.url) == (0, FakeRun.url)


@pytest.mark.parametrize(
    ("arrived", "checkpoint"),
    [(3, 4), (5, 2), (0, 4)],
    ids=["rows were lost on their way", "rows after the checkpoint arrived", "no row arrived"],
)
def test_a_resumed_run_logs_each_step_once(
    server: SimpleNamespace, tmp_path: Path, arrived: int, checkpoint: int
) -> None:
    curves = Curves(tmp_path / "curves.csv", tmp_path / "published.csv")
    curves.rewind(0)
    curves.record(rows(*range(5)))
    server.run.log({}, step=arrived - 1)  # by the process that was killed
    resumed = WandbRun(ONLINE, PARAMS, curves=curves)
    for logger in (curves, resumed):
        logger.rewind(checkpoint)
        logger.record(rows(*range(checkpoint + 1, 7)))
    resumed.finish()
    assert server.run.logged[1:] == [(step, {"tokens": 8 * step, "train/loss": 1.0}) for step in range(arrived, 7)]


def test_disabled_calls_nothing(server: SimpleNamespace) -> None:
    run = WandbRun(ONLINE.model_copy(update={"mode": "disabled"}), PARAMS)
    run.record(rows(1))
    run.finish()
    assert server.arguments == {}


# Failures


def test_a_call_that_fails_does_not_stop_the_others(
    server: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    run = WandbRun(ONLINE, PARAMS)
    run.save_files(Path("reports"), [Path("reports/report.md")] * 3)  # FakeRun has no method for it
    run.update_summary({"final": 2.0})
    run.finish()
    assert server.run.summary == {"final": 2.0}
    assert capsys.readouterr().out.count("W&B:") == 1


@pytest.mark.parametrize("error", [ConnectionError("no route to host"), ModuleNotFoundError("wandb"), SystemExit(1)])
def test_a_run_that_cannot_begin_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    def init(**_: Any) -> None:
        raise error

    monkeypatch.setattr(wandb, "init", init)
    run = WandbRun(ONLINE, PARAMS)
    for step in range(100):
        run.record(rows(step))
    assert run.finish() == ONLINE
    assert capsys.readouterr().out.count("W&B:") == 1


def test_a_server_that_hangs_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    release = threading.Event()
    monkeypatch.setattr(wandb, "init", lambda **_: release.wait())
    monkeypatch.setattr(wandb_run, "QUEUE_LENGTH", 50)
    monkeypatch.setattr(wandb_run, "FINISH_TIMEOUT_S", 0.1)
    run = WandbRun(ONLINE, PARAMS)
    for step in range(1000):
        run.record(rows(step))
    run.finish()  # returns although the server still hangs
    assert "50 calls" in capsys.readouterr().out
    release.set()
