"""The training loop on one rank: resumed, interrupted, diverged, observed."""

import os
import signal
from pathlib import Path

import pytest
import torch

from pipeline.log import UserError
from pipeline.model.gpt import GPT
from pipeline.training import trainer as trainer_module
from pipeline.training.metrics import SPIKE_WINDOW, Row, SpikeDetector
from pipeline.training.signals import Interrupted
from pipeline.training.trainer import Probe, Trainer, dropout_seed
from tests.training.conftest import MemoryLogger, before_each_step, same, state_of, trainer, weights_of, write_shards


def stop_at(last: int) -> Probe:
    """A probe that ends training after a step, as a kill would."""

    def measure(_model: GPT, step: int) -> Row:
        if step == last:
            raise KeyboardInterrupt
        return {}

    return Probe(1, measure)


def send_at(last: int, number: signal.Signals) -> Probe:
    """A probe that sends this process a signal after a step."""

    def measure(_model: GPT, step: int) -> Row:
        if step == last:
            os.kill(os.getpid(), number)
        return {}

    return Probe(1, measure)


def stop_after_step_7(shards: Path, state: Path, **options: object) -> None:
    """Checkpoints are written after steps 5 and 10."""
    stopped = trainer(shards, state, probes=(stop_at(7),), **options)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    stopped.store.wait()  # a process waits for the checkpoint as it exits


@pytest.fixture(scope="module")
def uninterrupted(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, MemoryLogger]:
    log = MemoryLogger()
    run = trainer(shards, tmp_path_factory.mktemp("uninterrupted"), log)
    run.run()
    return run, log


