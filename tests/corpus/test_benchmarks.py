"""Items have the public schema whatever their source, and never contain training text."""

import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from pipeline.artifacts import SOURCE_FILE, BenchmarkSource, TaskName, TaskSource
from pipeline.config import ConfigError, load_yaml, validate
from pipeline.corpus import benchmark_source
from pipeline.corpus.benchmark_source import CONTEXT_CHARACTERS, fetch_benchmarks, next_lines
from pipeline.corpus.benchmarks import TASKS, HellaSwagItem, read_items, subset
from pipeline.corpus.params import BenchmarkParams
from pipeline.log import UserError

from .conftest import WriteRaw, fetch, texts_of

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


def params(**changes: Any) -> BenchmarkParams:
    return BenchmarkParams(**({"tasks": ["next_lines"], "directory": None, "items": None} | changes))


@pytest.fixture(scope="module")
def plays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shakespeare's data/raw."""
    root = tmp_path_factory.mktemp("plays")
    fetch(root, source="shakespeare", files=[], val_every=10)
    return root / "raw"


def test_items_from_documents_are_contexts_with_their_true_continuation_and_three_others(plays: Path) -> None:
    val, train = texts_of(plays, "val"), "\n".join(texts_of(plays))
    items = list(next_lines(plays, 200))
    assert 180 < len(items) <= 200
    for item in items:
        true = f"{item.ctx} {item.endings[item.label]}"
        assert sum(true in text for text in val) == 1
        assert true not in train
        assert len(set(item.endings)) == 4
        for ending in item.endings:
            assert any(ending in text for text in val)
            assert 50 <= len(ending) <= 90
        assert 60 < len(item.ctx) <= CONTEXT_CHARACTERS
    labels = [item.label for item in items]
    assert all(30 < labels.count(label) < 70 for label in range(4))


def test_the_default_items_never_change(plays: Path, tmp_path: Path) -> None:
    source = fetch_benchmarks(params(items=400), tmp_path, plays, tmp_path / "out")
    assert source == BenchmarkSource(tasks={"next_lines": TaskSource(items=386, origin="validation documents")})
    assert BenchmarkSource.read(tmp_path / "out" / SOURCE_FILE) == source
    content = (tmp_path / "out/next_lines.jsonl").read_bytes()
    assert hashlib.sha256(content).hexdigest() == "e6b010cf042a857f8def09ba43c7c5fbd5331fb9ebb2f7100fdf80000b226672"
    keys = ["ind", "activity_label", "ctx_a", "ctx_b", "ctx", "endings", "label"]
    assert list(json.loads(content.splitlines()[0])) == keys


def prose(letters: str, words: int, seed: int) -> str:
    """Made-up words, eight to a line."""
    rng = random.Random(seed)
    made = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(words)]
    return "\n".join(" ".join(made[start : start + 8]) for start in range(0, words, 8))


def test_as_many_items_are_made_of_cyrillic_text_as_asked_for(write_raw: WriteRaw) -> None:
    raw = write_raw([prose("абвгдежзиклмнопрст", 20_000, seed) for seed in range(8)], val_every=2)
    assert sum(map(len, texts_of(raw, "val"))) > 400 * 1000
    assert len(list(next_lines(raw, 400))) >= 395


def test_contexts_are_short_where_the_text_has_hardly_any_spaces(write_raw: WriteRaw) -> None:
    rng = random.Random(0)
    paragraphs = [["".join(rng.choices("天地玄黄宇宙洪荒日月盈昃", k=700)) for _ in range(50)] for _ in range(4)]
    items = list(next_lines(write_raw([" ".join(paragraph) for paragraph in paragraphs], val_every=2), None))
    assert len(items) > 40
    assert {len(item.ctx) for item in items} == {CONTEXT_CHARACTERS}
    assert len({item.ctx for item in items}) == len(items)


def test_too_little_or_repeated_validation_text_is_refused(write_raw: WriteRaw, tmp_path: Path) -> None:
    for name, texts in (
        ("short", ["short"] * 9),
        ("no spaces", ["x" * 9000] * 9),
        ("repeated", ["one line\n" * 999] * 4),
    ):
        raw = write_raw(texts, val_every=2, name=name)
        with pytest.raises(UserError, match=r"benchmarks\.tasks \(next_lines\)"):
            fetch_benchmarks(params(), tmp_path, raw, tmp_path / "out")


def test_next_lines_need_documents_that_are_held_out() -> None:
    values = load_yaml(Path("params.yaml"))
    values["data"]["val_every"] = None
    with pytest.raises(ConfigError, match=r"benchmarks\.tasks \(next_lines\).*data\.val_every"):
        validate(values)


def test_a_file_in_the_public_schema_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "items").mkdir()
    (tmp_path / "items/hellaswag.jsonl").write_text((json.dumps(RECORD) + "\n\n") * 3)
    local = params(tasks=["hellaswag"], directory="items", items=2)
    source = fetch_benchmarks(local, tmp_path, tmp_path, tmp_path / "out")
    item = read_items(tmp_path / "out/hellaswag.jsonl", "hellaswag")[0]
    assert source.tasks == {"hellaswag": TaskSource(items=2, origin="items/hellaswag.jsonl")}
    assert isinstance(item, HellaSwagItem)
    assert (item.label, item.ind, item.endings[3]) == (3, 24, "starts pulling up roofing.")
    with pytest.raises(UserError, match=r"benchmarks\.directory \(none\): no file .*/none/hellaswag\.jsonl"):
        fetch_benchmarks(params(tasks=["hellaswag"], directory="none"), tmp_path, tmp_path, tmp_path / "out")
    assert fetch_benchmarks(params(tasks=[]), tmp_path, tmp_path, tmp_path / "out").tasks == {}
    assert [path.name for path in (tmp_path / "out").iterdir()] == [SOURCE_FILE]


