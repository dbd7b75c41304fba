"""Writes docs/parameters.md: each key of params.yaml, its type and meaning, and the stages that a change reruns.

Reads the classes that own the sections (types, rules, and the docstring under each field), params.yaml and dvc.yaml.
"""

import argparse
import inspect
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic.fields import FieldInfo

from pipeline import markdown as md
from pipeline.config import OWNERS, PARAMS_FILE, Section, load_yaml, owner
from pipeline.files import write_text
from pipeline.log import logger

PAGE = Path("docs/parameters.md")

INTRODUCTION = """\
# Parameters

Every hyperparameter is in `params.yaml`; no key has a default in the code. Each stage checks the whole file first and
lists every unknown key and invalid value.

Change a key in the file, or for one experiment: `dvc exp run -S model.n_layer=6`.

`python -m pipeline parameters` writes this page from the classes that check the file."""


def parameters_page(values: Mapping[str, Any], stages: Mapping[str, Any]) -> str:
    """The page as markdown. `values`: the content of params.yaml; `stages`: those of dvc.yaml, by name."""
    sections = [_section(owner(name), values[name], _rerun(name, stages)) for name in OWNERS]
    return "\n\n".join([INTRODUCTION, *sections]) + "\n"


def accepted(field: FieldInfo) -> str:
    """What a field accepts: `integer, at least 1; or null`."""
    bounds = [bound for rule in field.metadata if (bound := _bound(rule))]
    nullable = "; or `null`" if _nullable(field.annotation) else ""
    return ", ".join([_type(field.annotation), *bounds]) + nullable


def _section(cls: type[Section], values: Mapping[str, Any], rerun: str) -> str:
    rows = []
    for key, value in values.items():
        field = cls.model_fields[key]
        meaning = " ".join(inspect.cleandoc(field.description or "").split()).replace("|", "\\|")
        rows.append([f"`{key}`", md.setting(value), accepted(field), meaning])
    about = " ".join(inspect.cleandoc(cls.__doc__ or "").split())
    table = md.table(["Key", "In `params.yaml`", "Accepts", "Meaning"], rows, numbers_from=4)
    return "\n\n".join([f"## {cls.section}", f"{about} {rerun}".strip(), table])


def _rerun(section: str, stages: Mapping[str, Any]) -> str:
    """Which stages a change in the section reruns."""
    rerun = [
        name
        for name, stage in stages.items()
        if any(str(entry).partition(".")[0] == section for entry in stage.get("params", []))
    ]
    if not rerun:
        return "No stage depends on this section: a change reruns nothing."
    return f"A change reruns {md.listing([f'`{name}`' for name in rerun])} and the stages after."


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
    return {int: "integer", float: "number", bool: "`true` or `false`", str: "text"}.get(annotation, str(annotation))


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


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline parameters", description="Writes docs/parameters.md.")
    parser.parse_args(arguments)
    write_text(PAGE, parameters_page(load_yaml(PARAMS_FILE), load_yaml(Path("dvc.yaml"))["stages"]))
    logger.info("Wrote %s", PAGE)
