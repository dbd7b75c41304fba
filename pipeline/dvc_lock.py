"""Reads dvc.lock, where DVC records the params, inputs and outputs of each stage's last run; compares two of them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os.path import normpath
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.config import MODELS, SCRATCH, ConfigError, parse_yaml

ABSENT = "–"


@dataclass(frozen=True)
class Output:
    """One output of a stage."""

    stage: str
    path: str
    md5: str
    """DVC's hash; that of a directory ends in `.dir`."""
    size: int | None
    """Bytes."""
    files: int | None
    """Number of files in a directory; None for a file."""


@dataclass(frozen=True)
class Lock:
    """The content of dvc.lock."""

    params: Mapping[str, Any]
    """Params of all stages: dotted key to value."""
    inputs: Mapping[str, str]
    """Dependencies that are no stage's output, such as code: path to hash."""
    outputs: tuple[Output, ...]
    """In the order of the stages."""

    def output(self, path: str) -> Output | None:
        """The output with this path, if it is recorded."""
        return next((output for output in self.outputs if output.path == path), None)

    def initial_weights(self, init_from: str) -> tuple[str, str] | None:
        """Path and hash of what `model.init_from` names; None for random weights, or if they are not recorded."""
        path = normpath(MODELS / init_from)
        return (path, self.inputs[path]) if init_from != SCRATCH and path in self.inputs else None


class _Entry(BaseModel):
    """One path of a stage, as DVC writes it."""

    path: str
    md5: str = ABSENT
    size: int | None = None
    nfiles: int | None = None


class _Stage(BaseModel):
    params: dict[str, dict[str, Any]] = {}
    deps: list[_Entry] = []
    outs: list[_Entry] = []


class _File(BaseModel):
    stages: dict[str, _Stage]


def parse_lock(text: str | None) -> Lock | None:
    """The lock in the text of a dvc.lock; None where there is no text, or it is damaged."""
    try:
        stages = _File.model_validate(parse_yaml(text or "", "dvc.lock")).stages
    except (ConfigError, ValidationError):
        return None
    params = {
        key: value for stage in stages.values() for file in stage.params.values() for key, value in flat(file).items()
    }
    outputs = tuple(
        Output(name, entry.path, entry.md5, entry.size, entry.nfiles)
        for name, stage in stages.items()
        for entry in stage.outs
    )
    written = {output.path for output in outputs}
    inputs = {entry.path: entry.md5 for stage in stages.values() for entry in stage.deps if entry.path not in written}
    return Lock(params, inputs, outputs)


def read_lock(path: Path) -> Lock | None:
    """The lock in a file; None where the file is missing or damaged."""
    try:
        return parse_lock(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


def recorded_md5s(path: Path) -> set[str]:
    """The hashes of all outputs that the dvc.lock at `path` records; empty where it is missing or damaged."""
    lock = read_lock(path)
    return {output.md5 for output in lock.outputs} if lock else set()


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys. An empty mapping stays a value."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Dotted key to its last part, or to the whole key if two keys share the last part."""
    last = {key: key.rpartition(".")[2] for key in keys}
    count = Counter(last.values())
    return {key: short if count[short] == 1 else key for key, short in last.items()}


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, old, new) for each key whose value differs: the keys of `new` in order, then those only in `old`.

    A missing value is ABSENT. 1 and 1.0 are equal, 1 and True are not.
    """
    keys = [*new, *(key for key in old if key not in new)]
    pairs = [(key, old.get(key, ABSENT), new.get(key, ABSENT)) for key in keys]
    return [pair for pair in pairs if pair[1] != pair[2] or isinstance(pair[1], bool) != isinstance(pair[2], bool)]
