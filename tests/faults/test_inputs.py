"""What a run is given: damaged shards, a directory that another trainer holds."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.faults.conftest import Begin
from tests.faults.small import corrupted_copy


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def replace_by_another_type(file: Path) -> None:
    np.save(file, np.zeros(700, np.float32))


def replace_by_text(file: Path) -> None:
    file.write_text("not a shard at all\n" * 80)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (cut_off, "ends at offset 1518, must at 1528"),
        (replace_by_another_type, "offset 0: the header says float32 (700,), the manifest uint16 (700,)"),
        (replace_by_text, "offset 0: no .npy header"),
    ],
)
def test_a_short_or_foreign_shard_is_named_and_nothing_is_trained(
    begin: Begin, damage: Callable[[Path], None], what: str
) -> None:
    run = begin()
    damage(corrupted_copy(run, "train_000001.npy"))
    output = run.train(ok=False).output
    assert f"train: data/shards/train_000001.npy: {what}" in output
    assert "Traceback" not in output
    assert not list((run.path / ".runs").glob("train-*/checkpoints/*"))


def test_ids_outside_the_vocabulary_are_named_with_file_and_offset(begin: Begin) -> None:
    run = begin()
    file = corrupted_copy(run, "train_000001.npy")
    content = bytearray(file.read_bytes())
    content[900:902] = b"\xff\xff"
    file.write_bytes(content)
    output = run.train(ok=False).output
    assert re.search(r"train: data/shards is damaged.*\n.*train_000001\.npy: sha256 differs", output), output
    assert "train_000001.npy: offset 900: id 65535 is outside the vocabulary of bytes (257)" in output
    assert "Traceback" not in output


def test_two_trainers_cannot_hold_one_directory(begin: Begin) -> None:
    run = begin()
    first = run.start("hold@5")
    while not (run.path / "held").exists():
        assert first.poll() is None
        time.sleep(0.02)
    second = run.train(ok=False)
    assert f"is in use by process {first.pid}: the same configuration is being trained already" in second.output
    (run.path / "go").touch()
    output, _ = first.communicate(timeout=60)
    assert first.returncode == 0, output
    assert run.newest().step == 24
