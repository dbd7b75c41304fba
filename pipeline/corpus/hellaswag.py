"""HellaSwag items on disk: a context and four endings, one of which is the true one.

data/hellaswag/ contains hellaswag_val.jsonl in the public schema (https://github.com/rowanz/hellaswag), whatever its
source (pipeline.corpus.hellaswag_source), and source.json, which says what the items are.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts import SOURCE_FILE, ItemSource
from pipeline.files import atomic_path
from pipeline.log import UserError

ITEMS_FILE = "hellaswag_val.jsonl"
ENDINGS = 4


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


def read_items(path: Path) -> list[Item]:
    """All items of a .jsonl in HellaSwag's schema; other fields are ignored.

    Raises FileNotFoundError, or UserError that names file, line and field.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} not found: run the download stage (dvc repro download)")
    items = []
    with path.open("rb") as lines:  # bytes, so that an error names the line that is not UTF-8
        for number, line in enumerate(lines, start=1):
            try:
                items.append(parse_item(json.loads(line)))
            except ValueError as error:
                raise UserError(f"{path}:{number}: {error}") from None
    if not items:
        raise UserError(f"{path}: no items")
    return items


def parse_item(values: Any) -> Item:
    """An item from a record of the public schema. Raises ValueError that names the field, its value and the rule."""
    if not isinstance(values, dict):
        raise ValueError(f"must be an object, not {type(values).__name__}")
    if missing := [field for field in Item.__dataclass_fields__ if field not in values]:
        raise ValueError(f"field(s) missing: {', '.join(missing)}")
    texts = {field: values[field] for field in ("activity_label", "ctx_a", "ctx_b", "ctx")}
    for field, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(f"{field} ({text!r}) must be text")
    endings = values["endings"]
    if not (isinstance(endings, list) and len(endings) == ENDINGS and all(isinstance(text, str) for text in endings)):
        raise ValueError(f"endings ({endings!r}) must be a list of {ENDINGS} texts")
    if any(not text.strip() for text in (values["ctx"], *endings)):
        raise ValueError("ctx and endings must not be empty")
    try:
        ind, label = int(values["ind"]), int(values["label"])  # labels are text in the hub's copy
    except (TypeError, ValueError):
        raise ValueError(f"ind ({values['ind']!r}) and label ({values['label']!r}) must be whole numbers") from None
    if not 0 <= label < ENDINGS:
        raise ValueError(f"label ({label}) must be 0 to {ENDINGS - 1}")
    return Item(ind=ind, endings=tuple(endings), label=label, **texts)


def write_items(directory: Path, items: list[Item], name: str, is_hellaswag: bool) -> None:
    """Writes hellaswag_val.jsonl and source.json into `directory`."""
    with atomic_path(directory / ITEMS_FILE) as path, path.open("w", encoding="utf-8") as file:
        for item in items:
            file.write(json.dumps(asdict(item), ensure_ascii=False) + "\n")
    ItemSource(name=name, is_hellaswag=is_hellaswag, items=len(items)).write(directory / SOURCE_FILE)
