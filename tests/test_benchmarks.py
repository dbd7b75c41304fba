"""The benchmarks that a GPU waits for run through, here with tiny models."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import ablation, gpu, train
from benchmarks.loader import write_stream

# nanoGPT's interface: the loss comes second, and the targets are viewed.
PEER = """
from dataclasses import dataclass

import torch.nn as nn
import torch.nn.functional as F

@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=config.bias)

    def forward(self, idx, targets=None):
        logits = self.lm_head(self.wte(idx))
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))
"""


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


def table(text: str) -> dict[str, list[str]]:
    """First cell -> the others, of a table's body."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return {name: cells for name, *cells in rows[2:]}


@pytest.mark.slow
def test_all_gpu_benchmarks_run_and_one_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> tuple[str, str]:
        raise ValueError("broken | here")

    monkeypatch.setattr(gpu.Benchmarks, "generation", fail)
    gpu.main(["--out", str(tmp_path / "gpu.md"), "--device", "cpu", "--tiny"])
    rows = table((tmp_path / "gpu.md").read_text())
    assert len(rows) == 16
    failed = {name for name, (result, *_) in rows.items() if result == "ValueError: broken / here"}
    assert failed == {"generation: bfloat16, batch 1", "generation: bfloat16, batch 32"}
    for name, (result, *_) in rows.items():
        if name.startswith(("training", "HellaSwag")):
            rate, unit = result.split()
            assert float(rate.replace(",", "")) > 0
            assert unit == ("tokens/s" if name.startswith("training") else "items/s")
    assert re.fullmatch(r"x \d+\.\d{3}", rows["cost of determinism: time of a step"][0])
    assert re.fullmatch(
        r"\d\.\d{3} s; \d\.\d\d s", rows["checkpoint: time that training waits; until it is on the disk"][0]
    )


def test_no_row_starts_after_the_time_budget(tmp_path: Path) -> None:
    gpu.main(["--out", str(tmp_path / "gpu.md"), "--device", "cpu", "--tiny", "--minutes", "0"])
    rows = table((tmp_path / "gpu.md").read_text())
    assert {result for result, *_ in rows.values()} == {"not run: out of time"}


@pytest.mark.slow
def test_a_peer_is_timed_beside_the_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = tmp_path / "nanoGPT"
    peer.mkdir()
    (peer / "model.py").write_text(PEER)
    monkeypatch.setitem(train.SIZES, "small", gpu.TINY.size)
    train.main(["--rounds", "1", "--peer", str(peer)])
    rows = table(capsys.readouterr().out)
    names = ["plain loop: compiled, float32", "nanoGPT: compiled, float32", "nanoGPT: compiled, bfloat16"]
    assert set(names) <= rows.keys()
    assert rows[names[0]][1] == "1.00"
    assert all(float(rows[name][0].replace(",", "")) > 0 for name in names)


def test_the_step_of_each_configuration_of_an_ablation_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = write_stream(tmp_path, 20_000)
    monkeypatch.setattr(ablation, "open_split", lambda *_: stream)
    (tmp_path / "steps.yaml").write_text("adamw: {train.optimizer: adamw}\nmuon: {train.optimizer: muon}\n")
    size = ["model.n_layer=1", "model.n_head=1", "model.n_embd=8", "train.total_batch_size=128"]
    ablation.main([str(tmp_path / "steps.yaml"), *size, "--steps", "4", "--rounds", "1"])
    rows = table(capsys.readouterr().out)
    assert list(rows) == ["adamw", "muon"]
    milliseconds, ratio = zip(*rows.values(), strict=True)
    assert ratio[0] == "1.00"
    assert float(ratio[1]) == pytest.approx(float(milliseconds[1]) / float(milliseconds[0]), rel=0.05)
