"""docs/parameters.md agrees with the classes and params.yaml."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, Strict
from ruamel.yaml import YAML

from pipeline.cli.parameters import accepted, parameters_page
from pipeline.config import OWNERS, load_yaml, owner
from pipeline.git import show

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date() -> None:
    """With the working tree's params.yaml or the committed one: values may be edited to try them out."""
    stages = load_yaml(ROOT / "dvc.yaml")["stages"]
    committed = YAML(typ="safe", pure=True).load(show(ROOT, "HEAD", "params.yaml") or "")
    pages = [
        parameters_page(values, stages)
        for values in (load_yaml(ROOT / "params.yaml"), committed)
        if values and {key: set(values[key]) for key in values} == {key: set(owner(key).model_fields) for key in OWNERS}
    ]
    assert pages, "params.yaml has other keys than the classes"
    page = (ROOT / "docs/parameters.md").read_text(encoding="utf-8")
    assert page in pages, "docs/parameters.md is out of date: python -m pipeline parameters"


def test_every_key_has_a_description() -> None:
    fields = [(name, key, field) for name in OWNERS for key, field in owner(name).model_fields.items()]
    assert len(fields) > 60
    assert [f"{name}.{key}" for name, key, field in fields if not field.description] == []


def test_what_a_field_accepts() -> None:
    class Example(BaseModel):
        count: int | None = Field(ge=1)
        kind: Literal["a", "b"]
        single: Literal["a"]
        pair: Annotated[tuple[float, float], Strict(False)]
        names: tuple[str | None, ...] = Field(min_length=1)
        tags: list[str]
        share: float = Field(gt=0, lt=1)
        on: bool

    assert {key: accepted(schema) for key, schema in Example.model_json_schema()["properties"].items()} == {
        "count": "integer, at least 1; or `null`",
        "kind": "`a`, `b`",
        "single": "`a`",
        "pair": "[number, number]",
        "names": "list of text or `null`, not empty",
        "tags": "list of text",
        "share": "number, above 0, below 1",
        "on": "`true` or `false`",
    }


def test_the_page_names_the_stages_that_a_change_reruns() -> None:
    stages = {"train": {"params": ["model", "train"]}, "report": {"params": ["report.title"]}}
    sections = dict(
        part.split("\n", 1) for part in parameters_page(load_yaml(ROOT / "params.yaml"), stages).split("\n## ")[1:]
    )
    assert "`train`" in sections["model"].split("|")[0]
    assert "`report`" in sections["report"].split("|")[0]
    assert not re.search("`train`|`report`", sections["runtime"].split("|")[0])
