"""Every source gives its documents complete and in a fixed order, and an interruption costs at most one part."""

import gzip
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus import sources
from pipeline.corpus.conversations import Message
from pipeline.corpus.documents import Document, read_row_group, read_texts, write_documents
from pipeline.corpus.readers import HubStream
from pipeline.files import sha256_of
from pipeline.log import UserError

from .conftest import DOCUMENTS, data_params, fetch, texts_of

TEXTS = ["one\n", "two — “zwei”", "", "drei\r\nthree"]


def write_texts(root: Path, texts: list[str] = TEXTS) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    (root / "a.jsonl").write_bytes(lines)
    (root / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    with pa.output_stream(root / "c.jsonl.zst", compression="zstd") as file:
        file.write(lines)
    pq.write_table(pa.table({"text": texts, "other": [1] * len(texts)}), root / "d.parquet", row_group_size=2)
    for number, text in enumerate(texts):
        (root / f"e{number}.txt").write_bytes(text.encode())


def test_all_kinds_of_files_give_the_same_documents_in_the_order_of_the_globs(tmp_path: Path) -> None:
    write_texts(tmp_path)
    corpus = fetch(tmp_path, files=["*.txt", "**/*.jsonl*", "d.parquet"])
    assert texts_of(tmp_path / "raw") == TEXTS * 5
    assert corpus.documents("train") == 20
    assert corpus.utf8_bytes("train") == 5 * sum(len(text.encode()) for text in TEXTS)


def test_a_file_that_two_globs_match_is_read_once(tmp_path: Path) -> None:
    write_texts(tmp_path)
    fetch(tmp_path, files=["a.jsonl", "a.*", str(tmp_path / "a.jsonl")])
    assert texts_of(tmp_path / "raw") == TEXTS


def test_zst_files_of_several_frames_are_read_to_the_end(tmp_path: Path) -> None:
    write_texts(tmp_path)
    once = (tmp_path / "c.jsonl.zst").read_bytes()
    (tmp_path / "c.jsonl.zst").write_bytes(once + once)
    fetch(tmp_path, files=["c.jsonl.zst"])
    assert texts_of(tmp_path / "raw") == TEXTS * 2


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": 1}\n', r"a\.jsonl:2: text \('1'\)"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}\n', r"a\.jsonl:2: no column 'text' \(data.text_column\)"),
        ("a.jsonl", b'{"text": "x"}\n\nrest', r"a\.jsonl:3: "),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl:1: .*recursion"),
        ("a.jsonl", b'{"text": "\\ud83d"}\n', r"a\.jsonl:1: .*surrogates"),
        ("a.jsonl", b'{"text": "\xff"}\n', r"a\.jsonl:1: "),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 9, mtime=0)[:-12], r"a\.jsonl\.gz:\d+: "),
        ("a.jsonl.gz", gzip.compress(b"{}", mtime=0)[:10] + b"\xff" * 20, r"a\.jsonl\.gz:1: Error -3"),
        ("a.jsonl.zst", b"no archive", r"a\.jsonl\.zst:1: "),
        ("a.txt", b"good \xff bad", r"a\.txt: offset 5: "),
        ("a.parquet", b"no parquet", r"a\.parquet is not a parquet file"),
        ("a.csv", b"text\nx\n", r"data\.files: .*a\.csv"),
        ("a.jsonl", b"", r"data\.source \(files\): no documents"),
        ("a.jsonl", b'{"messages": []}\n', r"a\.jsonl:1: messages \('\[\]'\)"),
        ("a.jsonl", b'{"messages": [{"role": "tool", "content": "x"}]}', r"a\.jsonl:1: message 0: role \('tool'\)"),
        ("a.jsonl", b'{"messages": [{"role": "user", "content": null}]}', r"a\.jsonl:1: message 0: content \('None'\)"),
        ("a.jsonl", b'{"messages": [{"role": "user", "content": "x"}]}', r"a\.jsonl:1: the last message \(user\)"),
        ("a.jsonl", b'{"prompt": "x", "completion": 7}', r"a\.jsonl:1: message 1: content \('7'\)"),
        ("a.jsonl", b'{"text": "x"}\n{"prompt": "x", "completion": "y"}', r"data\.source: has both texts and conver"),
    ],
)
def test_a_bad_file_is_named_with_its_line_or_offset(tmp_path: Path, name: str, content: bytes, place: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=place):
        fetch(tmp_path, files=[name])
    assert not (tmp_path / "raw").exists()


