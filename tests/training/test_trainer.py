"""The training loop: resumed, interrupted, gone bad, watched."""

import os
import signal
from pathlib import Path

import pytest
import torch

from pipeline.log import Stop
from pipeline.model.gpt import GPT
from pipeline.training.interruption import Interrupted
from pipeline.training.metrics import Row
from pipeline.training.trainer import Trainer
from tests.training.conftest import MemoryRecorder, same, trainer, weights_of


class StopAt:
    """A probe that ends the process's training after a step, as a kill would."""

    interval = 1

    def __init__(self, step: int) -> None:
        self.step = step

    def measure(self, _model: GPT, step: int) -> Row:
        if step == self.step:
            raise KeyboardInterrupt
        return {}


class Send:
    """A probe that sends this process a signal after a step."""

    interval = 1

    def __init__(self, step: int, number: signal.Signals) -> None:
        self.step, self.number = step, number

    def measure(self, _model: GPT, step: int) -> Row:
        if step == self.step:
            os.kill(os.getpid(), self.number)
        return {}


@pytest.fixture(scope="module")
def uninterrupted(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, MemoryRecorder]:
    recorder = MemoryRecorder()
    whole = trainer(shards, tmp_path_factory.mktemp("whole"), recorder)
    whole.run()
    return whole, recorder


