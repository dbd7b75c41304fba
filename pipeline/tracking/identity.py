"""What a run is in W&B: its id, kept over resumptions and stages; its name, which says what it changes; its group."""

import json
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.files import read_json, write_json
from pipeline.tracking.provenance import Experiment

# What training depends on. The other sections may change after it, and the W&B run is the training's.
NAMING_SECTIONS = ("data", "hellaswag", "tokenizer", "model", "train")

LONGEST_NAME, LONGEST_VALUE = 100, 24  # characters; W&B takes names of 128
SHORT_REVISION = 7


@dataclass(frozen=True)
class RunIdentity:
    """What ties the parts of a run together over resumptions and stages."""

    id: str
    name: str
    mode: str
    group: str | None = None
    url: str | None = None


def run_identity(file: Path, name: str, group: str | None, mode: str) -> RunIdentity:
    """The identity kept in `file`, so that a resumed run goes on as the same W&B run; a new one is written there."""
    if file.exists():
        known = read_json(file)
        return RunIdentity(known["id"], known["name"], mode, known["group"])
    identity = RunIdentity(secrets.token_hex(4), name, mode, group)
    write_json(file, asdict(identity))
    return identity


def run_name(params: Mapping[str, Any], committed: Mapping[str, Any], of: Experiment, inputs: str) -> str:
    """What the run changes in the params of the commit that it starts from: `position=rope seed=2`.

    DVC's name of the experiment where that says it already, as those of a sweep do, or where nothing is changed; for a
    plain run of committed params, the commit and the fingerprint of its inputs, both cut short.
    """
    if of.experiment and "=" in of.experiment:
        return of.experiment
    if changed := changes(params, committed):
        return spelled(changed)
    return of.experiment or f"{of.baseline[:SHORT_REVISION] if of.baseline else 'nogit'}-{inputs[:6]}"


def run_group(asked: str | None, of: Experiment) -> str | None:
    """Runs are comparable where they start from one commit, so a group never spans two: `position,seed @ 80a69db`."""
    if of.baseline is None:
        return asked
    commit = of.baseline[:SHORT_REVISION]
    return f"{asked} @ {commit}" if asked else commit


def changes(params: Mapping[str, Any], committed: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key to value, of what training depends on and has another value than in `committed`."""
    return {
        f"{section}.{key}": value
        for section in NAMING_SECTIONS
        for key, old in (committed.get(section) or {}).items()
        if key in params[section] and (value := params[section][key]) != old
    }


def spelled(changed: Mapping[str, Any]) -> str:
    """`position=rope seed=2`: keys without their section where that is clear, and as many as a name has room for."""
    short = short_keys(changed)
    words = [f"{short[key]}={_said(value)}" for key, value in changed.items()]
    text = ""
    for place, word in enumerate(words):
        longer = f"{text} {word}".strip()
        if len(longer) > LONGEST_NAME:
            return f"{text} +{len(words) - place}"
        text = longer
    return text


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Dotted keys to what they are called: their last part, or all of it where two share that."""
    last = {key: key.rpartition(".")[2] for key in keys}
    often = Counter(last.values())
    return {key: short if often[short] == 1 else key for key, short in last.items()}


def _said(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"
