"""Shards are the same bytes for any number of workers, machines and interruptions; no failure looks like success."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus import encodings, tokenization
from pipeline.corpus.encoder import UnitTask, encode, encode_unit
from pipeline.corpus.pieces import Piece, read_piece
from pipeline.corpus.raw import FORMAT_VERSION, SOURCE_FILE, Document, RawCorpus, write_files
from pipeline.corpus.shards import Manifest, open_split
from pipeline.corpus.tokenization import tokenize, tokenize_part
from pipeline.corpus.verify import verify_directory
from pipeline.log import Stop

from .conftest import DOCUMENTS, WriteRaw, tokenizer_params

CORPUS = [f"{text} {number}" if text else "" for number in range(12) for text in DOCUMENTS]


def contents(directory: Path) -> dict[str, bytes]:
    """Every file in a directory of shards."""
    files = {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert files
    return files


def stream_of(directory: Path, split: Any) -> list[int]:
    stream = open_split(directory, split)
    return [int(token) for token in stream.read(0, len(stream))]


@pytest.mark.parametrize(("encoding", "val_every", "several"), [("bytes", None, (2, 7)), ("bpe", 5, (2,))])
def test_any_number_of_workers_gives_the_same_bytes(
    write_raw: WriteRaw, tmp_path: Path, encoding: str, val_every: int | None, several: tuple[int, ...]
) -> None:
    raw = write_raw(CORPUS, val_every)
    params = tokenizer_params(encoding=encoding, shard_tokens=701)
    tokenize(params, raw, tmp_path / "1", tmp_path / "runs", 1)
    for workers in several:
        tokenize(params, raw, tmp_path / str(workers), tmp_path / "runs", workers)
        assert contents(tmp_path / str(workers)) == contents(tmp_path / "1")
    assert not list((tmp_path / "runs").iterdir())
    verify_directory(tmp_path / "1")


def test_units_of_any_size_give_the_same_shards(write_raw: WriteRaw, tmp_path: Path) -> None:
    for size in (1, 500, 10**6):
        raw = write_raw(CORPUS, group_bytes=size, name=f"raw{size}")
        tokenize(tokenizer_params(), raw, tmp_path / str(size), tmp_path / "runs", 1)
    assert contents(tmp_path / "1") == contents(tmp_path / "500") == contents(tmp_path / "1000000")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.text(max_size=30), min_size=2, max_size=20),
    st.integers(1, 60),
    st.sampled_from([None, 2, 3]),
    st.integers(1, 100),
)
def test_the_splits_together_are_every_document_after_its_end_of_text(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str],
    shard_tokens: int,
    val_every: int | None,
    group_bytes: int,
) -> None:
    directory = tmp_path_factory.mktemp("tokenize")
    files = write_files(
        directory, 0, (Document(n, text) for n, text in enumerate(texts)), val_every, group_bytes=group_bytes
    )
    corpus = RawCorpus(
        format_version=FORMAT_VERSION, origin={}, splits={split: [file] for split, file in files.items()}
    )
    corpus.write(directory / SOURCE_FILE)
    out = directory / "out"
    manifest = tokenize(tokenizer_params(shard_tokens=shard_tokens), directory, out, directory / "runs", 1)
    encoding = encodings.bytes_encoding()
    if val_every is None:
        assert stream_of(out, "val") + stream_of(out, "train") == encode(encoding, texts).tolist()
    else:
        assert stream_of(out, "val") == encode(encoding, texts[::val_every]).tolist()
        rest = [text for n, text in enumerate(texts) if n % val_every]
        assert stream_of(out, "train") == encode(encoding, rest).tolist()
    for split in manifest.splits.values():
        assert all(shard.tokens == shard_tokens for shard in split.shards[:-1])
        assert split.tokens == sum(shard.tokens for shard in split.shards)
    verify_directory(out)


def test_a_document_longer_than_a_shard_runs_over_shards(write_raw: WriteRaw, tmp_path: Path) -> None:
    manifest = tokenize(tokenizer_params(shard_tokens=100), write_raw(["y" * 950]), tmp_path / "s", tmp_path / "r", 1)
    assert [shard.tokens for shard in manifest.splits["train"].shards] == [100] * 8 + [56]
    assert manifest.splits["val"].tokens == 95


def test_a_corpus_smaller_than_a_shard_is_one_shard_with_a_tenth_for_validation(
    write_raw: WriteRaw, tmp_path: Path
) -> None:
    manifest = tokenize(tokenizer_params(shard_tokens=10**8), write_raw(["y" * 99]), tmp_path / "s", tmp_path / "r", 1)
    assert {name: split.tokens for name, split in manifest.splits.items()} == {"train": 90, "val": 10}


def test_a_corpus_too_small_to_split_is_refused(write_raw: WriteRaw, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1 token\(s\) are too few"):
        tokenize(tokenizer_params(), write_raw([""]), tmp_path / "s", tmp_path / "r", 1)


def test_an_encoding_is_trained_on_training_documents_only(write_raw: WriteRaw, tmp_path: Path) -> None:
    texts = ["validation zzzz " * 40, *["training aaaa " * 20 for _ in range(9)]]
    for name, val_every in (("held out", 10), ("first shard", None)):
        out = tmp_path / name
        raw = write_raw(texts if val_every else [*texts, *texts[1:] * 8], val_every, name=f"raw {name}")
        params = tokenizer_params(encoding="bpe", shard_tokens=150)
        tokenize(params, raw, out, tmp_path / "runs", 1)
        vocabulary = encodings.load(out / "encoding").token_byte_values()
        assert b" training" in vocabulary
        assert not [token for token in vocabulary if b"zz" in token], name


def test_an_encoding_that_saw_validation_text_is_refused(
    write_raw: WriteRaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenization, "MOST_BYTES_PER_TOKEN", 1)
    raw = write_raw(["to be or not to be " * 100] * 30)
    with pytest.raises(ValueError, match=r"data\.val_every \(null\): the validation split has the first \d+ bytes"):
        tokenize(tokenizer_params(encoding="bpe", shard_tokens=500), raw, tmp_path / "s", tmp_path / "runs", 1)
    assert not (tmp_path / "s").exists()


def test_training_bytes_limit_what_an_encoding_is_trained_on(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw = write_raw(["val", "early words " * 50, "late zzzz " * 50], val_every=3)
    params = tokenizer_params(encoding="bpe", training_bytes=600)
    tokenize(params, raw, tmp_path / "s", tmp_path / "runs", 1)
    assert not [t for t in encodings.load(tmp_path / "s" / "encoding").token_byte_values() if b"zz" in t]


def test_two_machines_with_a_part_each_give_the_same_bytes(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw, params = write_raw(CORPUS), tokenizer_params(encoding="bpe", shard_tokens=701)
    tokenize(params, raw, tmp_path / "alone", tmp_path / "runs", 1)
    code = (
        "import sys, json; from pathlib import Path\n"
        "from pipeline.corpus.encodings import TokenizerParams\n"
        "from pipeline.corpus.tokenization import tokenize_part\n"
        "params, raw, runs, part = sys.argv[1:]\n"
        "tokenize_part(TokenizerParams(**json.loads(params)), Path(raw), Path(runs), 1, int(part), 2)\n"
    )
    arguments = [params.model_dump_json(), str(raw), str(tmp_path / "shared")]
    machines = [subprocess.Popen([sys.executable, "-c", code, *arguments, part]) for part in ("1", "2")]
    assert [machine.wait(60) for machine in machines] == [0, 0]
    encoded = count_encoded_units(lambda: tokenize(params, raw, tmp_path / "merged", tmp_path / "shared", 1))
    assert encoded == 0
    assert contents(tmp_path / "merged") == contents(tmp_path / "alone")


def count_encoded_units(work: Any) -> int:
    """How many units `work` encodes, in this process."""
    encoded: list[UnitTask] = []

    def counting(task: UnitTask) -> tuple[UnitTask, Piece]:
        encoded.append(task)
        return encode_unit(task)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenization, "encode_unit", counting)
        work()
    return len(encoded)


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


TOKENIZE = """
import json, sys
from pathlib import Path
from pipeline.corpus.encodings import TokenizerParams
from pipeline.corpus.tokenization import tokenize
from pipeline.log import clear_errors
if __name__ == "__main__":
    params, raw, out, runs = sys.argv[1:]
    with clear_errors("tokenize"):
        tokenize(TokenizerParams(**json.loads(params)), Path(raw), Path(out), Path(runs), 2)
