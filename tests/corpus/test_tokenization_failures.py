"""Killed, damaged, out of room: no failure of the tokenization looks like success, and finished work stays done."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpus.pieces import read_piece
from pipeline.corpus.raw import RawCorpus
from pipeline.corpus.tokenization import tokenize, tokenize_part
from pipeline.corpus.verify import verify_directory
from pipeline.log import Stop

from .conftest import WriteRaw, tokenizer_params
from .tokenizing import CORPUS, TOKENIZE, contents, count_encoded_units, start_tokenizing, wait_until

DIE_AT_RENAME = """
import json, os, signal, sys
from pathlib import Path
from pipeline.corpus.encodings import TokenizerParams
from pipeline.corpus.tokenization import tokenize
params, raw, out, runs, fatal, before = sys.argv[1:]
replace, renames = Path.replace, 0
def deadly(self, target):  # every file of the pipeline becomes visible by a rename
    global renames
    renames += 1
    if renames == int(fatal) and before == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = replace(self, target)
    if renames == int(fatal):
        os.kill(os.getpid(), signal.SIGKILL)
    return result
Path.replace = deadly
tokenize(TokenizerParams(**json.loads(params)), Path(raw), Path(out), Path(runs), 1)
print(renames)
"""


def test_a_tokenizer_killed_at_any_point_goes_on_and_gives_the_same_bytes(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw, params = write_raw(CORPUS[:21], group_bytes=800), tokenizer_params(shard_tokens=1500)
    tokenize(params, raw, tmp_path / "expected", tmp_path / "runs", 1)

    def run(out: Path, runs: Path, fatal: int, when: str) -> subprocess.CompletedProcess[str]:
        arguments = [params.model_dump_json(), str(raw), str(out), str(runs), str(fatal), when]
        return subprocess.run(
            [sys.executable, "-c", DIE_AT_RENAME, *arguments], capture_output=True, text=True, check=False
        )

    renames = int(run(tmp_path / "whole", tmp_path / "runs", 0, "never").stdout)
    units = sum(
        len(RawCorpus.read(raw).splits["train"]) and file.row_groups for file in RawCorpus.read(raw).splits["train"]
    )
    points = [(fatal, when) for fatal in (1, 5, 8, renames - 5, renames) for when in ("before", "after")]
    assert renames > 15
    for fatal, when in points:
        out, runs = tmp_path / f"out-{fatal}-{when}", tmp_path / f"runs-{fatal}-{when}"
        assert run(out, runs, fatal, when).returncode == -signal.SIGKILL
        there = [path for path in runs.glob("*/units/*.npy") if read_piece(path)]
        encoded = count_encoded_units(lambda out=out, runs=runs: tokenize(params, raw, out, runs, 1))
        assert encoded == units - len(there)
        assert contents(out) == contents(tmp_path / "expected")
        assert not list(tmp_path.glob(f".out-{fatal}-{when}.*")), "a killed run's leavings are swept away"


SLOW_CORPUS = [f"document {number} " * 400 for number in range(300)]


def test_killing_the_parent_takes_its_workers_along_and_loses_no_finished_unit(
    write_raw: WriteRaw, tmp_path: Path
) -> None:
    raw, params = write_raw(SLOW_CORPUS, group_bytes=1), tokenizer_params(shard_tokens=100_000)
    parent = start_tokenizing(params.model_dump_json(), raw, tmp_path / "out", tmp_path / "runs")
    wait_until(lambda: len(list(tmp_path.glob("runs/*/units/*.json"))) > 20)
    workers = children(parent.pid)
    assert len(workers) >= 2
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert not (tmp_path / "out").exists()
    there = len([path for path in tmp_path.glob("runs/*/units/*.npy") if read_piece(path)])
    assert 20 < there < 300
    encoded = count_encoded_units(lambda: tokenize(params, raw, tmp_path / "out", tmp_path / "runs", 1))
    assert encoded == 300 - there
    tokenize(params, raw, tmp_path / "expected", tmp_path / "runs", 1)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_a_worker_s_death_ends_in_one_clear_error(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw = write_raw(SLOW_CORPUS, group_bytes=1)
    arguments = tokenizer_params(shard_tokens=100_000).model_dump_json(), raw, tmp_path / "out", tmp_path / "runs"
    parent = start_tokenizing(*arguments)
    wait_until(lambda: len(list(tmp_path.glob("runs/*/units/*.json"))) > 5)
    workers = [pid for pid in children(parent.pid) if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(workers[0], signal.SIGKILL)
    _, said = parent.communicate(timeout=60)
    assert parent.returncode == 1
    assert said.strip().startswith("tokenize: a worker process died")
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_full_disk_ends_in_an_error_that_names_the_file_and_leaves_nothing_half_written(
    write_raw: WriteRaw, tmp_path: Path
) -> None:
    code = TOKENIZE.replace(
        "if __name__", "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\nif __name__", 1
    ).replace(", 2)", ", 1)")
    raw, params = write_raw(["short", "long " * 9000], group_bytes=1), tokenizer_params()
    arguments = [params.model_dump_json(), str(raw), str(tmp_path / "out"), str(tmp_path / "runs")]
    failed = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith("tokenize: [Errno 27] File too large: ")
    assert "units/train-000001.npy" in failed.stderr
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("runs/*/units/*000001*"))
    tokenize(params, raw, tmp_path / "out", tmp_path / "runs", 1)
    verify_directory(tmp_path / "out")


def test_a_failure_leaves_the_earlier_shards_untouched(write_raw: WriteRaw, tmp_path: Path) -> None:
    tokenize(tokenizer_params(), write_raw(CORPUS), tmp_path / "out", tmp_path / "runs", 1)
    before = contents(tmp_path / "out")
    bad = write_raw(CORPUS[:9], name="bad")
    path = bad / "train" / "000000.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"train/000000\.parquet: row group \d cannot be read"):
        tokenize(tokenizer_params(), bad, tmp_path / "out", tmp_path / "runs", 2)
    assert contents(tmp_path / "out") == before


def test_a_damaged_unit_of_an_earlier_run_is_found_and_written_anew(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw, params = write_raw(CORPUS), tokenizer_params()
    tokenize(params, raw, tmp_path / "expected", tmp_path / "runs", 1)
    tokenize_part(params, raw, tmp_path / "runs", 1, 1, 1)
    unit = sorted(tmp_path.glob("runs/*/units/*.npy"))[2]
    tokens = np.load(unit)
    tokens[5] += 1
    np.save(unit, tokens)
    with pytest.raises(ValueError, match=rf"{unit.name} is damaged .* run again, and it is written anew"):
        tokenize(params, raw, tmp_path / "out", tmp_path / "runs", 1)
    tokenize(params, raw, tmp_path / "out", tmp_path / "runs", 1)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_documents_that_data_raw_does_not_list_are_refused(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw = write_raw(CORPUS)
    record = json.loads((raw / "source.json").read_text())
    record["splits"]["train"][0]["documents"] += 1
    (raw / "source.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"its train files have 84 documents, but source\.json says 85"):
        tokenize(tokenizer_params(), raw, tmp_path / "out", tmp_path / "runs", 1)


def test_a_worker_s_error_arrives_as_it_was_raised(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw = write_raw(CORPUS)
    (raw / "train" / "000000.parquet").unlink()
    with pytest.raises((ValueError, Stop), match=r"000000\.parquet"):
        tokenize(tokenizer_params(), raw, tmp_path / "out", tmp_path / "runs", 2)