@pytest.mark.parametrize("stopped_after", [1, 4, 5, 7, 11])
def test_a_stopped_run_resumes_bit_for_bit(
    shards: Path, tmp_path: Path, uninterrupted: tuple[Trainer, MemoryRecorder], stopped_after: int
) -> None:
    """Dropout is on; checkpoints lie behind steps 5 and 10."""
    whole, curve = uninterrupted
    recorder = MemoryRecorder()
    with pytest.raises(KeyboardInterrupt):
        trainer(shards, tmp_path, recorder, probes=(StopAt(stopped_after),)).run()
    again = trainer(shards, tmp_path, recorder)
    outcome = again.run()
    assert same(weights_of(again), weights_of(whole))
    moments = zip(again.optimizer.state_dict(), whole.optimizer.state_dict(), strict=True)
    for mine, other in moments:
        for index, state in mine["state"].items():
            assert all(torch.equal(state[name], other["state"][index][name]) for name in state)
    assert [row for row in recorder.curve() if row[0]] == curve.curve()
    assert outcome.counters.resumed_at == [5 * (max(stopped_after - 1, 0) // 5)] * (stopped_after > 5)


@pytest.mark.slow
def test_a_compiled_run_on_several_threads_resumes_bit_for_bit(shards: Path, tmp_path: Path) -> None:
    """Where the gradient of the embedding would otherwise be added up in any order."""
    how = {"compile": "on", "dtype": "auto", "micro_batch_size": 8}
    what = {"optimizer": "muon", "total_batch_size": 1024}
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        whole = trainer(shards, tmp_path / "whole", runtime=how, train=what)
        whole.run()
        with pytest.raises(KeyboardInterrupt):
            trainer(shards, tmp_path / "cut", runtime=how, train=what, probes=(StopAt(7),)).run()
        again = trainer(shards, tmp_path / "cut", runtime=how, train=what)
        assert again.run().counters.resumed_at == [5]
    finally:
        torch.set_num_threads(threads)
    assert same(weights_of(again), weights_of(whole))


def test_a_run_that_goes_on_otherwise_than_it_began_says_what_differs(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        trainer(shards, tmp_path, probes=(StopAt(7),)).run()
    trainer(shards, tmp_path, runtime={"dtype": "bfloat16", "micro_batch_size": 1}).run()
    said = "the run goes on with micro_batch_size 1 after 4, dtype bfloat16 after float32: the same batches, but other"
    assert said in capsys.readouterr().out


def test_a_run_that_goes_on_as_it_began_says_nothing_of_that(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        trainer(shards, tmp_path, probes=(StopAt(7),)).run()
    trainer(shards, tmp_path).run()
    output = capsys.readouterr().out
    assert "resuming after step 5" in output
    assert "goes on with" not in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_and_exits_with_its_number(
    shards: Path, tmp_path: Path, uninterrupted: tuple[Trainer, MemoryRecorder], number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    try:
        with pytest.raises(Interrupted, match=f"{number.name}: stopped after step 4 of 12") as stopped:
            trainer(shards, tmp_path, probes=(Send(3, number),)).run()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(number, before)
    assert stopped.value.exit_code == 128 + number
    again = trainer(shards, tmp_path)
    again.run()
    assert same(weights_of(again), weights_of(uninterrupted[0]))


def test_probes_leave_the_weights_alone(
    shards: Path, tmp_path: Path, uninterrupted: tuple[Trainer, MemoryRecorder]
) -> None:
    class Look:
        interval = 2

        def measure(self, model: GPT, step: int) -> Row:
            with torch.no_grad():
                return {"seen": float(model(torch.zeros(1, 4, dtype=torch.int64))[0].abs().max().isfinite())}

    recorder = MemoryRecorder()
    watched = trainer(shards, tmp_path, recorder, probes=(Look(),), config={"dropout": 0.0})
    watched.run()
    alone = trainer(shards, tmp_path / "alone", config={"dropout": 0.0})
    alone.run()
    assert same(weights_of(watched), weights_of(alone))
    assert [row["step"] for row in recorder.rows if "seen" in row] == [0, 2, 4, 6, 8, 10, 12]
    assert [row["step"] for row in recorder.rows] == list(range(13))


@pytest.mark.parametrize("micro", [1, 2, 8])
def test_accumulation_changes_nothing_but_the_order_of_additions(shards: Path, tmp_path: Path, micro: int) -> None:
    def curve(size: int) -> list[float]:
        recorder = MemoryRecorder()
        trainer(
            shards, tmp_path / str(size), recorder, runtime={"micro_batch_size": size}, config={"dropout": 0.0}
        ).run()
        return [row["train/loss"] for row in recorder.rows]

    assert curve(micro) == pytest.approx(curve(4), rel=1e-5)


def test_a_loss_that_is_not_finite_skips_the_update_and_leaves_weights_and_moments(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = MemoryRecorder()
    sick = trainer(shards, tmp_path, recorder, train={"max_steps": 6, "warmup_steps": 1, "max_skipped_steps": 1})
    seen: dict[int, tuple[dict[str, torch.Tensor], list[torch.Tensor]]] = {}
    forward, calls = sick.model.forward, 0

    def poisoned(idx: torch.Tensor, targets: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        nonlocal calls
        logits, loss = forward(idx, targets)
        step = calls // 2 + 1  # two micro-batches a step
        moments = [t for s in sick.optimizer.state_dict()[0]["state"].values() for t in (s["exp_avg"], s["exp_avg_sq"])]
        seen.setdefault(step, (weights_of(sick), [m.clone() for m in moments]))
        calls += 1
        return logits, loss * float("nan") if step == 3 and loss is not None else loss

    sick.model.forward = poisoned  # type: ignore[method-assign]
    outcome = sick.run()
    assert same(seen[3][0], seen[4][0])
    assert all(torch.equal(a, b) for a, b in zip(seen[3][1], seen[4][1], strict=True))
    assert not same(seen[4][0], seen[5][0])
    assert outcome.counters.skipped_steps == 1
    assert [row["step"] for row in recorder.rows if row["event"] == "skipped"] == [3]
    assert "step 3 skipped: loss nan on rank 0" in capsys.readouterr().out


def test_too_many_skipped_steps_stop_the_run(shards: Path, tmp_path: Path) -> None:
    sick = trainer(
        shards, tmp_path, train={"max_lr": 1e30, "grad_clip": 0.0, "max_skipped_steps": 3, "weight_decay": 0.0}
    )
    bad = r"the last was step \d+: (loss (inf|nan) on rank 0|gradient norm (inf|nan) with finite losses)"
    with pytest.raises(Stop, match=r"more than train\.max_skipped_steps \(3\); " + bad):
        sick.run()


def test_one_batch_can_be_learned_by_heart(tmp_path: Path) -> None:
    from tests.training.conftest import write_shards

    few = write_shards(tmp_path / "few", tokens=8 * 16 + 1)  # one batch, which every step sees again
    recorder = MemoryRecorder()
    trainer(few, tmp_path / "run", recorder, train={"max_steps": 150, "max_lr": 1e-2}, config={"dropout": 0.0}).run()
    assert recorder.rows[0]["train/loss"] == pytest.approx(5.55, abs=0.15)  # ln 257, the untrained model's
    assert recorder.rows[-1]["train/loss"] < 0.1


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_each_optimizer_learns(shards: Path, tmp_path: Path, optimizer: str) -> None:
    recorder = MemoryRecorder()
    trainer(shards, tmp_path, recorder, train={"optimizer": optimizer, "max_steps": 40}).run()
    assert recorder.rows[-1]["train/loss"] < recorder.rows[0]["train/loss"] - 0.5
