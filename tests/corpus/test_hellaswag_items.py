"""Items: the public schema whatever their source, and never cut from training text."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import ConfigError, load_yaml, validate
from pipeline.corpus import hellaswag_sources, raw, sources
from pipeline.corpus.hellaswag_items import HellaswagParams, read_items, read_source
from pipeline.corpus.hellaswag_sources import fetch_items, next_lines

from .conftest import WriteRaw, data_params

RECORD: dict[str, Any] = {
    "ind": 24,
    "activity_label": "Roof shingle removal",
    "ctx_a": "A man is sitting on a roof.",
    "ctx_b": "he",
    "ctx": "A man is sitting on a roof. he",
    "endings": ["is using wrap.", "is ripping tiles off.", "is holding a cube.", "starts pulling up roofing."],
    "label": "3",
    "split": "val",
}


def params(**changes: Any) -> HellaswagParams:
    return HellaswagParams(**({"source": "documents", "path": None, "items": None} | changes))


@pytest.fixture(scope="module")
def plays_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plays")
    sources.fetch(data_params(source="shakespeare", files=[], val_every=10), root, root / "raw", root / "work")
    return root / "raw"


def test_items_cut_from_documents_are_contexts_with_their_true_continuation_and_three_others(plays_raw: Path) -> None:
    corpus = raw.RawCorpus.read(plays_raw)
    val = list(raw.texts(plays_raw, corpus.splits["val"]))
    train = "\n".join(raw.texts(plays_raw, corpus.splits["train"]))
    items = list(next_lines(plays_raw, 200))
    assert 180 < len(items) <= 200
    for item in items:
        true = f"{item.ctx} {item.endings[item.label]}"
        assert sum(true in text for text in val) == 1
        assert len(set(item.endings)) == 4
        for ending in item.endings:
            assert any(ending in text for text in val)
            assert 50 <= len(ending) <= 90
        assert true not in train
        assert 60 < len(item.ctx) <= 260
    labels = [item.label for item in items]
    assert all(30 < labels.count(label) < 70 for label in range(4))


def test_the_same_documents_give_the_same_items(plays_raw: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        fetch_items(params(items=50), tmp_path, plays_raw, tmp_path / name)
    assert (tmp_path / "a" / "hellaswag_val.jsonl").read_bytes() == (
        tmp_path / "b" / "hellaswag_val.jsonl"
    ).read_bytes()


def test_items_from_documents_are_called_what_they_are(plays_raw: Path, tmp_path: Path) -> None:
    fetch_items(params(items=10), tmp_path, plays_raw, tmp_path / "out")
    source = read_source(tmp_path / "out")
    assert (source.name, source.is_hellaswag) == ("Next lines of the validation documents", False)
    assert source.items == len(read_items(tmp_path / "out" / "hellaswag_val.jsonl")) == 10


def test_items_are_written_in_the_public_schema(plays_raw: Path, tmp_path: Path) -> None:
    fetch_items(params(items=4), tmp_path, plays_raw, tmp_path / "out")
    lines = (tmp_path / "out" / "hellaswag_val.jsonl").read_text().splitlines()
    assert list(json.loads(lines[0])) == ["ind", "activity_label", "ctx_a", "ctx_b", "ctx", "endings", "label"]


def test_too_little_validation_text_says_what_to_set(write_raw: WriteRaw, tmp_path: Path) -> None:
    directory = write_raw(["short"] * 9, val_every=3)
    with pytest.raises(ValueError, match=r"hellaswag\.source \(documents\).*fewer than 4: hold out more"):
        fetch_items(params(), tmp_path, directory, tmp_path / "out")
    repeated = write_raw(["one line, and again\n" * 400] * 4, val_every=2, name="repeated")
    with pytest.raises(ValueError, match="repeat one line"):
        fetch_items(params(), tmp_path, repeated, tmp_path / "out")


def test_documents_as_a_source_need_documents_that_are_held_out() -> None:
    values = load_yaml(Path("params.yaml"))
    values["data"]["val_every"] = None
    with pytest.raises(
        ConfigError, match=r"hellaswag\.source \(documents\) needs whole validation documents: set data"
    ):
        validate(values)


def test_a_file_in_the_public_schema_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text((json.dumps(RECORD) + "\n") * 3)
    source = fetch_items(params(source="file", path="items.jsonl", items=2), tmp_path, tmp_path, tmp_path / "out")
    item = read_items(tmp_path / "out" / "hellaswag_val.jsonl")[0]
    assert (source.name, source.is_hellaswag, source.items) == ("HellaSwag", True, 2)
    assert (item.label, item.ind, item.endings[3]) == (3, 24, "starts pulling up roofing.")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"label": "4"}, r"label \(4\) must be 0 to 3"),
        ({"label": ""}, r"label \(''\) must be whole numbers"),
        ({"endings": ["a", "b", "c"]}, r"endings .* must be a list of 4 texts"),
        ({"endings": ["a", "b", "c", " "]}, "must not be empty"),
        ({"ctx": None}, r"ctx \(None\) must be text"),
    ],
)
def test_a_bad_item_is_named_with_its_line(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps(RECORD) + "\n" + json.dumps(RECORD | change) + "\n")
    with pytest.raises(ValueError, match=rf"items\.jsonl:2: .*{complaint}"):
        read_items(path)


def test_a_missing_field_a_broken_line_and_an_empty_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    for content, complaint in (
        ('{"ind": 1}\n', r":1: field\(s\) missing: activity_label"),
        ("[]\n", ":1: must be an object"),
        ("{\n", ":1: "),
        ('{"ind": "\xe9"}\n', ":1: 'utf-8' codec can't decode byte 0xe9"),
        ("", ": no items"),
    ):
        path.write_text(content, encoding="latin-1")
        with pytest.raises(ValueError, match=rf"items\.jsonl{complaint}"):
            read_items(path)
    with pytest.raises(FileNotFoundError, match="run the download stage"):
        read_items(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=r"hellaswag\.path \(null\) must name"):
        params(source="file")


class FakeHub:
    """Rows as the hub gives them."""

    def __init__(self, *_: object) -> None: ...

    def rows(self) -> Any:
        return iter([RECORD] * 5)


def test_items_of_the_hub_are_counted_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hellaswag_sources, "HubStream", FakeHub)
    with pytest.raises(ValueError, match="5 items came, but its validation split has 10,042"):
        fetch_items(params(source="hub"), tmp_path, tmp_path, tmp_path / "out")
    monkeypatch.setattr(hellaswag_sources, "HUB_ITEMS", 5)
    source = fetch_items(params(source="hub"), tmp_path, tmp_path, tmp_path / "out")
    assert (source.name, source.is_hellaswag, source.items) == ("HellaSwag", True, 5)