"""


def start_tokenizing(params: str, raw: Path, out: Path, runs: Path) -> subprocess.Popen[str]:
    """Two workers, in a process of their own."""
    script = raw.parent / "run_tokenize.py"
    script.write_text(TOKENIZE)
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, str(script), params, str(raw), str(out), str(runs)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(condition: Any, timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


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


def test_another_configuration_never_meets_the_units_of_this_one(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw = write_raw(CORPUS)
    changes: list[dict[str, Any]] = [{"encoding": "bytes"}, {"encoding": "bpe"}, {"encoding": "bpe", "vocab_size": 301}]
    for change in changes:
        tokenize_part(tokenizer_params(**change), raw, tmp_path / "runs", 1, 1, 1)
    tokenize_part(tokenizer_params(), write_raw(CORPUS[1:], name="other"), tmp_path / "runs", 1, 1, 1)
    assert len(list((tmp_path / "runs").iterdir())) == 4


def test_shards_of_another_size_are_cut_from_the_same_units(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw = write_raw(CORPUS, val_every=5)
    tokenize_part(tokenizer_params(), raw, tmp_path / "runs", 1, 1, 1)
    other = tokenizer_params(shard_tokens=333)
    assert count_encoded_units(lambda: tokenize(other, raw, tmp_path / "out", tmp_path / "runs", 1)) == 0
    assert Manifest.read(tmp_path / "out").shard_tokens == 333


def test_a_worker_s_error_arrives_as_it_was_raised(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw = write_raw(CORPUS)
    (raw / "train" / "000000.parquet").unlink()
    with pytest.raises((ValueError, Stop), match=r"000000\.parquet"):
        tokenize(tokenizer_params(), raw, tmp_path / "out", tmp_path / "runs", 2)


def test_a_second_run_of_the_same_work_waits_for_the_first(write_raw: WriteRaw, tmp_path: Path) -> None:
    raw = write_raw(CORPUS * 3)
    params = tokenizer_params().model_dump_json()
    runs = [start_tokenizing(params, raw, tmp_path / name, tmp_path / "runs") for name in ("a", "b")]
    assert [run.wait(60) for run in runs] == [0, 0]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert not list((tmp_path / "runs").iterdir())
