"""HellaSwag items on disk: a context and four endings, one of which is the true one.

data/hellaswag/ contains hellaswag_val.jsonl in the public schema (https://github.com/rowanz/hellaswag), whatever its
source (pipeline.corpus.hellaswag_source), and source.json, which says what the items are.
"""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from pipeline.artifacts import SOURCE_FILE, ItemSource
from pipeline.files import atomic_path, parsing
from pipeline.log import UserError

ITEMS_FILE = "hellaswag_val.jsonl"
ENDINGS = 4

Text = Annotated[str, Field(pattern=r"\S")]  # not empty


def _label_number(value: Any) -> Any:
    return int(value) if value in ("0", "1", "2", "3") else value


class Item(BaseModel):
    """One item; other fields of the public schema are ignored. `ctx` is ctx_a and ctx_b joined."""

    model_config = ConfigDict(frozen=True, str_max_length=1_000_000)  # with a bound, lone surrogates are refused too

    ind: int
    activity_label: str
    ctx_a: str
    ctx_b: str
    ctx: Text
    endings: tuple[Text, ...] = Field(min_length=ENDINGS, max_length=ENDINGS)
    label: Annotated[int, BeforeValidator(_label_number)] = Field(strict=True, ge=0, lt=ENDINGS)
    """The number of the true ending. It is text in the hub's copy."""

    @field_validator("endings")
    @classmethod
    def _endings_differ(cls, endings: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(endings)) < ENDINGS:
            raise ValueError(f"the {ENDINGS} endings must differ")
        return endings


def read_items(path: Path) -> list[Item]:
    """All items of a .jsonl in HellaSwag's schema. Raises FileNotFoundError, or UserError that names file and line."""
    if not path.exists():
        raise FileNotFoundError(f"{path} not found: run the download stage (dvc repro download)")
    items = []
    with path.open("rb") as lines:  # bytes, so that an error names the line that is not UTF-8
        for number, line in enumerate(lines, start=1):
            if line.strip():
                with parsing(f"{path}:{number}"):
                    items.append(parse_item(json.loads(line)))
    if not items:
        raise UserError(f"{path}: no items")
    return items


def parse_item(values: Any) -> Item:
    """An item from a record of the public schema. Raises ValueError that names a field, its value and the rule."""
    try:
        return Item.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "item"
        raise ValueError(f"{key} ({first['input']!r}): {first['msg']}") from None


def write_items(directory: Path, items: list[Item], name: str, is_hellaswag: bool) -> None:
    """Writes hellaswag_val.jsonl and source.json into `directory`."""
    with atomic_path(directory / ITEMS_FILE) as path, path.open("w", encoding="utf-8") as file:
        for item in items:
            file.write(json.dumps(item.model_dump(), ensure_ascii=False) + "\n")
    ItemSource(name=name, is_hellaswag=is_hellaswag, items=len(items)).write(directory / SOURCE_FILE)
