"""Datasets of the hub: streamed in order, one commit, nothing of theirs run, continued where they stopped."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.hub import HubStream
from pipeline.files import read_json
from pipeline.log import Stop

from .downloading import documents, fetch


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset as the hub has them: parquet files of one split in a directory."""
    directory = tmp_path_factory.mktemp("dataset")
    (directory / "data").mkdir()
    for number in range(3):
        texts = [f"row {number} {row}" for row in range(100)]
        table = pa.table({"text": texts, "id": range(100)})
        pq.write_table(table, directory / "data" / f"train-{number:05d}.parquet", row_group_size=30)
    return directory


ROWS = [f"row {number} {row}" for number in range(3) for row in range(100)]


def test_a_dataset_streams_in_the_order_of_its_files(tmp_path: Path, dataset: Path) -> None:
    fetch(tmp_path, source="hub", hub_path=str(dataset), part_bytes=500)
    assert documents(tmp_path) == ROWS
    fetch(tmp_path, source="hub", hub_path=str(dataset), max_documents=150)
    assert documents(tmp_path) == ROWS[:150]


def test_a_dataset_that_says_its_size_is_a_download_of_known_size(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.progress.PLAIN_INTERVAL_S", 0)
    monkeypatch.setattr(HubStream, "expected", 300)
    fetch(tmp_path, source="hub", hub_path=str(dataset))
    assert "download 75/300 docs (25%)" in capsys.readouterr().out
    fetch(tmp_path, source="hub", hub_path=str(dataset), max_documents=100)
    assert "download 75/100 docs (75%)" in capsys.readouterr().out


def test_an_interrupted_stream_goes_on_in_the_middle_of_a_file(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, taken = HubStream.rows, []

    def dropped(self: HubStream) -> Iterator[dict[str, Any]]:
        for row in rows(self):
            if len(taken) == 170:
                taken.append(row)
                raise Stop("the network is gone")
            taken.append(row)
            yield row

    monkeypatch.setattr(HubStream, "rows", dropped)
    with pytest.raises(Stop, match="gone"):
        fetch(tmp_path, source="hub", hub_path=str(dataset), part_bytes=500)
    kept = sum(len(pq.read_table(path)) for path in (tmp_path / "work").rglob("*.parquet"))
    assert 100 < kept < 170
    taken.clear()
    monkeypatch.setattr(HubStream, "rows", rows)
    monkeypatch.setattr(HubStream, "rows", lambda self: (taken.append(row) or row for row in rows(self)))
    fetch(tmp_path, source="hub", hub_path=str(dataset), part_bytes=500)
    assert documents(tmp_path) == ROWS
    assert len(taken) == 300 - kept


def test_a_dataset_that_ends_early_is_refused(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HubStream, "expected", 301)
    with pytest.raises(ValueError, match="300 documents came, but it has 301"):
        fetch(tmp_path, source="hub", hub_path=str(dataset))


def test_a_dataset_s_mistakes_are_named(tmp_path: Path, dataset: Path) -> None:
    with pytest.raises(ValueError, match=r"no column 'body' \(data.text_column\), only text, id"):
        fetch(tmp_path, source="hub", hub_path=str(dataset), text_column="body")
    with pytest.raises(ValueError, match=r"row 0 of this run: id \(0\) is not text"):
        fetch(tmp_path, source="hub", hub_path=str(dataset), text_column="id")
    with pytest.raises(Stop, match=r"hub dataset .* split nosplit, .*nosplit"):
        fetch(tmp_path, source="hub", hub_path=str(dataset), hub_split="nosplit")


def test_the_origin_says_where_documents_came_from(tmp_path: Path, dataset: Path) -> None:
    fetch(tmp_path, source="hub", hub_path=str(dataset))
    origin = read_json(tmp_path / "raw" / "source.json")["origin"]
    assert origin == {"source": "hub", "path": str(dataset), "name": None, "split": "train", "commit": None}


def test_the_configuration_and_the_split_are_chosen_by_name(tmp_path: Path) -> None:
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
        assert documents(tmp_path) == [expected]


def test_a_revision_is_pinned_to_its_commit_before_anything_is_read(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_dataset, asked = datasets.load_dataset, []

    def load(path: str, name: str | None, revision: str, **rest: Any) -> Any:
        asked.append((path, name, revision))
        return load_dataset(str(dataset), None, **rest)

    monkeypatch.setattr("pipeline.corpus.hub._commit", lambda path, revision: f"commit-of-{revision}")
    monkeypatch.setattr(datasets, "load_dataset", load)
    corpus = fetch(tmp_path, source="hub", hub_path="owner/name", hub_name="small", hub_revision="v1.0")
    assert asked == [("owner/name", "small", "commit-of-v1.0")]
    assert corpus.origin["commit"] == "commit-of-v1.0"


def test_a_dataset_s_own_code_is_not_run(tmp_path: Path) -> None:
    directory = tmp_path / "scripted"
    directory.mkdir()
    (directory / "scripted.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    with pytest.raises(Stop, match="scripted"):
        fetch(tmp_path, source="hub", hub_path=str(directory))
    assert not (tmp_path / "ran").exists()
