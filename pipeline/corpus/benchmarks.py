"""Benchmark items on disk: questions with their true answers.

data/benchmarks/ contains <task>.jsonl for each task, in the task's public schema (the columns of its dataset on the
Hugging Face hub), and source.json, which lists the tasks and where their items come from
(pipeline.corpus.benchmark_source). pipeline.evaluation.benchmarks turns items into requests.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.files import atomic_path, parsing
from pipeline.log import UserError

ENDINGS = 4
SUBSET_SEED = 20190519  # fixed, so that every run scores the same items

Text = Annotated[str, Field(pattern=r"\S")]  # not empty


def _label_number(value: Any) -> Any:
    return int(value) if value in ("0", "1", "2", "3") else value


Label = Annotated[int, BeforeValidator(_label_number), Field(strict=True)]
"""The number of the true ending. It is text in some of the hub's copies."""


class Item(BaseModel):
    """One item of a task. Other fields of the public schema are ignored."""

    model_config = ConfigDict(frozen=True, str_max_length=1_000_000)  # with a bound, lone surrogates are refused too


class HellaSwagItem(Item):
    """A context and four endings. `ctx` is ctx_a and ctx_b joined. https://github.com/rowanz/hellaswag"""

    ind: int
    activity_label: str
    ctx_a: str
    ctx_b: str
    ctx: Text
    endings: tuple[Text, ...] = Field(min_length=ENDINGS, max_length=ENDINGS)
    label: Label = Field(ge=0, lt=ENDINGS)

    @field_validator("endings")
    @classmethod
    def _endings_differ(cls, endings: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(endings)) < ENDINGS:
            raise ValueError(f"the {ENDINGS} endings must differ")
        return endings


class LambadaItem(Item):
    """A passage whose last word is to be predicted. https://arxiv.org/abs/1606.06031"""

    text: str = Field(pattern=r"\S\s* \S+$")


class ArcChoices(BaseModel):
    """The answers to a question, and what each is called."""

    text: tuple[str, ...] = Field(min_length=2)
    label: tuple[str, ...]


class ArcItem(Item):
    """A science question with three to five answers. https://arxiv.org/abs/1803.05457"""

    question: Text
    choices: ArcChoices
    answerKey: str

    @model_validator(mode="after")
    def _answer_is_a_choice(self) -> Self:
        if len(self.choices.label) != len(self.choices.text):
            raise ValueError("choices.text and choices.label must have the same length")
        if self.choices.label.count(self.answerKey) != 1:
            raise ValueError(f"answerKey ({self.answerKey!r}) must be one of choices.label {self.choices.label}")
        return self


class PiqaItem(Item):
    """A goal and two ways to reach it. https://arxiv.org/abs/1911.11641"""

    goal: Text
    sol1: str
    sol2: str
    label: Label = Field(ge=0, lt=2)


class WinograndeItem(Item):
    """A sentence with a gap, `_`, and two words for it. https://arxiv.org/abs/1907.10641"""

    sentence: str = Field(pattern="_")
    option1: Text
    option2: Text
    answer: Literal["1", "2"]


@dataclass(frozen=True)
class Task:
    """A benchmark: its name, item schema, metrics, and dataset on the Hugging Face hub."""

    name: str
    schema: type[Item]
    metrics: tuple[str, ...]
    """The main one is acc_norm where there is one, else acc."""
    hub_path: str = ""
    hub_name: str | None = None
    hub_split: str = "validation"
    hub_items: int = 0


# The datasets and splits of lm-evaluation-harness 0.4.13.
TASKS = {
    "next_lines": Task("Next lines", HellaSwagItem, ("acc", "acc_norm", "acc_norm_token")),
    "hellaswag": Task(
        "HellaSwag", HellaSwagItem, ("acc", "acc_norm", "acc_norm_token"), "Rowan/hellaswag", hub_items=10_042
    ),
    "lambada": Task(
        "LAMBADA", LambadaItem, ("acc", "perplexity"), "EleutherAI/lambada_openai", "default", "test", 5153
    ),
    "arc_easy": Task("ARC easy", ArcItem, ("acc", "acc_norm"), "allenai/ai2_arc", "ARC-Easy", "test", 2376),
    "arc_challenge": Task(
        "ARC challenge", ArcItem, ("acc", "acc_norm"), "allenai/ai2_arc", "ARC-Challenge", "test", 1172
    ),
    "piqa": Task("PIQA", PiqaItem, ("acc", "acc_norm"), "baber/piqa", hub_items=1838),
    "winogrande": Task("Winogrande", WinograndeItem, ("acc",), "allenai/winogrande", "winogrande_xl", hub_items=1267),
}


def items_file(directory: Path, task: str) -> Path:
    """The file with the items of a task."""
    return directory / f"{task}.jsonl"


def read_items(path: Path, task: str) -> list[Item]:
    """All items in a .jsonl of the task's schema. Raises FileNotFoundError, or UserError that names file and line."""
    if not path.exists():
        raise FileNotFoundError(f"{path} not found: run the download stage (dvc repro download)")
    items = []
    with path.open("rb") as lines:  # bytes, so that an error names the line that is not UTF-8
        for number, line in enumerate(lines, start=1):
            if line.strip():
                with parsing(f"{path}:{number}"):
                    items.append(parse_item(json.loads(line), task))
    if not items:
        raise UserError(f"{path}: no items")
    return items


def parse_item(values: Any, task: str) -> Item:
    """An item from a record of the public schema. Raises ValueError that names a field, its value and the rule."""
    try:
        return TASKS[task].schema.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "item"
        raise ValueError(f"{key} ({first['input']!r}): {first['msg']}") from None


def write_items(path: Path, items: Sequence[Item]) -> None:
    """Writes items as .jsonl."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for item in items:
            file.write(json.dumps(item.model_dump(), ensure_ascii=False) + "\n")


def subset(items: Sequence[Item], count: int | None) -> list[Item]:
    """A fixed choice of `count` items (None: all) in their order; a smaller one is part of every larger one."""
    order = list(range(len(items)))
    random.Random(SUBSET_SEED).shuffle(order)
    return [items[index] for index in sorted(order[:count])]
