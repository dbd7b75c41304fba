"""Kills, damage and full disks: no failure of the tokenization looks like success, and finished work is kept."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts import SOURCE_FILE, RawCorpus
from pipeline.corpus.shards import verify
from pipeline.corpus.tokenization import tokenize, tokenize_part
from pipeline.files import sha256_of
from pipeline.log import UserError

from .conftest import WriteRaw, tokenizer_params
from .tokenizing import (
    CORPUS,
    TOKENIZE,
    contents,
    count_encoded,
    count_encodings,
    count_row_groups,
    start_part,
    start_tokenizing,
    wait_until,
)

KILL_AT_RENAME = """
import json, os, signal, sys
from pathlib import Path
from pipeline.corpus.params import TokenizerParams
from pipeline.corpus.tokenization import tokenize
params, raw, out, runs, fatal, when = sys.argv[1:]
replace, renames = Path.replace, 0
def killing(self, target):  # every file of the pipeline becomes visible by a rename
    global renames
    renames += 1
    if renames == int(fatal) and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = replace(self, target)
    if renames == int(fatal):
        os.kill(os.getpid(), signal.SIGKILL)
    return result
Path.replace = killing
tokenize(TokenizerParams(**json.loads(params)), Path(raw), Path(out), Path(runs), 1)
print(renames)
"""


def test_a_tokenization_killed_at_any_point_resumes_and_gives_the_same_bytes(
    write_raw: WriteRaw, tmp_path: Path
) -> None:
    raw, params = write_raw(CORPUS[:21], row_group_bytes=800), tokenizer_params(shard_tokens=1500)
    tokenize(params, raw, tmp_path / "expected", tmp_path / "runs", 1)

    def run(out: Path, runs: Path, fatal: int, when: str) -> subprocess.CompletedProcess[str]:
        arguments = [params.model_dump_json(), str(raw), str(out), str(runs), str(fatal), when]
        command = [sys.executable, "-c", KILL_AT_RENAME, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    renames = int(run(tmp_path / "whole", tmp_path / "runs", 0, "never").stdout)
    assert renames > 15
    before, after = (1, 5, renames - 5, renames), (8, renames)
    for fatal, when in [*((number, "before") for number in before), *((number, "after") for number in after)]:
        out, runs = tmp_path / f"out-{fatal}-{when}", tmp_path / f"runs-{fatal}-{when}"
        assert run(out, runs, fatal, when).returncode == -signal.SIGKILL
        missing = count_row_groups(raw) - count_encoded(runs)
        assert count_encodings(lambda out=out, runs=runs: tokenize(params, raw, out, runs, 1)) == missing
        assert contents(out) == contents(tmp_path / "expected")
        assert not list(tmp_path.glob(f".out-{fatal}-{when}.*"))


SLOW_CORPUS = [f"document {number} " * 400 for number in range(300)]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_killing_the_parent_ends_its_workers_and_keeps_finished_work(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw, params = write_raw(SLOW_CORPUS, row_group_bytes=1), tokenizer_params(shard_tokens=100_000)
    parent = start_tokenizing(params.model_dump_json(), raw, tmp_path / "out", tmp_path / "runs")
    wait_until(lambda: len(list(tmp_path.glob("runs/*/row_groups/*.json"))) > 20)
    workers = children(parent.pid)
    assert len(workers) >= 2
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert not (tmp_path / "out").exists()
    encoded = count_encoded(tmp_path / "runs")
    assert 20 < encoded < 300
    assert count_encodings(lambda: tokenize(params, raw, tmp_path / "out", tmp_path / "runs", 1)) == 300 - encoded
    tokenize(params, raw, tmp_path / "expected", tmp_path / "runs", 1)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_a_killed_worker_ends_the_run_with_one_line(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw, params = write_raw(SLOW_CORPUS, row_group_bytes=1), tokenizer_params(shard_tokens=100_000)
    parent = start_tokenizing(params.model_dump_json(), raw, tmp_path / "out", tmp_path / "runs")
    wait_until(lambda: len(list(tmp_path.glob("runs/*/row_groups/*.json"))) > 5)
    workers = [pid for pid in children(parent.pid) if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(workers[0], signal.SIGKILL)
    _, error = parent.communicate(timeout=60)
    assert parent.returncode == 1
    assert "runtime.workers" in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_killed_part_releases_its_lock(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw, params = write_raw(CORPUS), tokenizer_params()
    machine = start_part(params.model_dump_json(), raw, tmp_path / "runs", 1, 1, seconds=0.05)
    wait_until(lambda: list(tmp_path.glob("runs/*/row_groups/*.json")))
    machine.kill()
    machine.wait()
    encodings = count_encodings(lambda: tokenize_part(params, raw, tmp_path / "runs", 1, 1, 1))
    assert 0 < encodings < count_row_groups(raw)


def test_a_full_disk_ends_in_an_error_that_names_the_file(write_raw: WriteRaw, tmp_path: Path) -> None:
    code = TOKENIZE.replace(
        "if __name__", "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\nif __name__", 1
    ).replace(", 2)", ", 1)")
    raw, params = write_raw(["short", "long " * 9000], row_group_bytes=1), tokenizer_params()
    arguments = [params.model_dump_json(), str(raw), str(tmp_path / "out"), str(tmp_path / "runs")]
    failed = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith("tokenize: [Errno 27] File too large: ")
    assert "row_groups/train-000001.npy" in failed.stderr
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("runs/*/row_groups/*000001*"))
    tokenize(params, raw, tmp_path / "out", tmp_path / "runs", 1)
    verify(tmp_path / "out")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_leaves_the_earlier_shards_untouched(write_raw: WriteRaw, tmp_path: Path, workers: int) -> None:
    tokenize(tokenizer_params(), write_raw(CORPUS), tmp_path / "out", tmp_path / "runs", 1)
    before = contents(tmp_path / "out")
    bad = write_raw(CORPUS[:9], name="bad")
    path = bad / "train" / "000000.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"train/000000\.parquet: sha256 differs"):
        tokenize(tokenizer_params(), bad, tmp_path / "out", tmp_path / "runs", workers)
    corpus = RawCorpus.read(bad / SOURCE_FILE)
    file = corpus.splits["train"][0].model_copy(update={"sha256": sha256_of(path)})
    corpus.model_copy(update={"splits": {"train": [file]}}).write(bad / SOURCE_FILE)
    with pytest.raises(UserError, match=r"train/000000\.parquet is not a parquet file"):
        tokenize(tokenizer_params(), bad, tmp_path / "out", tmp_path / "runs", workers)
    assert contents(tmp_path / "out") == before


def test_a_damaged_token_file_of_an_earlier_run_is_found_and_rewritten(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw, params = write_raw(CORPUS), tokenizer_params()
    tokenize(params, raw, tmp_path / "expected", tmp_path / "runs", 1)
    tokenize_part(params, raw, tmp_path / "runs", 1, 1, 1)
    path = sorted(tmp_path.glob("runs/*/row_groups/*.npy"))[2]
    tokens = np.load(path)
    tokens[5] += 1
    np.save(path, tokens)
    sorted(tmp_path.glob("runs/*/row_groups/*.json"))[4].write_text("{")  # this one is rewritten without an error
    with pytest.raises(UserError, match=rf"{path.name} is damaged"):
        tokenize(params, raw, tmp_path / "out", tmp_path / "runs", 1)
    tokenize(params, raw, tmp_path / "out", tmp_path / "runs", 1)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_documents_that_source_json_does_not_list_are_refused(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw = write_raw(CORPUS)
    corpus = RawCorpus.read(raw / SOURCE_FILE)
    file = corpus.splits["train"][0]
    wrong = file.model_copy(update={"documents": file.documents + 1})
    corpus.model_copy(update={"splits": {"train": [wrong]}}).write(raw / SOURCE_FILE)
    with pytest.raises(UserError, match=r"84 documents, but source\.json says 85"):
        tokenize(tokenizer_params(), raw, tmp_path / "out", tmp_path / "runs", 1)
