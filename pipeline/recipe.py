"""Named sets of params, recipes/<name>.yaml: python -m pipeline.recipe lists them.

    python -m pipeline.recipe gpt2-124m                   # prints it as flags for
    dvc exp run $(python -m pipeline.recipe gpt2-124m)    # an experiment
    python -m pipeline.recipe gpt2-124m --apply           # writes it to params.yaml, whose comments stay

A recipe holds the keys in which it differs from params.yaml as Git has it (HEAD). So that its result does not hang on
what someone is trying out, keys that are edited since and that the recipe does not name go back to their committed
values, and are named on stderr; edits in `runtime` and `tracking`, which change no result, stay. Flags that follow have
the last word: dvc exp run $(python -m pipeline.recipe gpt2-124m) -S train.seed=2

Reads recipes/ and params.yaml; needs no torch.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node

from pipeline.config import PARAMS_FILE, ConfigError, load_yaml, validate
from pipeline.files import write_text
from pipeline.log import clear_errors
from pipeline.reporting.git import show

RECIPES = Path("recipes")
DECIDE_NOTHING = ("runtime", "tracking")  # sections


class Entry(NamedTuple):
    """A key of a YAML file of sections."""

    value: Any
    spelled: str
    """The value on one line, as the file has it where it stands on one there."""

    first: int
    """The key's line, from 0."""

    last: int
    """The value's last line."""

    comment: str
    """What stands behind the key, from its `#` on; empty where nothing does."""


Entries = Mapping[str, Entry]
"""By dotted key, `model.n_layer`."""


class Laid(NamedTuple):
    """A recipe over params.yaml."""

    recipe: Entries
    undone: Entries
    """Edits of params.yaml that go back to what is committed."""

    values: dict[str, Any]
    """All params, by section."""

    @property
    def changes(self) -> Entries:
        """What becomes other in params.yaml."""
        return {**self.undone, **self.recipe}


def names() -> list[str]:
    """The recipes that there are."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def description(name: str) -> str:
    """The first line of a recipe's comment."""
    return (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def laid_over(name: str) -> Laid:
    """A recipe laid over params.yaml, all rules checked.

    Raises ConfigError that names the choices where there is no such recipe or key, and every rule that is broken.
    """
    if name not in names():
        raise ConfigError(f"no recipe {name!r}; the recipes are {', '.join(names())}")
    path, values = RECIPES / f"{name}.yaml", load_yaml(PARAMS_FILE)
    recipe = read_entries(path.read_text(encoding="utf-8"))
    if mistakes := list(_unknown(recipe, values)):
        raise ConfigError(f"{path} has {len(mistakes)} mistake(s):\n" + "\n".join(f"  {line}" for line in mistakes))
    undone = {key: entry for key, entry in _edited().items() if key not in recipe}
    for dotted, entry in {**undone, **recipe}.items():
        section, _, key = dotted.partition(".")
        values[section][key] = entry.value
    try:
        validate(values)
    except ConfigError as error:
        raise ConfigError(f"with {path} laid over it, {error}") from None
    return Laid(recipe, undone, values)


def flags(changes: Entries) -> list[str]:
    """The changes as arguments for `dvc exp run`, free of white space, at which $(...) would cut them.

    Raises ConfigError that names the key whose value has some.
    """
    found = [f"{key}={hydra_value(entry.value)}" for key, entry in changes.items()]
    for flag in found:
        if re.search(r"\s", flag):
            raise ConfigError(f"{flag}: a shell would cut this flag at its white space: use --apply")
    return found


def hydra_value(value: Any) -> str:
    """A value as `dvc exp run -S` understands it: https://hydra.cc/docs/advanced/override_grammar/basic

    >>> hydra_value([None, True, 6e-4, "gpt2", "1e3", "it's"])
    "[null,true,0.0006,gpt2,'1e3','it\\\\'s']"
    """
    if isinstance(value, list | tuple):
        return f"[{','.join(map(hydra_value, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    if re.fullmatch(r"[A-Za-z][\w./-]*", value, re.ASCII) and value.lower() not in (
        "null",
        "true",
        "false",
        "inf",
        "nan",
    ):
        return value
    # Backslashes are themselves, but for those before a quote.
    return "'" + re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + found[2].replace("'", r"\'"), value) + "'"