def test_texts_and_conversations_are_not_mixed_across_row_groups(tmp_path: Path) -> None:
    documents = [Document(0, "x"), Document(1, (Message("assistant", "y"),))]
    with pytest.raises(UserError, match=r"data\.source: has both texts and conversations"):
        write_documents(tmp_path, 0, documents, None, row_group_bytes=1)


def test_a_bad_row_and_a_missing_column_of_parquet_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b", None]}), tmp_path / "a.parquet", row_group_size=1)
    with pytest.raises(UserError, match=r"a\.parquet: row 2: text \('None'\)"):
        fetch(tmp_path, files=["a.parquet"])
    with pytest.raises(UserError, match=r"a\.parquet: no column 'body' \(data.text_column\).*, only text"):
        fetch(tmp_path, files=["a.parquet"], text_column="body")


@pytest.mark.parametrize("damaged", [slice(4, 60), slice(-60, -8)])
def test_a_damaged_parquet_file_is_named(tmp_path: Path, damaged: slice) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["text " * 99] * 9}), path)
    content = bytearray(path.read_bytes())
    content[damaged] = b"\xff" * len(content[damaged])
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.parquet"):
        fetch(tmp_path, files=["a.parquet"])


def test_conversations_are_recognized_by_their_columns(tmp_path: Path) -> None:
    """Messages and pairs of texts, in JSONL and parquet; other columns are ignored, and text_column can name them."""
    messages = [{"role": role, "content": f"{role} é"} for role in ("system", "user", "assistant")]
    pair = {"prompt": "2 + 2?", "completion": "4", "id": 7}
    with (tmp_path / "a.jsonl").open("w") as file:
        file.writelines(f"{json.dumps(record)}\n" for record in ({"messages": messages, "source": "x"}, pair))
    pq.write_table(pa.table({"text": ["no"], "turns": [messages]}), tmp_path / "b.parquet")
    expected = [tuple(Message(**message) for message in messages)]
    corpus = fetch(tmp_path, files=["a.jsonl"])
    (file,) = corpus.splits["train"]
    pairs = [(Message("user", "2 + 2?"), Message("assistant", "4"))]
    assert read_row_group(tmp_path / "raw" / file.file, 0) == expected + pairs
    assert corpus.utf8_bytes("train") == len("system éuser éassistant é2 + 2?4".encode())
    fetch(tmp_path, files=["b.parquet"], text_column="turns")
    assert read_row_group(tmp_path / "raw/train/000000.parquet", 0) == expected
    with pytest.raises(UserError, match=r"data\.val_every \(9\): too few conversations"):
        fetch(tmp_path, files=["a.jsonl"], val_every=9)


def test_additions_are_correct_and_none_is_held_out_and_trained_on(tmp_path: Path) -> None:
    corpus = fetch(tmp_path, source="arithmetic", val_every=10)
    pairs: dict[str, set[tuple[int, int]]] = {}
    for split, number in (("train", 18_000), ("val", 2_000)):
        texts = texts_of(tmp_path / "raw", split)
        assert corpus.documents(split) == number
        for question, answer in zip(texts[::2], texts[1::2], strict=True):
            a, b = map(int, re.findall(r"\d+", question))
            *steps, last = answer.split("\n")
            assert last == str(a + b)
            for step in steps:
                *digits, total = map(int, re.findall(r"\d+", step))
                assert sum(digits) == total
            pairs.setdefault(split, set()).add((min(a, b), max(a, b)))
    assert len(pairs["train"] | pairs["val"]) == len(pairs["train"]) + len(pairs["val"]) == 39_999


def test_blank_lines_of_jsonl_are_no_documents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n{"text": "x"}\n \n\n{"text": ""}\n')
    fetch(tmp_path, files=["a.jsonl"])
    assert texts_of(tmp_path / "raw") == ["x", ""]


def test_a_glob_that_matches_nothing_is_named() -> None:
    with pytest.raises(UserError, match=r"data\.files \(nothing\*\.txt\)"):
        fetch(Path("/nowhere"), files=["nothing*.txt"])
    with pytest.raises(ValueError, match=r"data\.files \(\[\]\)"):
        data_params(files=[])


