"""docs/parameters.md says what the classes and params.yaml say."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, Strict
from ruamel.yaml import YAML

from pipeline.config import OWNERS, load_yaml, owner
from pipeline.reporting.git import show
from pipeline.reporting.parameters_page import parameters_page, takes

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_classes_say_now() -> None:
    """Of the working tree's params.yaml or of the committed one: trying another value is no mistake in the page."""
    stages = load_yaml(ROOT / "dvc.yaml")["stages"] if (ROOT / "dvc.yaml").exists() else {}
    committed = YAML(typ="safe", pure=True).load(show(ROOT, "HEAD", "params.yaml") or "")
    pages = [
        parameters_page(values, stages)
        for values in (load_yaml(ROOT / "params.yaml"), committed)
        if values and {key: set(values[key]) for key in values} == {key: set(owner(key).model_fields) for key in OWNERS}
    ]
    assert pages, "params.yaml has other keys than the classes"
    found = (ROOT / "docs/parameters.md").read_text(encoding="utf-8")
    assert found in pages, "docs/parameters.md is out of date: python -m pipeline.reporting.parameters_page"


def test_every_key_has_its_words() -> None:
    fields = [(name, key, field) for name in OWNERS for key, field in owner(name).model_fields.items()]
    assert len(fields) > 60
    assert [f"{name}.{key}" for name, key, field in fields if not field.description] == []


def test_what_a_field_takes_is_said_in_words() -> None:
    class Example(BaseModel):
        count: int | None = Field(ge=1)
        kind: Literal["a", "b"]
        pair: Annotated[tuple[float, float], Strict(False)]
        names: tuple[str | None, ...] = Field(min_length=1)
        tags: list[str]
        share: float = Field(gt=0, lt=1)
        on: bool

    said = {key: takes(field) for key, field in Example.model_fields.items()}
    assert said == {
        "count": "whole number, at least 1; or `null`",
        "kind": "`a`, `b`",
        "pair": "[number, number]",
        "names": "list of text or `null`, not empty",
        "tags": "list of text",
        "share": "number, above 0, below 1",
        "on": "`true` or `false`",
    }


def test_the_page_says_which_stages_a_change_runs_again() -> None:
    stages = {"train": {"params": ["model", "train"]}, "report": {"params": ["report.title"]}}
    sections = dict(
        part.split("\n", 1) for part in parameters_page(load_yaml(ROOT / "params.yaml"), stages).split("\n## ")[1:]
    )
    assert "A change runs `train` again" in sections["model"]
    assert "A change runs `report` again" in sections["report"]
    assert "a change runs nothing again" in sections["runtime"]
