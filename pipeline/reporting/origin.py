"""Where a run comes from, and the commands that make it again."""

import json
import re
import shlex
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePosixPath
from typing import Any

from pipeline.reporting import markdown as md
from pipeline.reporting.lock import differing
from pipeline.reporting.numbers import exact, size
from pipeline.reporting.run import Run, Tracked

SET_UP = "make setup && . .venv/bin/activate"

MOST_FILES = 8
"""Changed files to name; the rest is a number."""


def provenance(run: Run) -> str:
    """Git revision, W&B run and versions; then the hash of every stage's outputs."""
    at = run.revision
    rows = [
        ["Git revision", _commit(run, at.commit)],
        ["Working tree", _working_tree(run) if at.commit else "not under Git"],
    ]
    trained = run.train.git.revision
    if trained and at.commit and not at.commit.startswith(trained):
        rows.append(["Trained at", _commit(run, trained)])
    rows += [["W&B run", tracked(run.train.wandb)], ["Versions", _versions(run)]]
    parts = [md.table(["", "This run"], rows, numbers_from=2)]
    if run.lock is None or not run.lock.outputs:
        parts.append("There is no `dvc.lock`, so the outputs have no recorded hashes.")
        return "\n\n".join(parts)
    outputs = [
        output for output in run.lock.outputs if output.stage != "report"
    ]  # older than this page, which it holds
    table = md.table(
        ["Stage", "Output", "MD5", "Size"],
        [
            [output.stage, md.code(output.path), md.code(output.md5), size(output.size) + _files(output.files)]
            for output in outputs
        ],
        numbers_from=3,
    )
    parts.append(md.folded(f"Hashes of the {len(outputs)} outputs, from <code>dvc.lock</code>", table))
    return "\n\n".join(parts)


def reproduction(run: Run) -> str:
    """The exact commands: clone, check out, run with the settings that differ from the committed ones."""
    at = run.revision
    settings, by_hand = _overrides(run)
    lines = []
    if at.remote:
        folder = re.sub(r"\.git$", "", at.remote.rstrip("/")).rpartition("/")[2]
        lines.append(f"git clone {shlex.quote(at.remote)} && cd {shlex.quote(folder)}")
    if at.commit:
        lines.append(f"git checkout {at.commit}")
    lines.append(SET_UP)
    lines.append(
        " \\\n  ".join(["dvc exp run", *(f"-S {setting}" for setting in settings)]) if settings else "dvc repro"
    )
    parts = [md.fence("\n".join(lines), "sh")]
    if by_hand:
        parts.append("Before the last command, set in `params.yaml`:")
        parts.append(md.fence("\n".join(f"{key}: {value}" for key, value in by_hand), "yaml"))
    if not at.commit:
        parts.append("No revision is committed yet: until then only this working tree can repeat the run.")
    elif files := [path for path in _changed(run)[0] if path != "params.yaml"]:  # the commands say what differs there
        parts.append(f"These inputs were not committed, so the revision alone does not repeat the run: {named(files)}.")
    return "\n\n".join(parts)


def named(paths: Sequence[str]) -> str:
    """Files in a sentence, the first few by name: `a`, `b` and 3 more."""
    words = [md.code(path) for path in paths[:MOST_FILES]]
    if len(paths) > MOST_FILES:
        words.append(f"{exact(len(paths) - MOST_FILES)} more")
    return md.listing(words)


def override(key: str, value: Any) -> str | None:
    """`key=value` as `dvc exp run -S` takes it, quoted for the shell; None where that grammar cannot say it."""
    if isinstance(value, list):
        items = [_hydra(item) for item in value]
        return None if None in items else shlex.quote(f"{key}=[{','.join(str(item) for item in items)}]")
    said = _hydra(value)
    return None if said is None else shlex.quote(f"{key}={said}")


def tracked(wandb: Tracked) -> str:
    """The W&B run in words, with its link where there is one."""
    name = md.text(wandb.name or wandb.id or "")
    if wandb.url:
        return f"[{name or 'run'}]({wandb.url})"
    if wandb.mode == "offline" and wandb.id:
        return f"{name} (id {md.code(wandb.id)}), offline: `wandb sync` uploads it"
    return "none: tracking was off"


def _hydra(value: Any) -> str | None:
    """One value in the grammar of Hydra's overrides."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if not isinstance(value, str) or not value.isprintable() or set(value) & set('\\"$'):
        return None
    return (
        value if re.fullmatch(r"[A-Za-z][\w./:-]*", value) and value not in ("null", "true", "false") else f'"{value}"'
    )


def _overrides(run: Run) -> tuple[list[str], list[tuple[str, str]]]:
    """What differs from the committed params.yaml: as -S arguments, and as (key, JSON) where those cannot say it."""
    if run.lock is None or run.committed_params is None:
        return [], []
    settings, by_hand = [], []
    for key, _, value in differing(run.committed_params, run.lock.params):
        if key not in run.lock.params or key.startswith("report."):
            continue
        if (said := override(key, value)) is not None:
            settings.append(said)
        else:
            by_hand.append((key, json.dumps(value, ensure_ascii=False)))
    return settings, by_hand


def _commit(run: Run, commit: str | None) -> str:
    if commit is None:
        return "none: nothing is committed"
    remote = run.revision.remote or ""
    if found := re.search(r"github\.com[:/](.+?)(?:\.git)?/?$", remote):
        return f"[`{commit[:10]}`](https://github.com/{found[1]}/commit/{commit})"
    return md.code(commit)


def _working_tree(run: Run) -> str:
    inputs, others = _changed(run)
    parts = [f"inputs changed or new: {named(inputs)}"] if inputs else []
    if others:
        parts.append(f"changed or new, but read by no stage: {named(others)}")
    return "; ".join(parts) or "as committed"


def _changed(run: Run) -> tuple[list[str], list[str]]:
    """What is not committed: what the run was made from, and what no stage reads. By hand, any file may be an input."""
    inputs = [*run.lock.inputs, "params.yaml", "dvc.yaml"] if run.lock else None
    read = [path for path in run.revision.changed if inputs is None or any(_overlap(path, one) for one in inputs)]
    return read, [path for path in run.revision.changed if path not in read]


def _overlap(path: str, other: str) -> bool:
    """Whether they are the same, or one is a folder that holds the other; Git names new folders by their `/`."""
    first, second = PurePosixPath(path), PurePosixPath(other)
    return first.is_relative_to(second) or second.is_relative_to(first)


def _files(files: int | None) -> str:
    return "" if files is None else f", {exact(files)} files"


def _versions(run: Run) -> str:
    found = run.train.hardware
    known = [("Python", found.python), ("torch", found.torch)]
    for package in ("numpy", "dvc", "matplotlib"):
        try:
            known.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return ", ".join(f"{name} {md.text(number)}" for name, number in known if number)
