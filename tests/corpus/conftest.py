"""Small corpora, and parameters for them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import SOURCE_FILE, RawCorpus, SplitName
from pipeline.corpus import sources
from pipeline.corpus.conversations import Content
from pipeline.corpus.documents import Document, read_texts, write_documents
from pipeline.corpus.params import DataParams, TokenizerParams
from pipeline.corpus.shakespeare import scenes_by_play
from pipeline.files import remove_directory

DOCUMENTS = [
    "To be, or not to be, that is the question:\n",
    "",
    "naïve café — 東京 🙂\n",
    "<|endoftext|> is ordinary text here",
    "x" * 700,
    " \t\n\n  ",
    "def f(x):\n    return x ** 2  # 3.14159\n" * 8,
]

WriteRaw = Callable[..., Path]


def tokenizer_params(**changes: Any) -> TokenizerParams:
    values = {
        "encoding": "bytes",
        "vocab_size": 300,
        "training_bytes": None,
        "chat_template": "<|{role}|>{content}<|end|>",
        "shard_tokens": 1000,
    }
    return TokenizerParams(**(values | changes))


def data_params(**changes: Any) -> DataParams:
    values: dict[str, Any] = {
        "source": "files",
        "files": ["*.txt"],
        "hub_path": "owner/name",
        "hub_name": None,
        "hub_split": "train",
        "hub_revision": "main",
        "text_column": "text",
        "val_every": None,
        "max_documents": None,
        "max_bytes": None,
    }
    return DataParams(**(values | changes))


def fetch(root: Path, part_bytes: int = 10**9, **changes: Any) -> RawCorpus:
    """Downloads into `<root>/raw`."""
    corpus = sources.fetch(data_params(**changes), root, root / "raw", root / "work", part_bytes)
    remove_directory(root / "work")
    return corpus


def texts_of(raw: Path, split: SplitName = "train") -> list[str]:
    """The documents of a split in a data/raw."""
    return list(read_texts(raw, RawCorpus.read(raw / SOURCE_FILE).splits.get(split, [])))


def write_corpus(directory: Path, texts: Sequence[Content], val_every: int | None, row_group_bytes: int) -> Path:
    """Writes documents as a data/raw, each in a group of its own."""
    files = write_documents(
        directory, 0, (Document(n, text) for n, text in enumerate(texts)), val_every, row_group_bytes
    )
    splits = {split: [file] for split, file in files.items()}
    corpus = RawCorpus(format_version=RawCorpus.version, origin={"source": "test"}, splits=splits)
    corpus.write(directory / SOURCE_FILE)
    return directory


@pytest.fixture
def write_raw(tmp_path: Path) -> WriteRaw:
    """Writes documents as a data/raw under `name`."""

    def write(
        documents: Sequence[Content], val_every: int | None = None, row_group_bytes: int = 300, name: str = "raw"
    ) -> Path:
        return write_corpus(tmp_path / name, documents, val_every, row_group_bytes)

    return write


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync protects against a power loss, which no test causes, and would take most of these tests' time."""
    monkeypatch.setattr("pipeline.files.flush_to_disk", lambda path: None)


@pytest.fixture(scope="session")
def shakespeare() -> dict[str, list[str]]:
    """Every play's scenes, by its path in the package."""
    return dict(scenes_by_play())
