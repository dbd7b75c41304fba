"""Writes docs/parameters.md: every key of params.yaml, what it takes, what it means, which stages a change runs again.

Reads  the classes that own the sections (types, rules and the docstring under each field), params.yaml, dvc.yaml
Writes docs/parameters.md
Run    python -m pipeline.reporting.parameters_page
"""

import inspect
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic.fields import FieldInfo

from pipeline.config import OWNERS, PARAMS_FILE, Section, load_yaml, owner
from pipeline.files import write_text
from pipeline.log import clear_errors, logger
from pipeline.reporting import markdown as md

PAGE = Path("docs/parameters.md")

INTRODUCTION = """\
# Parameters

Every hyperparameter stands in `params.yaml`, and nowhere else: no key has a default in the code. A wrong key, type or
value ends any stage at once, with every mistake listed.

Change a key in the file, or for one experiment: `dvc exp run -S model.n_layer=6`.

This page is written by `python -m pipeline.reporting.parameters_page` from the classes that check the file."""


def parameters_page(values: Mapping[str, Any], stages: Mapping[str, Any]) -> str:
    """The page as markdown. `values`: the content of params.yaml; `stages`: the `stages` of dvc.yaml, by name."""
    sections = [_section(owner(name), values[name], _rerun(name, stages)) for name in OWNERS]
    return "\n\n".join([INTRODUCTION, *sections]) + "\n"


def takes(field: FieldInfo) -> str:
    """What a field accepts, in words: `whole number, at least 1; or null`."""
    words = _type(field.annotation)
    bounds = [bound for rule in field.metadata if (bound := _bound(rule))]
    nullable = "; or `null`" if _nullable(field.annotation) else ""
    return ", ".join([words, *bounds]) + nullable


def _section(cls: type[Section], values: Mapping[str, Any], rerun: str) -> str:
    rows = []
    for key, value in values.items():
        field = cls.model_fields[key]
        meaning = " ".join(inspect.cleandoc(field.description or "").split()).replace("|", "\\|")
        rows.append([f"`{key}`", md.setting(value), takes(field), meaning])
    about = " ".join(inspect.cleandoc(cls.__doc__ or "").split())
    table = md.table(["Key", "In `params.yaml`", "Takes", "Meaning"], rows, numbers_from=4)
    return "\n\n".join([f"## {cls.section}", f"{about} {rerun}".strip(), table])


def _rerun(section: str, stages: Mapping[str, Any]) -> str:
    """Which stages a change in the section runs again."""
    if not stages:
        return ""
    listing = [
        name
        for name, stage in stages.items()
        if any(str(entry).partition(".")[0] == section for entry in stage.get("params", []))
    ]
    if not listing:
        return "No stage lists this section: a change runs nothing again."
    return f"A change runs {md.listing([f'`{name}`' for name in listing])} again, and what follows from it."


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type(part) for part in arguments if part is not type(None))
    if origin is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in (tuple, list):
        parts = [_type(part) + (" or `null`" * _nullable(part)) for part in arguments if part is not Ellipsis]
        return f"list of {parts[0]}" if Ellipsis in arguments or origin is list else f"[{', '.join(parts)}]"
    return {int: "whole number", float: "number", bool: "`true` or `false`", str: "text"}.get(
        annotation, str(annotation)
    )


def _nullable(annotation: Any) -> bool:
    return type(None) in typing.get_args(annotation)


def _bound(rule: object) -> str:
    match rule:
        case Ge(ge=bound):
            return f"at least {bound:,}"
        case Gt(gt=bound):
            return f"above {bound:,}"
        case Le(le=bound):
            return f"at most {bound:,}"
        case Lt(lt=bound):
            return f"below {bound:,}"
        case MinLen(min_length=bound):
            return "not empty" if bound == 1 else f"{bound} or more"
        case MaxLen(max_length=bound):
            return f"{bound} or fewer"
    return ""


def main() -> None:
    dvc_yaml = Path("dvc.yaml")
    stages = load_yaml(dvc_yaml).get("stages", {}) if dvc_yaml.exists() else {}
    write_text(PAGE, parameters_page(load_yaml(PARAMS_FILE), stages))
    logger.info("Wrote %s", PAGE)


if __name__ == "__main__":
    with clear_errors("parameters_page"):
        main()
