"""Writes docs/parameters.md: each key of params.yaml, its type and meaning, and the stages that a change reruns.

Reads the classes that own the sections (types, rules, and the docstring under each field), params.yaml and dvc.yaml.
"""

import argparse
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

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


def _section(cls: type[Section], values: Mapping[str, Any], rerun: str) -> str:
    schemas = cls.model_json_schema()["properties"]
    rows = []
    for key, value in values.items():
        meaning = " ".join(schemas[key].get("description", "").split()).replace("|", "\\|")
        rows.append([md.code(key), md.setting(value), Markup(accepted(schemas[key])), Markup(meaning)])
    about = " ".join(inspect.cleandoc(cls.__doc__ or "").split())
    table = md.table(["Key", Markup("In `params.yaml`"), "Accepts", "Meaning"], rows)
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
    return f"A change reruns {md.listing([md.code(name) for name in rerun])} and the later stages whose inputs change."


def accepted(schema: Mapping[str, Any]) -> str:
    """What a key accepts, from its JSON schema: `integer, at least 1; or null`."""
    options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
    texts = [", ".join([_type(option), *_bounds(option)]) for option in options]
    return " or ".join(texts) + ("; or `null`" if len(options) < len(schema.get("anyOf", options)) else "")


def _type(schema: Mapping[str, Any]) -> str:
    if choices := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return ", ".join(f"`{choice}`" for choice in choices)
    if "prefixItems" in schema:
        return f"[{', '.join(map(accepted, schema['prefixItems']))}]"
    if schema["type"] == "array":
        return f"list of {accepted(schema['items']).replace('; or', ' or')}"
    return {"number": "number", "integer": "integer", "boolean": "`true` or `false`", "string": "text"}[schema["type"]]


def _bounds(schema: Mapping[str, Any]) -> list[str]:
    keywords = {"exclusiveMinimum": "above", "minimum": "at least", "maximum": "at most", "exclusiveMaximum": "below"}
    bounds = [f"{words} {schema[keyword]:,}" for keyword, words in keywords.items() if keyword in schema]
    return bounds + ["not empty"] * (1 in (schema.get("minLength"), schema.get("minItems")))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline parameters", description="Writes docs/parameters.md.")
    parser.parse_args(arguments)
    write_text(PAGE, parameters_page(load_yaml(PARAMS_FILE), load_yaml(Path("dvc.yaml"))["stages"]))
    logger.info("Wrote %s", PAGE)
