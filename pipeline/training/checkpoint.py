"""Checkpoints: everything that a resumed run needs to go on bit for bit, whole or absent.

A checkpoint is a directory `step_00000200/` with `weights.pt`, `optimizer.pt`, `rng.pt` (one state per rank) and,
written last, `manifest.json`: the step, the counters of the loop, the size and sha256 of each file, and the sha256 of
all that. It is filled under a temporary name, flushed and renamed. Files are read with `weights_only=True`, which runs
no code from them. A milestone is a checkpoint that is linked into a second directory, where nothing removes it.
"""

import hashlib
import json
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.files import atomic_directory, read_json, sha256_of, write_json
from pipeline.log import Stop, logger

FORMAT_VERSION = 2
CONTENTS = ("manifest.json", "*.pt")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on the disk."""

    directory: Path
    step: int
    """Optimizer steps done."""
    counters: dict[str, Any]
    """What the loop counts, as JSON."""

    def load(self, part: str) -> Any:
        """The tensors of one part ("weights", "optimizer" or "rng"), on the CPU."""
        return torch.load(self.directory / f"{part}.pt", map_location="cpu", weights_only=True)


class CheckpointStore:
    """The checkpoints of one run, saved in the background, the newest `kept` of them kept."""

    def __init__(self, directory: Path, kept: int, milestones: Path | None = None, milestone_interval: int = 0) -> None:
        """`milestones`: where checkpoints at multiples of `milestone_interval` steps stay for good; 0: none do."""
        self.directory, self.kept = directory, kept
        self.milestones, self.milestone_interval = milestones, milestone_interval
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None

    def save(self, step: int, parts: dict[str, Any], counters: dict[str, Any]) -> None:
        """Copies `parts` (trees of tensors) to memory of its own and writes them in the background.

        Waits for the save before it, and raises Stop if that one failed: a run that cannot save must not go on.
        """
        self.wait()
        target = self.directory / f"step_{step:08d}"
        copies = {name: _copy_to_cpu(tree) for name, tree in parts.items()}
        self._saving = self._writer.submit(self._write, target, step, copies, counters)

    def check(self) -> None:
        """Raises Stop if the last save has failed by now: not only after as many steps again, at the next save."""
        if self._saving is not None and self._saving.done():
            self.wait()

    def wait(self) -> None:
        """Returns when nothing is being written. Raises Stop if the last save failed."""
        saving, self._saving = self._saving, None
        if saving is not None:
            try:
                saving.result()
            except OSError as error:
                raise Stop(f"cannot save a checkpoint in {self.directory}: {error}; earlier ones stand") from error

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; None if there is none at all.

        A damaged one is set aside with a warning, and the one before it is taken. Raises Stop when all are damaged.
        """
        for place in (self.directory, self.milestones or self.directory):
            for leftover in place.glob(".step_*.tmp"):
                shutil.rmtree(leftover, ignore_errors=True)
        for directory in sorted(self.directory.glob("step_*"), reverse=True):
            try:
                return _verified(directory)
            except (OSError, ValueError, KeyError) as error:
                aside = directory.with_name(f"damaged_{directory.name}")
                shutil.rmtree(aside, ignore_errors=True)
                directory.replace(aside)
                logger.warning("checkpoint %s is damaged (%s); set aside as %s", directory.name, error, aside.name)
        if damaged := list(self.directory.glob("damaged_*")):  # by this process or by one before it
            raise Stop(
                f"all {len(damaged)} checkpoints in {self.directory} are damaged; "
                "to train anew from the start, remove that directory"
            )
        return None

    def _write(self, target: Path, step: int, parts: dict[str, Any], counters: dict[str, Any]) -> None:
        with atomic_directory(target, CONTENTS) as temporary:
            files = {}
            for name, tree in parts.items():
                file = temporary / f"{name}.pt"
                _save(tree, file)
                files[file.name] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
            manifest = {"format_version": FORMAT_VERSION, "step": step, "counters": counters, "files": files}
            write_json(temporary / "manifest.json", {**manifest, "sha256": _digest(manifest)})
            if self.milestones and self.milestone_interval and step % self.milestone_interval == 0:
                with atomic_directory(self.milestones / target.name, CONTENTS) as milestone:
                    for file in temporary.iterdir():  # links: the same bytes once, whichever of the two goes first
                        os.link(file, milestone / file.name)
        self._rotate()

    def _rotate(self) -> None:
        for old in sorted(self.directory.glob("step_*"))[: -self.kept]:
            doomed = old.with_name(f".{old.name}.tmp")  # under a name that nobody takes for a checkpoint
            try:
                old.replace(doomed)
                shutil.rmtree(doomed)
            except OSError as error:
                logger.warning("cannot remove the old checkpoint %s: %s", old.name, error)


def _save(tree: Any, file: Path) -> None:
    """torch.save, whose own error would hide why a write failed."""
    with file.open("wb") as out:
        try:
            torch.save(tree, out)
        except RuntimeError as error:
            raise error.__context__ or error from None


def _verified(directory: Path) -> Checkpoint:
    """The checkpoint in `directory`. Raises ValueError, KeyError or OSError that says what is wrong with it."""
    manifest = read_json(directory / "manifest.json")
    if manifest.pop("sha256") != _digest(manifest):
        raise ValueError("manifest.json does not have its own sha256")
    if manifest["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format version {manifest['format_version']}, not {FORMAT_VERSION}")
    for name, expected in manifest["files"].items():
        file = directory / name
        if file.stat().st_size != expected["bytes"]:
            raise ValueError(f"{name} has {file.stat().st_size} bytes, not {expected['bytes']}")
        if sha256_of(file) != expected["sha256"]:
            raise ValueError(f"{name} does not have the sha256 in manifest.json")
    return Checkpoint(directory, manifest["step"], manifest["counters"])


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _copy_to_cpu(tree: Any) -> Any:
    """The same tree of dicts, lists and tuples with its tensors copied, so that training may change the originals."""
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: _copy_to_cpu(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_copy_to_cpu(value) for value in tree)
    return tree
