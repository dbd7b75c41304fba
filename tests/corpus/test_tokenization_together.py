"""Several runs at the same work share it, wait for each other, and never do any of it twice."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.corpus.raw import RawCorpus
from pipeline.corpus.shards import Manifest
from pipeline.corpus.tokenization import tokenize, tokenize_part
from pipeline.corpus.verify import verify_directory

from .conftest import WriteRaw, tokenizer_params
from .tokenizing import CORPUS, contents, count_encoded_units, start_tokenizing, wait_until

PART = """
import json, sys, time
from pathlib import Path
from pipeline.corpus import tokenization
from pipeline.corpus.encodings import TokenizerParams
from pipeline.log import logger
params, raw, runs, part, parts, seconds = sys.argv[1:]
logger.disabled = True
encode_unit, encoded = tokenization.encode_unit, []
def slow(task):
    encoded.append(task)
    time.sleep(float(seconds))
    return encode_unit(task)
tokenization.encode_unit = slow
tokenization.tokenize_part(TokenizerParams(**json.loads(params)), Path(raw), Path(runs), 1, int(part), int(parts))
print(len(encoded))
"""


def start_part(params: str, raw: Path, runs: Path, part: int, parts: int, seconds: float = 0) -> subprocess.Popen[str]:
    """A machine at one part, which takes so many seconds more for each unit; it prints how many it has encoded."""
    arguments = [params, str(raw), str(runs), str(part), str(parts), str(seconds)]
    return subprocess.Popen([sys.executable, "-c", PART, *arguments], stdout=subprocess.PIPE, text=True)


def count_units(raw: Path) -> int:
    return sum(file.row_groups for files in RawCorpus.read(raw).splits.values() for file in files)


def test_two_machines_with_a_part_each_give_the_same_bytes(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw, params = write_raw(CORPUS), tokenizer_params(encoding="bpe", shard_tokens=701)
    tokenize(params, raw, tmp_path / "alone", tmp_path / "runs", 1)
    start = [start_part(params.model_dump_json(), raw, tmp_path / "shared", part, 2) for part in (1, 2)]
    assert [int(machine.communicate(timeout=60)[0]) for machine in start] == [count_units(raw) // 2] * 2
    encoded = count_encoded_units(lambda: tokenize(params, raw, tmp_path / "merged", tmp_path / "shared", 1))
    assert encoded == 0
    assert contents(tmp_path / "merged") == contents(tmp_path / "alone")


def test_a_second_run_of_the_same_work_waits_for_the_first(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw = write_raw(CORPUS * 3)
    params = tokenizer_params().model_dump_json()
    runs = [start_tokenizing(params, raw, tmp_path / name, tmp_path / "runs") for name in ("a", "b")]
    assert [run.wait(60) for run in runs] == [0, 0]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert not list((tmp_path / "runs").iterdir())


def test_another_configuration_never_meets_the_units_of_this_one(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw = write_raw(CORPUS)
    changes: list[dict[str, Any]] = [{"encoding": "bytes"}, {"encoding": "bpe"}, {"encoding": "bpe", "vocab_size": 301}]
    for change in changes:
        tokenize_part(tokenizer_params(**change), raw, tmp_path / "runs", 1, 1, 1)
    tokenize_part(tokenizer_params(), write_raw(CORPUS[1:], name="other"), tmp_path / "runs", 1, 1, 1)
    assert len(list((tmp_path / "runs").glob("tokenize-*/"))) == 4


def test_shards_of_another_size_are_cut_from_the_same_units(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw = write_raw(CORPUS, val_every=5)
    tokenize_part(tokenizer_params(), raw, tmp_path / "runs", 1, 1, 1)
    other = tokenizer_params(shard_tokens=333)
    assert count_encoded_units(lambda: tokenize(other, raw, tmp_path / "out", tmp_path / "runs", 1)) == 0
    assert Manifest.read(tmp_path / "out").shard_tokens == 333


def test_two_machines_at_the_same_part_encode_each_unit_once(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw, params = write_raw(CORPUS), tokenizer_params().model_dump_json()
    machines = [start_part(params, raw, tmp_path / "runs", 1, 1, seconds=0.02) for _ in range(2)]
    assert sorted(int(machine.communicate(timeout=60)[0]) for machine in machines) == [0, count_units(raw)]


def test_the_merge_waits_for_the_parts_that_run(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw, params = write_raw(CORPUS), tokenizer_params()
    machine = start_part(params.model_dump_json(), raw, tmp_path / "runs", 1, 1, seconds=0.02)
    wait_until(lambda: list(tmp_path.glob("runs/*/units/*.npy")))
    assert count_encoded_units(lambda: tokenize(params, raw, tmp_path / "out", tmp_path / "runs", 1)) == 0
    assert int(machine.communicate(timeout=60)[0]) == count_units(raw)
    assert not list((tmp_path / "runs").iterdir())
    verify_directory(tmp_path / "out")


def test_a_killed_part_leaves_its_place_to_the_next(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw, params = write_raw(CORPUS), tokenizer_params()
    machine = start_part(params.model_dump_json(), raw, tmp_path / "runs", 1, 1, seconds=0.05)
    wait_until(lambda: list(tmp_path.glob("runs/*/units/*.json")))
    machine.kill()
    machine.wait()
    assert 0 < count_encoded_units(lambda: tokenize_part(params, raw, tmp_path / "runs", 1, 1, 1)) < count_units(raw)
