"""dvc.lock: which settings, inputs and outputs each stage ran with, and how two of them differ."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

ABSENT = "–"


@dataclass(frozen=True)
class Output:
    """One output of a stage, as DVC identifies it."""

    stage: str
    path: str
    md5: str
    size: int | None
    files: int | None
    """Of a folder."""


@dataclass(frozen=True)
class Lock:
    """What dvc.lock says."""

    params: Mapping[str, Any]
    """Every setting that a stage recorded: dotted key to value."""
    inputs: Mapping[str, str]
    """Every dependency that no stage wrote, which is the code: path to hash."""
    outputs: tuple[Output, ...]
    """In the order of the stages."""


def parse(text: str | None) -> Lock | None:
    """The content of a dvc.lock; None where there is none or it cannot be read."""
    content = _mapping(text)
    if content is None or not isinstance(content.get("stages"), dict):
        return None
    params: dict[str, Any] = {}
    inputs: dict[str, str] = {}
    outputs: list[Output] = []
    for name, stage in content["stages"].items():
        for values in (stage.get("params") or {}).values():
            params |= flat(values)
        inputs |= {entry["path"]: _hash(entry) for entry in stage.get("deps") or []}
        outputs += [
            Output(name, entry["path"], _hash(entry), entry.get("size"), entry.get("nfiles"))
            for entry in stage.get("outs") or []
        ]
    code = {path: md5 for path, md5 in inputs.items() if path not in {output.path for output in outputs}}
    return Lock(params, code, tuple(outputs))


def parse_params(text: str | None) -> dict[str, Any] | None:
    """The content of a params.yaml with dotted keys; None where there is none or it cannot be read."""
    content = _mapping(text)
    return None if content is None else flat(content)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, old, new) for each key whose value differs, in the order of `new`; a key that is on one side only is ABSENT
    on the other. Numbers are equal when their values are: 1 and 1.0 are no difference.
    """
    keys = [*new, *(key for key in old if key not in new)]
    pairs = [(key, old.get(key, ABSENT), new.get(key, ABSENT)) for key in keys]
    return [pair for pair in pairs if pair[1] != pair[2] or isinstance(pair[1], bool) != isinstance(pair[2], bool)]


def _mapping(text: str | None) -> dict[str, Any] | None:
    try:
        content = YAML(typ="safe", pure=True).load(text or "")
    except YAMLError:
        return None
    return content if isinstance(content, dict) else None


def _hash(entry: Mapping[str, Any]) -> str:
    return str(entry.get("md5") or entry.get("etag") or entry.get("checksum") or ABSENT)