def with_changes(text: str, changes: Entries) -> str:
    """The text of a YAML file with other values at some of its keys; comments, and the columns they stand in, stay."""
    lines = text.splitlines()
    for key, old in reversed(read_entries(text).items()):
        if key in changes and changes[key].value != old.value:
            line = lines[old.first]
            column = line.index(old.comment) if old.comment else 0
            start = f"{line[: line.index(':')]}: {changes[key].spelled}"
            lines[old.first : old.last + 1] = [f"{start:<{max(column - 2, 0)}}  {old.comment}".rstrip()]
    return "\n".join(lines) + "\n"


def read_entries(text: str) -> dict[str, Entry]:
    """The keys of a YAML text of sections, in its order. Raises ConfigError where it is something else."""
    values = YAML(typ="safe", pure=True).load(text)
    if not isinstance(values, dict) or not all(isinstance(section, dict) for section in values.values()):
        raise ConfigError("a file of params must hold sections of keys")
    lines = text.splitlines()
    found = {}
    for section, keys in _pairs(YAML().compose(text)):
        for key, node in _pairs(keys):
            found[f"{section.value}.{key.value}"] = _entry(values[section.value][key.value], key, node, lines)
    return found


def _pairs(node: Node) -> list[tuple[Node, Node]]:
    assert isinstance(node, MappingNode)
    pairs: list[tuple[Node, Node]] = node.value
    return pairs


def _entry(value: Any, key: Node, node: Node, lines: list[str]) -> Entry:
    first, last = key.start_mark.line, node.end_mark.line
    if last == first:
        begin, end = node.start_mark.column, node.end_mark.column
        spelled, rest = lines[first][begin:end], lines[first][end:]
    else:  # a block's end is where the next key begins: what stands between belongs to neither
        last = last if last < len(lines) and lines[last][: node.end_mark.column].strip() else last - 1
        while re.fullmatch(rf"\s*|\s{{0,{key.start_mark.column}}}#.*", lines[last]):
            last -= 1
        spelled, rest = json.dumps(value, ensure_ascii=False), lines[first][key.end_mark.column :]
    comment = re.search(r"(?<=\s)#.*", rest)
    return Entry(value, spelled, first, last, comment[0] if comment else "")


def _unknown(recipe: Entries, values: Mapping[str, Any]) -> Iterator[str]:
    """A line for each key of a recipe that params.yaml does not have."""
    for dotted in recipe:
        section, _, key = dotted.partition(".")
        if section not in values:
            yield f"{section}: unknown section; the sections are {', '.join(values)}"
        elif key not in values[section]:
            yield f"{dotted}: unknown key; the keys of {section} are {', '.join(values[section])}"


def _edited() -> Entries:
    """The committed entries of the keys that were edited since and that decide a result. Outside Git there are none."""
    here = read_entries(PARAMS_FILE.read_text(encoding="utf-8"))
    text = show(Path.cwd(), "HEAD", f"./{PARAMS_FILE}")
    return {
        key: committed
        for key, committed in (read_entries(text) if text else {}).items()
        if key in here and here[key].value != committed.value and not key.startswith(DECIDE_NOTHING)
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.recipe", description="Named sets of params. Without a name: lists them."
    )
    parser.add_argument("name", nargs="?", help="the recipe to print as flags for dvc exp run")
    parser.add_argument("--apply", action="store_true", help="write it to params.yaml instead")
    arguments = parser.parse_args()
    if arguments.name is None:
        for name in names():
            print(f"{name:<{max(map(len, names()))}}  {description(name)}")
        return
    with clear_errors("recipe"):
        laid = laid_over(arguments.name)
        for key, committed in laid.undone.items():
            print(f"recipe: {key} goes back to {committed.spelled}, as committed", file=sys.stderr)
        if arguments.apply:
            write_text(PARAMS_FILE, with_changes(PARAMS_FILE.read_text(encoding="utf-8"), laid.changes))
        else:
            print("\n".join(f"-S {flag}" for flag in flags(laid.changes)))


if __name__ == "__main__":
    main()
