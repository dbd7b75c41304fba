"""Recipes: named sets of params, recipes/<name>.yaml, applied over params.yaml by `python -m pipeline recipe`.

A recipe holds the keys in which it differs from params.yaml as committed (HEAD). So that its result does not depend on
what someone is trying out, uncommitted edits of other keys are reverted, except in `runtime` and `tracking`, which
change no result.
"""

import argparse
import io
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.representer import RoundTripRepresenter

from pipeline.config import PARAMS_FILE, ConfigError, load_yaml, validate
from pipeline.dvc_lock import flat
from pipeline.files import write_text
from pipeline.git import params_at

RECIPES = Path("recipes")
NO_RESULT_SECTIONS = ("runtime", "tracking")
"""Sections of params.yaml that say how a run is executed and watched."""


class Overlay(NamedTuple):
    """A recipe over params.yaml."""

    values: dict[str, Any]
    """All params after it, by section."""
    changes: dict[str, Any]
    """Dotted key -> value, as the YAML file spells it, of what the recipe sets and what it reverts."""
    reverted: dict[str, Any]
    """Uncommitted edits of params.yaml that go back to the committed value."""


def names() -> list[str]:
    """The recipes that there are."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def apply_recipe(name: str) -> Overlay:
    """A recipe over params.yaml, all rules checked.

    Raises ConfigError for an unknown recipe or key, or a broken rule.
    """
    if name not in names():
        raise ConfigError(f"no recipe {name!r}; the recipes are {', '.join(names())}")
    path = RECIPES / f"{name}.yaml"
    values = load_yaml(PARAMS_FILE)
    recipe = flat(load_sections(path.read_text(encoding="utf-8"), str(path)))
    current = flat(values)
    reverted = {
        key: value
        for key, value in flat(params_at("HEAD")).items()
        if key not in recipe and not key.startswith(NO_RESULT_SECTIONS) and current.get(key, value) != value
    }
    changes, mistakes = {**reverted, **recipe}, []
    for dotted, value in changes.items():
        section, _, key = dotted.partition(".")
        if section not in values:
            mistakes.append(f"{section}: unknown section; the sections are {', '.join(values)}")
        elif key not in values[section]:
            mistakes.append(f"{dotted}: unknown key; the keys of {section} are {', '.join(values[section])}")
        else:
            values[section][key] = value
    if mistakes:
        raise ConfigError(f"{path} has {len(mistakes)} mistake(s):\n" + "\n".join(f"  {line}" for line in mistakes))
    try:
        validate(values := plain(values))
    except ConfigError as error:
        raise ConfigError(f"{path} over {error}") from None
    return Overlay(values, changes, reverted)


def flags(changes: Mapping[str, Any]) -> list[str]:
    """The changes as arguments for `dvc exp run -S`. None holds white space, at which $(...) would split it.

    Raises ConfigError that names the key whose value has some.
    """
    arguments = [f"{key}={hydra_value(value)}" for key, value in plain(changes).items()]
    for argument in arguments:
        if re.search(r"\s", argument):
            raise ConfigError(f"{argument}: a shell would split this flag at its white space: use --apply")
    return arguments


def hydra_value(value: Any) -> str:
    """A value as `dvc exp run -S` reads it: https://hydra.cc/docs/advanced/override_grammar/basic

    >>> hydra_value([None, True, 6e-4, "gpt2", "1e3", "it's"])
    "[null,true,0.0006,gpt2,'1e3','it\\\\'s']"
    """
    if isinstance(value, list | tuple):
        return f"[{','.join(map(hydra_value, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    keywords = ("null", "true", "false", "inf", "nan")
    if re.fullmatch(r"[A-Za-z][\w./-]*", value, re.ASCII) and value.lower() not in keywords:
        return value
    # Backslashes are literal, except before a quote.
    return "'" + re.sub(r"(\\*)('|$)", lambda match: 2 * match[1] + match[2].replace("'", r"\'"), value) + "'"


def with_changes(text: str, changes: Mapping[str, Any]) -> str:
    """The text of params.yaml with other values for some dotted keys. Comments stay."""
    yaml = round_trip()
    values = yaml.load(text)
    for dotted, value in changes.items():
        section, _, key = dotted.partition(".")
        if isinstance(value, list) and isinstance(values[section][key], list):
            values[section][key][:] = value  # in its style: ruamel loses a line end where a block becomes [a, b]
        else:
            values[section][key] = value
    out = io.StringIO()
    yaml.dump(values, out)
    return out.getvalue()


def load_sections(text: str, name: str) -> dict[str, dict[str, Any]]:
    """A YAML text of sections, its numbers spelled as they are there. Raises ConfigError that names the file."""
    try:
        values = round_trip().load(text)
    except YAMLError as error:
        raise ConfigError(f"{name} is not valid YAML: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(section, dict) for section in values.values()):
        raise ConfigError(f"{name} must hold sections of keys")
    return values


def plain(values: Any) -> Any:
    """The same values as Python's own types, without the way in which a file spells them."""
    out = io.StringIO()
    round_trip().dump(values, out)
    return YAML(typ="safe", pure=True).load(out.getvalue())


def round_trip() -> YAML:
    """ruamel's editor of YAML files, set to write what it has read."""
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.preserve_quotes = True
    yaml.width = 10**6
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


class _Representer(RoundTripRepresenter):
    """Writes null as `null`; ruamel's own leaves the value out."""


_Representer.add_representer(
    type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline recipe", description="Named sets of params. Without a name: lists them."
    )
    parser.add_argument("name", nargs="?", help="the recipe to print as flags for dvc exp run")
    parser.add_argument("--apply", action="store_true", help="write it to params.yaml instead")
    options = parser.parse_args(arguments)
    if options.name is None:
        width = max(map(len, names()))
        for name in names():
            first_line = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
            print(f"{name:<{width}}  {first_line.removeprefix('# ')}")
        return
    overlay = apply_recipe(options.name)
    for key, committed in overlay.reverted.items():
        print(f"recipe: {key} reverted to the committed {hydra_value(committed)}", file=sys.stderr)
    if options.apply:
        write_text(PARAMS_FILE, with_changes(PARAMS_FILE.read_text(encoding="utf-8"), overlay.changes))
    else:
        print("\n".join(f"-S {flag}" for flag in flags(overlay.changes)))
