"""HellaSwag's items as they lie on disk: a context and four endings, one of which is true.

`data/hellaswag/` holds hellaswag_val.jsonl in the public schema (https://github.com/rowanz/hellaswag), whatever its
source, and source.json, which says what the items are. Both are written by the download stage, in
pipeline.corpus.hellaswag_sources.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.config import Section
from pipeline.files import atomic_path, read_json, write_json

ITEMS_FILE = "hellaswag_val.jsonl"
SOURCE_FILE = "source.json"
ENDINGS = 4


class HellaswagParams(Section):
    """Where the multiple-choice items of the HellaSwag measurement come from."""

    section: ClassVar[str] = "hellaswag"

    source: Literal["documents", "file", "hub"]
    """documents: cut from the validation documents (a context, its true continuation, three others), and reported as
    such, never as HellaSwag; file: `path`; hub: the validation split of Rowan/hellaswag."""

    path: str | None
    """Of source `file`: a .jsonl in HellaSwag's schema, relative to the repository's root."""

    items: int | None = Field(ge=1)
    """At most so many items; null: all (of source `documents`: as many as the validation documents give)."""

    @model_validator(mode="after")
    def _file_has_path(self) -> Self:
        if self.source == "file" and not self.path:
            raise ValueError("hellaswag.path (null) must name a .jsonl file where hellaswag.source is file")
        return self

    def rules_across(self, sections: Mapping[str, Section]) -> Iterator[str]:
        """Items must not be cut from training text: `documents` needs validation documents of the source's own."""
        if self.source == "documents" and getattr(sections["data"], "val_every", 1) is None:
            yield (
                "hellaswag.source (documents) needs whole validation documents: set data.val_every (null) to a number, "
                "or hellaswag.source to hub or file"
            )


@dataclass(frozen=True)
class Item:
    """One item. `ctx` is ctx_a and ctx_b joined; `endings[label]` is the true one."""

    ind: int
    activity_label: str
    ctx_a: str
    ctx_b: str
    ctx: str
    endings: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class ItemSource:
    """What the items are called in metrics and reports."""

    name: str
    is_hellaswag: bool
    items: int

    @property
    def key(self) -> str:
        """The first part of their metrics' names: items that are not HellaSwag's are never called so."""
        return "hellaswag" if self.is_hellaswag else "next_lines"


def read_items(path: Path) -> list[Item]:
    """All items of a .jsonl in HellaSwag's schema; fields beyond the schema are left out.

    Raises FileNotFoundError, or ValueError that names file, line and field.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} not found: run the download stage (dvc repro download)")
    items = []
    with path.open("rb") as lines:  # bytes, so that a line that is not UTF-8 is named too
        for number, line in enumerate(lines, start=1):
            try:
                items.append(parse_item(json.loads(line)))
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from None
    if not items:
        raise ValueError(f"{path}: no items")
    return items


def parse_item(values: Any) -> Item:
    """One item from a record of the public schema. Raises ValueError that names the field, its value and the rule."""
    if not isinstance(values, dict):
        raise ValueError(f"must be an object, not {type(values).__name__}")
    if missing := [field for field in Item.__dataclass_fields__ if field not in values]:
        raise ValueError(f"field(s) missing: {', '.join(missing)}")
    for field in ("activity_label", "ctx_a", "ctx_b", "ctx"):
        if not isinstance(values[field], str):
            raise ValueError(f"{field} ({values[field]!r}) must be text")
    endings = values["endings"]
    if not (isinstance(endings, list) and len(endings) == ENDINGS and all(isinstance(text, str) for text in endings)):
        raise ValueError(f"endings ({endings!r}) must be a list of {ENDINGS} texts")
    if any(not text.strip() for text in (values["ctx"], *endings)):
        raise ValueError("ctx and endings must not be empty")
    try:
        ind, label = int(values["ind"]), int(values["label"])  # the hub's copy has labels as text
    except (TypeError, ValueError):
        raise ValueError(f"ind ({values['ind']!r}) and label ({values['label']!r}) must be whole numbers") from None
    if not 0 <= label < ENDINGS:
        raise ValueError(f"label ({label}) must be 0 to {ENDINGS - 1}")
    text = {field: values[field] for field in ("activity_label", "ctx_a", "ctx_b", "ctx")}
    return Item(ind=ind, endings=tuple(endings), label=label, **text)


def write_items(directory: Path, items: list[Item], name: str, is_hellaswag: bool) -> None:
    """Writes hellaswag_val.jsonl and source.json into `directory`."""
    with atomic_path(directory / ITEMS_FILE) as path, path.open("w", encoding="utf-8") as file:
        for item in items:
            file.write(json.dumps(asdict(item), ensure_ascii=False) + "\n")
    write_json(directory / SOURCE_FILE, asdict(ItemSource(name, is_hellaswag, len(items))))


def read_source(directory: Path) -> ItemSource:
    """What the items in `directory` are. Raises FileNotFoundError, or ValueError that names the file."""
    path = directory / SOURCE_FILE
    values = read_json(path)
    try:
        return ItemSource(**values)
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from None