def test_a_failed_download_leaves_the_earlier_output_untouched(tmp_path: Path) -> None:
    write_texts(tmp_path)
    fetch(tmp_path, files=["a.jsonl"])
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("broken")
    with pytest.raises(UserError, match=r"a\.jsonl:5"):
        fetch(tmp_path, files=["a.jsonl"])
    assert texts_of(tmp_path / "raw") == TEXTS


def test_limits_take_a_prefix(tmp_path: Path) -> None:
    write_texts(tmp_path)
    fetch(tmp_path, files=["a.jsonl", "b.jsonl.gz"], max_documents=5)
    assert texts_of(tmp_path / "raw") == [*TEXTS, TEXTS[0]]
    sizes = [len(text.encode()) for text in TEXTS]
    fetch(tmp_path, files=["a.jsonl"], max_bytes=sum(sizes[:2]))
    assert texts_of(tmp_path / "raw") == TEXTS[:3]  # the third is empty
    fetch(tmp_path, files=["a.jsonl"], max_bytes=sum(sizes[:2]) - 1)
    assert texts_of(tmp_path / "raw") == TEXTS[:1]
    with pytest.raises(UserError, match=r"data\.max_bytes \(1\)"):
        fetch(tmp_path, files=["a.jsonl"], max_bytes=1)


def test_every_nth_document_is_held_out(tmp_path: Path) -> None:
    texts = [f"document {number}" for number in range(25)]
    write_texts(tmp_path, texts)
    fetch(tmp_path, files=["a.jsonl"], val_every=10, part_bytes=40)
    assert texts_of(tmp_path / "raw", "val") == texts[::10]
    assert texts_of(tmp_path / "raw") == [text for n, text in enumerate(texts) if n % 10]


def test_the_end_of_a_single_document_is_held_out(tmp_path: Path) -> None:
    """nanoGPT's input.txt: the last tenth, from the start of a line."""
    text = "".join(f"line {number}: für König\n" for number in range(1000))
    (tmp_path / "input.txt").write_text(text)
    corpus = fetch(tmp_path, val_every=10, part_bytes=100)
    (train,), (val,) = texts_of(tmp_path / "raw"), texts_of(tmp_path / "raw", "val")
    assert train + val == text
    assert val.startswith("line 900: ")
    assert len(text) / 10 <= len(val) < len(text) / 10 + 20
    assert (corpus.documents("train"), corpus.documents("val")) == (1, 1)
    assert (corpus.utf8_bytes("train"), corpus.utf8_bytes("val")) == (len(train.encode()), len(val.encode()))


def test_the_end_of_each_of_a_few_documents_is_held_out(tmp_path: Path) -> None:
    texts = ["one two three four five six\n" * 4, "", "x" * 30, "y"]
    write_texts(tmp_path, texts)
    fetch(tmp_path, files=["a.jsonl"], val_every=5, part_bytes=60)
    assert texts_of(tmp_path / "raw") == ["one two three four five six\n" * 3, "", "x" * 24, "y"]
    assert texts_of(tmp_path / "raw", "val") == ["one two three four five six\n", "x" * 6]
    fetch(tmp_path, files=["a.jsonl"], val_every=4)
    assert texts_of(tmp_path / "raw", "val") == texts[:1]
    with pytest.raises(UserError, match=r"data\.val_every \(5\).*too short"):
        fetch(tmp_path, files=["e3.txt"], val_every=5)