@pytest.mark.parametrize("stopped_after", [5, 7, 11])
def test_a_stopped_run_resumes_bit_for_bit(
    shards: Path, tmp_path: Path, uninterrupted: tuple[Trainer, MemoryLogger], stopped_after: int
) -> None:
    """With dropout; checkpoints are written after steps 5 and 10."""
    expected, expected_log = uninterrupted
    log = MemoryLogger()
    stopped = trainer(shards, tmp_path, log, probes=(stop_at(stopped_after),))
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    stopped.store.wait()  # a process waits for the checkpoint as it exits
    resumed = trainer(shards, tmp_path, log)
    resumed.run()
    assert all(map(torch.equal, state_of(resumed), state_of(expected)))
    assert [row for row in log.curve() if row[0]] == expected_log.curve()
    steps = [resume.step for resume in resumed.metrics.stats.resumes]
    assert steps == [5 * ((stopped_after - 1) // 5)] * (stopped_after > 5)


@pytest.mark.slow
def test_a_compiled_run_on_several_threads_resumes_bit_for_bit(shards: Path, tmp_path: Path) -> None:
    """Threads would add up the embedding's gradient in any order if they were allowed to."""
    runtime = {"compile": "on", "dtype": "auto", "micro_batch_size": 8}
    train = {"optimizer": "muon", "total_batch_size": 1024}
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = trainer(shards, tmp_path / "uninterrupted", runtime=runtime, train=train)
        expected.run()
        stop_after_step_7(shards, tmp_path / "stopped", runtime=runtime, train=train)
        resumed = trainer(shards, tmp_path / "stopped", runtime=runtime, train=train)
        resumed.run()
    finally:
        torch.set_num_threads(threads)
    assert resumed.compiled
    assert [resume.step for resume in resumed.metrics.stats.resumes] == [5]
    assert same(weights_of(resumed), weights_of(expected))


def test_a_finished_run_ends_at_once_and_is_not_compiled(
    shards: Path, tmp_path: Path, uninterrupted: tuple[Trainer, MemoryLogger], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer(shards, tmp_path).run()
    monkeypatch.setattr(torch, "compile", None)
    again = trainer(shards, tmp_path, runtime={"compile": "on"})
    result = again.run()
    assert same(weights_of(again), weights_of(uninterrupted[0]))
    assert result.tokens == uninterrupted[0].train.max_steps * uninterrupted[0].train.total_batch_size


def test_resuming_with_changed_code_warns_and_records_the_files(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], uninterrupted: tuple[Trainer, MemoryLogger]
) -> None:
    stop_after_step_7(shards, tmp_path, code={"same.py": "0", "edited.py": "1", "removed.py": "2"})
    resumed = trainer(shards, tmp_path, code={"same.py": "0", "edited.py": "3", "added.py": "4"})
    resumed.run()
    (resume,) = resumed.metrics.stats.resumes
    assert (resume.step, resume.changed_files) == (5, ["added.py", "edited.py", "removed.py"])
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if "edited.py" in line]
    assert "step 5" in warning
    assert "same.py" not in warning
    assert same(weights_of(resumed), weights_of(uninterrupted[0]))


def test_resuming_with_other_runtime_params_names_them(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_after_step_7(shards, tmp_path)
    trainer(shards, tmp_path, runtime={"dtype": "bfloat16", "micro_batch_size": 1}).run()
    output = capsys.readouterr().out
    assert "micro_batch_size 1 (checkpoint: 4)" in output
    assert "dtype bfloat16 (checkpoint: float32)" in output
    assert "sharding" not in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_and_exits_with_its_number(
    shards: Path,
    tmp_path: Path,
    uninterrupted: tuple[Trainer, MemoryLogger],
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "deep")  # as DVC does for an experiment
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(Interrupted) as stopped:
            trainer(shards, tmp_path, probes=(send_at(3, number),)).run()
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
    assert stopped.value.exit_code == 128 + number
    assert "dvc exp run --name deep" in str(stopped.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000004"]
    resumed = trainer(shards, tmp_path)
    resumed.run()
    assert same(weights_of(resumed), weights_of(uninterrupted[0]))


def test_probes_leave_the_weights_alone(
    shards: Path, tmp_path: Path, uninterrupted: tuple[Trainer, MemoryLogger]
) -> None:
    def look(model: GPT, _step: int) -> Row:
        assert model.training
        with torch.no_grad():
            return {"finite": bool(model.transformer.wte.weight.isfinite().all())}

    log = MemoryLogger()
    observed = trainer(shards, tmp_path, log, probes=(Probe(2, look),))
    observed.run()
    assert same(weights_of(observed), weights_of(uninterrupted[0]))
    assert [row["step"] for row in log.rows if row.get("finite")] == [0, 2, 4, 6, 8, 10, 12]
    assert [row["step"] for row in log.rows] == list(range(13))


VAL_LOSSES = {0: 9.0, 2: 5.0, 4: 3.0, 6: 3.5, 8: float("nan"), 10: 3.0, 12: 2.0}


def test_the_best_weights_are_kept_and_survive_a_kill(shards: Path, tmp_path: Path) -> None:
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def validation(model: GPT, step: int) -> Row:
        seen[step] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return {"val/loss": VAL_LOSSES[step]}

    train = {"keep": "best", "eval_interval": 2, "max_steps": 10}
    log, probe = MemoryLogger(), Probe(2, validation)
    stopped = trainer(shards, tmp_path, log, train=train, probes=(probe, stop_at(7)))
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    stopped.store.wait()
    best = seen[4]
    run = trainer(shards, tmp_path, log, train=train, probes=(probe,))
    run.run()
    assert [resume.step for resume in run.metrics.stats.resumes] == [5]
    assert same(weights_of(run), best)
    assert not same(seen[10], best)
    assert [row["step"] for row in log.rows if row.get("event") == "best"] == [0, 2, 4]


def test_training_stops_when_patience_is_exhausted_and_does_not_go_on_when_started_again(
    shards: Path, tmp_path: Path
) -> None:
    probe = Probe(2, lambda _model, step: {"val/loss": VAL_LOSSES[step]})
    train = {"patience": 3, "eval_interval": 2}
    first = trainer(shards, tmp_path, train=train, probes=(probe,))
    result = first.run()
    assert (first.steps, result.tokens) == (10, 10 * 128)
    again = trainer(shards, tmp_path, train=train, probes=(probe,))
    again.run()
    assert again.steps == 10
    assert same(weights_of(again), weights_of(first))


def test_accumulation_changes_only_the_order_of_additions(shards: Path, tmp_path: Path) -> None:
    def losses(size: int) -> list[float]:
        log, options = MemoryLogger(), {"runtime": {"micro_batch_size": size}, "config": {"dropout": 0.0}}
        trainer(shards, tmp_path / str(size), log, **options).run()  # type: ignore[arg-type]
        return [row["train/loss"] for row in log.rows]

    assert losses(1) == pytest.approx(losses(8), rel=1e-5)


@pytest.mark.parametrize("strict", [True, False])
def test_steps_are_strictly_deterministic_on_cuda_and_probes_as_far_as_possible(
    shards: Path, tmp_path: Path, strict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trainer_module.STRICT_DEVICES == ("cuda",)
    monkeypatch.setattr(trainer_module, "STRICT_DEVICES", ("cpu",) if strict else ())
    modes = {}

    def note(name: str) -> None:
        enabled = torch.are_deterministic_algorithms_enabled()
        modes[name] = (enabled, torch.is_deterministic_algorithms_warn_only_enabled())

    def probe(_model: GPT, _step: int) -> Row:
        note("probe")
        return {}

    with before_each_step(lambda step: note(f"step {step}")):
        trainer(shards, tmp_path, train={"max_steps": 3, "warmup_steps": 1}, probes=(Probe(1, probe),)).run()
    assert modes == {"probe": (True, True), **{f"step {step}": (True, not strict) for step in (1, 2, 3)}}


def test_too_many_skipped_steps_stop_the_run(shards: Path, tmp_path: Path) -> None:
    diverging = trainer(shards, tmp_path, train={"max_skipped_steps": 3})
    forward = diverging.model.forward
    diverging.model.forward = lambda *batch: forward(*batch) * torch.nan  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"train\.max_skipped_steps \(3\)"):
        diverging.run()
    assert diverging.metrics.stats.skipped_steps > 3


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "normuon"])
def test_a_non_finite_loss_skips_the_update_whether_host_or_device_decides(
    shards: Path, tmp_path: Path, optimizer: str
) -> None:
    def train_with_nan_at_step_3(on_host: bool) -> list[torch.Tensor]:
        log = MemoryLogger()
        train = {"max_steps": 6, "warmup_steps": 1, "optimizer": optimizer}
        run = trainer(shards, tmp_path / str(on_host), log, train=train)
        run.optimizer.skips_on_host = on_host
        forward, states = run.model.forward, {}

        def no_loss(*batch: torch.Tensor) -> torch.Tensor:
            return forward(*batch) * torch.nan

        def before(step: int) -> None:
            states[step] = state_of(run)
            run.model.forward = no_loss if step == 3 else forward  # type: ignore[method-assign]

        with before_each_step(before):
            run.run()
        assert all(map(torch.equal, states[3], states[4]))
        assert not all(map(torch.equal, states[4], states[5]))
        assert run.metrics.stats.skipped_steps == 1
        assert [row["step"] for row in log.rows if row["event"] == "skipped"] == [3]
        assert run.metrics.last_skipped is not None
        assert run.metrics.last_skipped.problem() == "loss nan on rank 0"
        return state_of(run)

    assert all(map(torch.equal, train_with_nan_at_step_3(True), train_with_nan_at_step_3(False)))


def test_a_spike_is_a_loss_far_above_the_recent_ones() -> None:
    detector = SpikeDetector()
    losses = [3.0 + 0.01 * (step % 7) for step in range(SPIKE_WINDOW)]
    assert not any(detector.is_spike(loss) for loss in [*losses[:50], 9.0, *losses[50:]])  # none before a full window
    assert not detector.is_spike(3.1)
    assert detector.is_spike(3.5)
    assert not detector.is_spike(1.0)


def test_runs_with_neighbouring_seeds_share_no_dropout_stream() -> None:
    assert len({dropout_seed(seed, rank) for seed in range(20) for rank in range(64)}) == 20 * 64


def test_one_batch_can_be_memorised(tmp_path: Path) -> None:
    few = write_shards(tmp_path / "few", tokens=8 * 16 + 1)  # one batch, which every step sees again
    log = MemoryLogger()
    trainer(few, tmp_path / "run", log, train={"max_steps": 150, "max_lr": 1e-2}, config={"dropout": 0.0}).run()
    assert log.rows[0]["train/loss"] == pytest.approx(5.55, abs=0.15)  # ln 257, an untrained model's
    assert log.rows[-1]["train/loss"] < 0.1


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "normuon"])
def test_each_optimizer_learns(shards: Path, tmp_path: Path, optimizer: str) -> None:
    log = MemoryLogger()
    trainer(shards, tmp_path, log, train={"optimizer": optimizer, "max_steps": 40}).run()
    assert log.rows[-1]["train/loss"] < log.rows[0]["train/loss"] - 0.5
