"""What the tests of the sources share."""

from pathlib import Path
from typing import Any

from pipeline.corpus import raw, sources
from pipeline.corpus.raw import RawCorpus
from pipeline.corpus.records import SplitName

from .conftest import data_params


def fetch(root: Path, part_bytes: int = 10**9, **changes: Any) -> RawCorpus:
    return sources.fetch(data_params(**changes), root, root / "raw", root / "work", part_bytes)


def documents(root: Path, split: SplitName = "train") -> list[str]:
    corpus = RawCorpus.read(root / "raw")
    return list(raw.texts(root / "raw", corpus.splits.get(split, [])))