@pytest.mark.parametrize(
    ("limits", "progress"),
    [
        ({"max_documents": 10}, "download 5/10 docs (50%) | "),
        ({"max_bytes": 100}, "download 50/100 B (50%) | "),
        ({}, "download 7 docs | "),
    ],
)
def test_progress_counts_what_is_known_of_the_size(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    limits: dict[str, int],
    progress: str,
) -> None:
    monkeypatch.setattr("pipeline.progress.PLAIN_INTERVAL_S", 0)
    write_texts(tmp_path, ["ten bytes\n"] * 20)
    fetch(tmp_path, files=["a.jsonl"], **limits)
    assert progress in capsys.readouterr().out


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.mark.parametrize(
    ("damage", "first"),
    [
        (None, 3),
        (lambda part: (part / "part.json").write_text("{"), 1),
        (lambda part: (part / "part.json").write_text("null"), 1),
        (lambda part: (part / "train/000001.parquet").unlink(), 1),
        (lambda part: (part / "train/000001.parquet").write_bytes(b""), 1),
    ],
)
def test_an_interrupted_download_resumes_after_its_last_intact_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], Any] | None, first: int
) -> None:
    write_texts(tmp_path, [f"document {number:03d}" for number in range(50)])
    fetch(tmp_path, files=["a.jsonl"], val_every=7, part_bytes=100)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "raw").rglob("*.parquet")}

    def killed_at_the_third(directory: Path, number: int, *rest: Any) -> Any:
        if number == 3:
            raise Killed
        return write_documents(directory, number, *rest)

    monkeypatch.setattr(sources, "write_documents", killed_at_the_third)
    with pytest.raises(Killed):
        fetch(tmp_path, files=["a.jsonl"], val_every=7, part_bytes=100)
    if damage:
        damage(tmp_path / "work/000001")
    numbers: list[int] = []

    def counted(directory: Path, number: int, *rest: Any) -> Any:
        numbers.append(number)
        return write_documents(directory, number, *rest)

    monkeypatch.setattr(sources, "write_documents", counted)
    fetch(tmp_path, files=["a.jsonl"], val_every=7, part_bytes=100)
    assert numbers[0] == first
    assert {path.name: path.read_bytes() for path in (tmp_path / "raw").rglob("*.parquet")} == expected


@pytest.mark.parametrize("source", ["files", "hub"])
def test_text_that_was_edited_after_an_interruption_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """Between the last part and the output, as a kill leaves it; size and modification time stay the same."""
    file = tmp_path / "data/train.jsonl"
    file.parent.mkdir()
    changes = {"source": source, "files": ["data/*.jsonl"], "hub_path": str(file.parent)}

    def interrupted(*_: Any) -> None:
        raise Killed

    file.write_text('{"text": "old"}\n')
    with monkeypatch.context() as patch:
        patch.setattr(sources, "_splits", interrupted)
        with pytest.raises(Killed):
            fetch(tmp_path, **changes)
    status = file.stat()
    file.write_text('{"text": "new"}\n')
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    corpus = fetch(tmp_path, **changes)
    assert texts_of(tmp_path / "raw") == ["new"]
    assert list(corpus.origin["sha256"].values()) == [sha256_of(file)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=40), st.integers(1, 200))
def test_row_groups_hold_all_documents_in_order(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], row_group_bytes: int
) -> None:
    directory = tmp_path_factory.mktemp("raw")
    documents = (Document(number, text) for number, text in enumerate(texts))
    files = write_documents(directory, 0, documents, None, row_group_bytes)
    assert list(read_texts(directory, [files["train"]])) == texts


def test_documents_are_not_changed(tmp_path: Path) -> None:
    write_texts(tmp_path, DOCUMENTS)
    fetch(tmp_path, files=["d.parquet"])
    assert texts_of(tmp_path / "raw") == DOCUMENTS


