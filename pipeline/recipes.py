"""Recipes: named sets of params, recipes/<name>.yaml, applied over params.yaml by `python -m pipeline recipe`.

A recipe holds the keys in which it differs from params.yaml as committed (HEAD). So that its result does not depend on
what someone is trying out, uncommitted edits of other keys are reverted, except in `runtime` and `tracking`, which
change no result.
"""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.representer import RoundTripRepresenter

from pipeline.config import PARAMS_FILE, ConfigError, load_yaml, validate
from pipeline.dvc_lock import flat
from pipeline.formatting import hydra_value
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
    values = load_sections(PARAMS_FILE)
    recipe = flat(load_sections(path, round_trip()))
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
            mistakes.append(f"{section}: unknown section; the sections are {', '.join(map(str, values))}")
        elif key not in values[section]:
            mistakes.append(f"{dotted}: unknown key; the keys of {section} are {', '.join(map(str, values[section]))}")
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


def load_sections(path: Path, yaml: YAML | None = None) -> dict[str, dict[str, Any]]:
    """The sections in a YAML file, as `load_yaml` reads it. Raises ConfigError that names the file."""
    values = load_yaml(path, yaml)
    if not all(isinstance(section, dict) for section in values.values()):
        raise ConfigError(f"{path} must hold sections of keys")
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