@pytest.mark.parametrize(
    ("line", "place"),
    [
        (json.dumps(RECORD | {"ctx_b": "\ud800"}), r":2: ctx_b \('\\ud800'\)"),
        (json.dumps(RECORD | {"label": "4"}), r":2: label \('4'\)"),
        (json.dumps(RECORD | {"label": ""}), r":2: label \(''\)"),
        (json.dumps(RECORD | {"label": 1.9}), r":2: label \(1\.9\)"),
        (json.dumps(RECORD | {"label": 1.0}), r":2: label \(1\.0\)"),
        (json.dumps(RECORD | {"label": True}), r":2: label \(True\)"),
        (json.dumps(RECORD | {"label": "+1"}), r":2: label \('\+1'\)"),
        (json.dumps(RECORD | {"label": "\u0661"}), r":2: label \("),
        (json.dumps(RECORD | {"label": [1]}), r":2: label \(\[1\]\)"),
        (json.dumps(RECORD).replace('"3"', "1e999"), r":2: label \(inf\)"),
        (json.dumps(RECORD | {"endings": ["a", "b", "c"]}), r":2: endings "),
        (json.dumps(RECORD | {"endings": ["a"] * 4}), r":2: endings .*must differ"),
        (json.dumps(RECORD | {"ctx": "\ud83d"}), r":2: ctx "),
        ("[" * 100_000, ":2: .*recursion"),
        (json.dumps(RECORD | {"endings": ["a", "b", "c", " "]}), r":2: endings\.3 \(' '\)"),
        (json.dumps(RECORD | {"ctx": None}), r":2: ctx \(None\)"),
        ('{"ind": 1}', ":2: activity_label "),
        ("[]", r":2: item \(\[\]\)"),
        ("{", ":2: "),
        ('{"ind": "\xe9"}', ":2: .*utf-8"),
    ],
)
def test_a_bad_item_is_named_with_its_line(tmp_path: Path, line: str, place: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps(RECORD) + "\n" + line + "\n", encoding="latin-1")
    with pytest.raises(UserError, match=rf"items\.jsonl{place}"):
        read_items(path, "hellaswag")


ARC = {"question": "Why?", "choices": {"text": ["a", "b", "c"], "label": ["A", "B", "C"]}, "answerKey": "C"}
PIQA = {"goal": "Open it", "sol1": "pull", "sol2": "push", "label": 1}
WINOGRANDE = {"sentence": "Jo saw _ .", "option1": "Bo", "option2": "Al", "answer": "2"}


@pytest.mark.parametrize(
    ("task", "record", "changes", "complaint"),
    [
        ("lambada", {"text": "One two three"}, {"text": "One"}, "text "),
        ("lambada", {"text": "One two three"}, {"text": "One two "}, "text "),
        ("arc_easy", ARC, {"answerKey": "D"}, r"item .*answerKey \('D'\)"),
        ("arc_challenge", ARC, {"choices": {"text": ["a", "b"], "label": ["A"]}}, "item .*same length"),
        ("arc_challenge", ARC, {"choices": {"text": ["a"], "label": ["A"]}}, r"choices\.text "),
        ("piqa", PIQA, {"label": -1}, r"label \(-1\)"),
        ("piqa", PIQA, {"sol2": None}, r"sol2 \(None\)"),
        ("winogrande", WINOGRANDE, {"sentence": "No gap"}, r"sentence \('No gap'\)"),
        ("winogrande", WINOGRANDE, {"answer": ""}, r"answer \(''\)"),
    ],
)
def test_each_task_has_the_schema_of_its_dataset(
    tmp_path: Path, task: str, record: dict[str, Any], changes: dict[str, Any], complaint: str
) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps(record | {"id": "of no use"}) + "\n" + json.dumps(record | changes) + "\n")
    with pytest.raises(UserError, match=rf"items\.jsonl:2: {complaint}"):
        read_items(path, task)


def test_every_task_is_known() -> None:
    assert set(get_args(TaskName)) == TASKS.keys()


def test_a_missing_or_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        read_items(tmp_path / "none.jsonl", "hellaswag")
    (tmp_path / "items.jsonl").touch()
    with pytest.raises(UserError, match=r"items\.jsonl"):
        read_items(tmp_path / "items.jsonl", "hellaswag")


class FakeHub:
    """Rows as the hub gives them."""

    commit = "1a2b3c"

    def __init__(self, path: str, *_: object) -> None:
        self.path = path

    def rows(self) -> Any:
        return iter([RECORD] * 5)


def test_items_of_the_hub_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_source, "HubStream", FakeHub)
    with pytest.raises(UserError, match="5 items, but the validation split has 10,042"):
        fetch_benchmarks(params(tasks=["hellaswag"]), tmp_path, tmp_path, tmp_path / "out")
    monkeypatch.setitem(TASKS, "hellaswag", replace(TASKS["hellaswag"], hub_items=5))
    source = fetch_benchmarks(params(tasks=["hellaswag"]), tmp_path, tmp_path, tmp_path / "out")
    assert source.tasks == {"hellaswag": TaskSource(items=5, origin="Rowan/hellaswag at 1a2b3c")}


def test_a_subset_is_fixed_in_order_and_part_of_every_larger_one() -> None:
    items = [HellaSwagItem(**RECORD | {"ind": number}) for number in range(50)]
    small, large = subset(items, 10), subset(items, 30)
    assert subset(items, 10) == small
    assert [one for one in large if one in small] == small
    assert sorted(small, key=items.index) == small
    assert small != items[:10]
    assert subset(items, None) == subset(items, 1000) == items