def test_a_bad_row_of_data_raw_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: row group 0, row 1 \(None\)"):
        read_row_group(tmp_path / "a.parquet", 0)
    bad = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    pq.write_table(pa.table({"text": bad}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet: row group 0 cannot be read: 'utf-8'"):
        read_row_group(tmp_path / "b.parquet", 0)


# The Hugging Face hub


ROWS = [f"row {number} {row}" for number in range(3) for row in range(100)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset as the hub has them: parquet files of one split in a directory."""
    directory = tmp_path_factory.mktemp("dataset")
    (directory / "data").mkdir()
    for number in range(3):
        table = pa.table({"text": ROWS[100 * number : 100 * (number + 1)], "id": range(100)})
        pq.write_table(table, directory / "data" / f"train-{number:05d}.parquet", row_group_size=30)
    return directory


def test_a_dataset_streams_in_the_order_of_its_files(tmp_path: Path, dataset: Path) -> None:
    corpus = fetch(tmp_path, source="hub", hub_path=str(dataset), part_bytes=500)
    assert texts_of(tmp_path / "raw") == ROWS
    files = {f"data/{path.name}": sha256_of(path) for path in (dataset / "data").iterdir()}
    hub = {"source": "hub", "path": str(dataset), "name": None, "split": "train", "commit": None}
    assert corpus.origin == hub | {"sha256": files}
    fetch(tmp_path, source="hub", hub_path=str(dataset), max_documents=150)
    assert texts_of(tmp_path / "raw") == ROWS[:150]


def test_a_dataset_with_metadata_is_a_download_of_known_size(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.progress.PLAIN_INTERVAL_S", 0)
    monkeypatch.setattr(HubStream, "expected", 300)
    fetch(tmp_path, source="hub", hub_path=str(dataset))
    assert "download 75/300 docs (25%)" in capsys.readouterr().out
    monkeypatch.setattr(HubStream, "expected", 301)
    with pytest.raises(UserError, match="300 documents, but it should have 301"):
        fetch(tmp_path, source="hub", hub_path=str(dataset))


def test_an_interrupted_stream_resumes_in_the_middle_of_a_file(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, read = HubStream.rows, []

    def reading(fail_after: int) -> Callable[[HubStream], Iterator[dict[str, Any]]]:
        def iterate(self: HubStream) -> Iterator[dict[str, Any]]:
            for row in rows(self):
                read.append(row)
                if len(read) > fail_after:
                    raise UserError("connection lost")
                yield row

        return iterate

    monkeypatch.setattr(HubStream, "rows", reading(fail_after=170))
    with pytest.raises(UserError, match="connection lost"):
        fetch(tmp_path, source="hub", hub_path=str(dataset), part_bytes=500)
    kept = sum(len(pq.read_table(path)) for path in (tmp_path / "work").rglob("*.parquet"))
    assert 100 < kept < 170
    read.clear()
    monkeypatch.setattr(HubStream, "rows", reading(fail_after=300))
    fetch(tmp_path, source="hub", hub_path=str(dataset), part_bytes=500)
    assert texts_of(tmp_path / "raw") == ROWS
    assert len(read) == 300 - kept


def test_a_dataset_s_defects_are_named(tmp_path: Path, dataset: Path) -> None:
    with pytest.raises(UserError, match=r"no column 'body' \(data.text_column\).*, only text, id"):
        fetch(tmp_path, source="hub", hub_path=str(dataset), text_column="body")
    with pytest.raises(UserError, match=r"row 0 of this run: id \('0'\)"):
        fetch(tmp_path, source="hub", hub_path=str(dataset), text_column="id")
    with pytest.raises(UserError, match=r"hub dataset .* split nosplit, .*nosplit"):
        fetch(tmp_path, source="hub", hub_path=str(dataset), hub_split="nosplit")


def test_configuration_and_split_are_chosen_by_name(tmp_path: Path) -> None:
    directory = tmp_path / "dataset"
    directory.mkdir()
    for file in ("all-train", "small-train", "small-test"):
        pq.write_table(pa.table({"text": [file]}), directory / f"{file}.parquet")
    (directory / "README.md").write_text(
        "---\nconfigs:\n- config_name: all\n  default: true\n  data_files: all-train.parquet\n- config_name: small\n"
        "  data_files:\n"
        "  - {split: train, path: small-train.parquet}\n  - {split: test, path: small-test.parquet}\n---\n"
    )
    for name, split, expected in ((None, "train", "all-train"), ("small", "test", "small-test")):
        fetch(tmp_path, source="hub", hub_path=str(directory), hub_name=name, hub_split=split)
        assert texts_of(tmp_path / "raw") == [expected]


def test_a_revision_is_pinned_to_its_commit_before_anything_is_read(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_dataset, calls = datasets.load_dataset, []

    def load(path: str, name: str | None, revision: str, **rest: Any) -> Any:
        calls.append((path, name, revision))
        return load_dataset(str(dataset), None, **rest)

    monkeypatch.setattr("pipeline.corpus.readers._commit", lambda path, revision: f"commit-of-{revision}")
    monkeypatch.setattr(datasets, "load_dataset", load)
    corpus = fetch(tmp_path, source="hub", hub_path="owner/name", hub_name="small", hub_revision="v1.0")
    assert calls == [("owner/name", "small", "commit-of-v1.0")]
    assert corpus.origin["commit"] == "commit-of-v1.0"


def test_a_dataset_s_own_code_is_not_run(tmp_path: Path) -> None:
    directory = tmp_path / "scripted"
    directory.mkdir()
    (directory / "scripted.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    with pytest.raises(UserError, match="scripted"):
        fetch(tmp_path, source="hub", hub_path=str(directory))
    assert not (tmp_path / "ran").exists()
