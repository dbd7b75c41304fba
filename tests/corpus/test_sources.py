"""Documents come whole, in a fixed order, from every source; what is bad is named; an interruption costs one part."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus import raw, sources
from pipeline.corpus.raw import Document

from .conftest import DOCUMENTS, data_params
from .downloading import documents, fetch

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
    assert documents(tmp_path) == TEXTS * 5
    assert corpus.documents("train") == 20
    assert corpus.utf8_bytes("train") == 5 * sum(len(text.encode()) for text in TEXTS)


def test_a_file_that_two_globs_match_is_read_once(tmp_path: Path) -> None:
    write_texts(tmp_path)
    fetch(tmp_path, files=["a.jsonl", "a.*", str(tmp_path / "a.jsonl")])
    assert documents(tmp_path) == TEXTS


def test_zst_files_of_several_frames_are_read_to_the_end(tmp_path: Path) -> None:
    write_texts(tmp_path)
    once = (tmp_path / "c.jsonl.zst").read_bytes()
    (tmp_path / "c.jsonl.zst").write_bytes(once + once)
    fetch(tmp_path, files=["c.jsonl.zst"])
    assert documents(tmp_path) == TEXTS * 2


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": 1}\n', r"a\.jsonl:2: field 'text' \(1\) is not text"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}\n', r"a\.jsonl:2: no field 'text' \(data.text_column\)"),
        ("a.jsonl", b'{"text": "x"}\n\nrest', r"a\.jsonl:2: Expecting value"),
        ("a.jsonl", b'{"text": "\\ud83d"}\n', r"a\.jsonl:1: .*surrogates not allowed"),
        ("a.jsonl", b'{"text": "\xff"}\n', r"a\.jsonl:1: .*invalid start byte"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 9, mtime=0)[:-12], r"a\.jsonl\.gz:\d+: "),
        ("a.jsonl.zst", b"no archive", r"a\.jsonl\.zst:1: "),
        ("a.txt", b"good \xff bad", r"a\.txt: offset 5: not UTF-8"),
        ("a.parquet", b"no parquet", r"a\.parquet is no parquet file"),
        ("a.csv", b"text\nx\n", r"a\.csv must end in \.txt"),
    ],
)
def test_a_bad_file_is_named_with_its_line_or_offset(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        fetch(tmp_path, files=[name])
    assert not (tmp_path / "raw").exists()


def test_a_bad_row_and_a_missing_column_of_parquet_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b", None]}), tmp_path / "a.parquet", row_group_size=1)
    with pytest.raises(ValueError, match=r"a\.parquet: row 2: None is not text"):
        fetch(tmp_path, files=["a.parquet"])
    with pytest.raises(ValueError, match=r"a\.parquet: no column 'body' \(data.text_column\), only text"):
        fetch(tmp_path, files=["a.parquet"], text_column="body")


def test_a_source_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.files \(nothing\*\.txt\) matches no file"):
        fetch(tmp_path, files=["nothing*.txt"])
    (tmp_path / "a.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match=r"data\.source \(files\): no documents"):
        fetch(tmp_path, files=["a.jsonl"])
    with pytest.raises(ValueError, match=r"data\.files \(\[\]\) must name at least one glob"):
        data_params(files=[])


def test_a_failed_download_leaves_the_earlier_output_untouched(tmp_path: Path) -> None:
    write_texts(tmp_path)
    fetch(tmp_path, files=["a.jsonl"])
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("broken")
    with pytest.raises(ValueError, match=r"a\.jsonl:5"):
        fetch(tmp_path, files=["a.jsonl"])
    assert documents(tmp_path) == TEXTS


def test_limits_take_a_prefix(tmp_path: Path) -> None:
    write_texts(tmp_path)
    fetch(tmp_path, files=["a.jsonl", "b.jsonl.gz"], max_documents=5)
    assert documents(tmp_path) == [*TEXTS, TEXTS[0]]
    sizes = [len(text.encode()) for text in TEXTS]
    fetch(tmp_path, files=["a.jsonl"], max_bytes=sum(sizes[:2]))
    assert documents(tmp_path) == TEXTS[:3]  # the third is empty
    fetch(tmp_path, files=["a.jsonl"], max_bytes=sum(sizes[:2]) - 1)
    assert documents(tmp_path) == TEXTS[:1]
    with pytest.raises(ValueError, match=r"no documents, within max_bytes \(1\)"):
        fetch(tmp_path, files=["a.jsonl"], max_bytes=1)


def test_each_nth_document_is_held_out_whole(tmp_path: Path) -> None:
    texts = [f"document {number}" for number in range(25)]
    write_texts(tmp_path, texts)
    fetch(tmp_path, files=["a.jsonl"], val_every=10, part_bytes=40)
    assert documents(tmp_path, "val") == [texts[0], texts[10], texts[20]]
    assert documents(tmp_path) == [text for text in texts if text not in documents(tmp_path, "val")]
    with pytest.raises(ValueError, match=r"data\.val_every \(10\): all 1 document\(s\) would be for validation"):
        fetch(tmp_path, files=["a.jsonl"], val_every=10, max_documents=1)


def test_a_download_of_known_size_tells_its_share_and_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.progress.PLAIN_INTERVAL_S", 0)
    write_texts(tmp_path, ["ten bytes\n"] * 20)
    fetch(tmp_path, files=["a.jsonl"], max_documents=10)
    assert re.search(
        r"download 5/10 docs \(50%\) \| [\d,.]+ docs/s \| ETA \S+ \| text 0\.0 MB", capsys.readouterr().out
    )
    fetch(tmp_path, files=["a.jsonl"], max_bytes=100)
    assert re.search(r"download 50/100 B \(50%\) \| [\d,.]+ B/s \| ETA ", capsys.readouterr().out)


def test_a_download_of_unknown_size_tells_its_count_at_intervals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_texts(tmp_path, ["ten bytes\n"] * 20)
    fetch(tmp_path, files=["a.jsonl"])
    assert capsys.readouterr().out == "download: 20 documents, 0.0 MB are on disk\n"
    monkeypatch.setattr("pipeline.corpus.download_progress.PLAIN_INTERVAL_S", 0)
    fetch(tmp_path, files=["a.jsonl"])
    assert "download: 7 documents, 0.0 MB\n" in capsys.readouterr().out


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


def test_an_interrupted_download_goes_on_after_its_last_whole_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"document {number:03d}" for number in range(50)]
    write_texts(tmp_path, texts)
    fetch(tmp_path, files=["a.jsonl"], val_every=7, part_bytes=100)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "raw").rglob("*.parquet")}
    written: list[int] = []
    write = sources._write_part

    def until_the_third(work: Path, number: int, *rest: Any) -> Any:
        if number == 3 and not written:
            raise Killed
        written.append(number) if written or number >= 3 else None
        return write(work, number, *rest)

    monkeypatch.setattr(sources, "_write_part", until_the_third)
    with pytest.raises(Killed):
        fetch(tmp_path, files=["a.jsonl"], val_every=7, part_bytes=100)
    written.append(-1)
    fetch(tmp_path, files=["a.jsonl"], val_every=7, part_bytes=100)
    assert written[1] == 3
    assert {path.name: path.read_bytes() for path in (tmp_path / "raw").rglob("*.parquet")} == expected
    assert not (tmp_path / "work").exists()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=40), st.integers(1, 200))
def test_row_groups_hold_all_documents_in_order_whatever_their_size(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], group_bytes: int
) -> None:
    directory = tmp_path_factory.mktemp("raw")
    files = raw.write_files(directory, 0, (Document(n, text) for n, text in enumerate(texts)), None, group_bytes)
    assert list(raw.texts(directory, [files["train"]])) == texts


def test_a_bad_row_of_data_raw_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: row group 0, row 1: None is not text"):
        raw.read_group(tmp_path / "a.parquet", 0)
    bad = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    pq.write_table(pa.table({"text": bad}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet: row group 0, row 0: not UTF-8"):
        raw.read_group(tmp_path / "b.parquet", 0)


def test_the_documents_of_the_fixture_survive_the_trip(tmp_path: Path) -> None:
    write_texts(tmp_path, DOCUMENTS)
    fetch(tmp_path, files=["d.parquet"])
    assert documents(tmp_path) == DOCUMENTS
