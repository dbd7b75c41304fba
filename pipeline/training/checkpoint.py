"""Checkpoints: everything needed to resume bit for bit. A checkpoint is complete or absent.

A checkpoint is a directory `step_00000200/`:

    weights.pt      the model's state dict
    best.pt         with train.keep: best, the state dict of the lowest validation loss so far
    optimizer.pt    one state dict per optimizer
    rng.pt          the random state of each rank
    manifest.json   CheckpointManifest: step, statistics, hashes of the files and of the code; written last

It is filled under a temporary name, flushed and renamed. Files are read with `weights_only=True`, which runs no code
from them. A milestone is a checkpoint that is also hard-linked into a second directory, where nothing removes it.

`collect` and `restore` do without torch.distributed.checkpoint.state_dict, which can advance AdamW's step count.
"""

import hashlib
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pipeline.artifacts import MANIFEST_FILE, Record
from pipeline.distributed import Group
from pipeline.files import atomic_directory, link_or_copy, parsing, remove_directory, set_aside, sha256_of
from pipeline.log import UserError, logger
from pipeline.model.gpt import GPT
from pipeline.run_state import changed_files
from pipeline.training.metrics import MetricsState
from pipeline.training.optim import Optimizer
from pipeline.training.parallel import gather, receive

CHECKPOINT_FORMAT = 4
CHECKPOINT_FILES = (MANIFEST_FILE, "*.pt")


class CheckpointManifest(Record):
    """manifest.json of a checkpoint."""

    stage = "train"
    version = CHECKPOINT_FORMAT

    format_version: int
    step: int
    """Optimizer steps done."""
    run: str
    """Key of the run that wrote it; another run may continue from it."""
    metrics: MetricsState
    execution: dict[str, Any]
    """Execution settings that bit-identical results depend on."""
    code: dict[str, str]
    """Code of the train stage that wrote the checkpoint: path -> sha256."""
    files: dict[str, str]
    """Name -> sha256."""
    sha256: str = ""
    """Of the other fields."""

    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json(exclude={"sha256"}).encode()).hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on the disk."""

    directory: Path
    manifest: CheckpointManifest
    changed_files: list[str]
    """Code that has changed since it was written."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.manifest.step

    def load(self, part: str) -> Any:
        """The tensors of one part ("weights", "best", "optimizer" or "rng"), on the CPU."""
        return torch.load(self.directory / f"{part}.pt", map_location="cpu", weights_only=True)


class CheckpointStore:
    """The checkpoints of one run: saved in the background, the newest `kept` of them kept."""

    def __init__(
        self,
        directory: Path,
        kept: int,
        code: Mapping[str, str] | None = None,
        milestones: Path | None = None,
        milestone_interval: int = 0,
        run: str = "",
        pinned: int | None = None,
    ) -> None:
        """`code`: hashes of the code, stored in each checkpoint. `milestone_interval`: steps; 0: no milestones.

        `run`: the run's key. `pinned`: the step of a checkpoint that is kept besides the newest.
        """
        self.directory, self.kept, self.code, self.run, self.pinned = directory, kept, dict(code or {}), run, pinned
        self.milestones, self.milestone_interval = milestones, milestone_interval
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None

    def save(
        self, step: int, parts: Mapping[str, Any], metrics: MetricsState, execution: Mapping[str, Any] | None = None
    ) -> None:
        """Copies `parts` (trees of tensors) to CPU memory and writes them in the background.

        Waits for the save before it, and raises UserError if that failed: a run that cannot save must not continue.
        """
        self.wait()
        copies = tree_map_only(Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), dict(parts))
        self._saving = self._writer.submit(self._write, step, copies, metrics, dict(execution or {}))

    def check(self) -> None:
        """Raises UserError if the last save has failed by now, without waiting for it."""
        if self._saving is not None and self._saving.done():
            self.wait()

    def wait(self) -> None:
        """Returns when nothing is being written. Raises UserError if the last save failed."""
        saving, self._saving = self._saving, None
        try:
            if saving is not None:
                saving.result()
        except OSError as error:
            message = f"cannot save a checkpoint in {self.directory}: {error}; earlier checkpoints are intact"
            raise UserError(message) from error

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; None if there are none at all.

        A damaged one is set aside, and the one before it is tried. Raises UserError if all are damaged.
        """
        for directory in (self.directory, self.milestones or self.directory):
            for leftover in directory.glob(".step_*.tmp"):
                shutil.rmtree(leftover, ignore_errors=True)
        for directory in reversed(checkpoint_directories(self.directory)):
            try:
                manifest = verified_manifest(directory)
            except (OSError, ValueError) as error:
                self.set_aside(directory, error)
                continue
            changed = changed_files(manifest.code, self.code)
            if changed:
                logger.warning("code changed since the checkpoint of step %d: %s", manifest.step, ", ".join(changed))
            return Checkpoint(directory, manifest, changed)
        if all_damaged := list(self.directory.glob("damaged_*")):  # by this process or an earlier one
            raise UserError(
                f"none of the {len(all_damaged)} checkpoints in {self.directory} can be used; "
                "to train from the start, remove that directory",
                all_ranks=True,
            )
        return None

    def set_aside(self, directory: Path, reason: Exception) -> None:
        """Renames a checkpoint that cannot be used, with a warning."""
        damaged = set_aside(directory, "damaged_")
        logger.warning("checkpoint %s cannot be used (%s); renamed to %s", directory.name, reason, damaged.name)

    def _write(self, step: int, parts: dict[str, Any], metrics: MetricsState, execution: dict[str, Any]) -> None:
        target = self.directory / _name(step)
        with atomic_directory(target, CHECKPOINT_FILES) as temporary:
            files = {}
            for name, tree in parts.items():
                file = temporary / f"{name}.pt"
                _save(tree, file)
                files[file.name] = sha256_of(file)
            manifest = CheckpointManifest(
                format_version=CHECKPOINT_FORMAT,
                step=step,
                run=self.run,
                metrics=metrics,
                execution=execution,
                code=self.code,
                files=files,
            )
            manifest.model_copy(update={"sha256": manifest.digest()}).write(temporary / MANIFEST_FILE)
            if self.milestones and self.milestone_interval and step % self.milestone_interval == 0:
                with atomic_directory(self.milestones / target.name, CHECKPOINT_FILES) as milestone:
                    for file in temporary.iterdir():  # hard links: no second copy, and either can be removed
                        link_or_copy(file, milestone / file.name)
        self.rotate()

    def rotate(self) -> None:
        """Removes the checkpoints before the newest `kept`."""
        for old in checkpoint_directories(self.directory)[: -self.kept]:
            try:
                if step_of(old) != self.pinned:
                    remove_directory(old)
            except OSError as error:
                logger.warning("cannot remove the old checkpoint %s: %s", old.name, error)


def checkpoint_directories(directory: Path) -> list[Path]:
    """The checkpoints, verified or not, by step. Files of other names are not ours: they are left alone."""
    return sorted(path for path in directory.glob("step_*") if path.name[5:].isdecimal())


def step_of(checkpoint: Path) -> int:
    """The optimizer steps done, by the name of a checkpoint."""
    return int(checkpoint.name[5:])


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _save(tree: Any, file: Path) -> None:
    """torch.save, but raises the OSError that its RuntimeError hides."""
    with file.open("wb") as out:
        try:
            torch.save(tree, out)
        except RuntimeError as error:
            raise error.__context__ or error from None


def verified_manifest(directory: Path) -> CheckpointManifest:
    """The manifest of a checkpoint whose files match it. Raises UserError or OSError that says what is wrong."""
    manifest = CheckpointManifest.read(directory / MANIFEST_FILE)
    if manifest.sha256 != manifest.digest():
        raise UserError("manifest.json does not match its sha256")
    if directory.name != _name(manifest.step):
        raise UserError(f"the step in manifest.json ({manifest.step}) is not that of the directory")
    for name, sha256 in manifest.files.items():
        if sha256_of(directory / name) != sha256:
            raise UserError(f"{name} does not match its sha256 in manifest.json")
    return manifest


def collect(model: GPT, optimizer: Optimizer, group: Group) -> dict[str, Any]:
    """The parts of a checkpoint, with whole tensors on rank 0. Every rank must call it."""
    rng: list[dict[str, Tensor] | None] = [_rng_state(group.device)]
    if group.world_size > 1:
        rng *= group.world_size
        dist.all_gather_object(rng, _rng_state(group.device))
    return {
        "weights": gather(model.state_dict(), group),
        "optimizer": gather(optimizer.state_dict(), group),
        "rng": rng,
    }


def _load(store: CheckpointStore, model: GPT, optimizer: Optimizer) -> tuple[Checkpoint, dict[str, Any]] | None:
    """The newest checkpoint that fits the model and the optimizer, with its parts on the CPU; None if there is none."""
    while checkpoint := store.newest():
        try:
            return checkpoint, _fitting_parts(checkpoint, model, optimizer)
        except (OSError, UserError) as error:
            store.set_aside(checkpoint.directory, error)
    return None


def _fitting_parts(checkpoint: Checkpoint, model: GPT, optimizer: Optimizer) -> dict[str, Any]:
    """The parts of a checkpoint but `best`. Raises UserError that names the file unless the run can load all."""
    parts = {}
    for name in ("weights", "optimizer", "rng", *(["best"] if "best.pt" in checkpoint.manifest.files else [])):
        with parsing(f"{name}.pt"):
            parts[name] = checkpoint.load(name)
    for name in parts.keys() & {"weights", "best"}:
        with parsing(f"{name}.pt"):
            weights, expected = _shapes(parts[name]), _shapes(model.state_dict())
            differing = sorted(key for key in weights.keys() | expected if weights.get(key) != expected.get(key))
            if differing:
                raise UserError(f"{name}.pt: {differing[0]} is not that of the model")
    parts.pop("best", None)
    with parsing("optimizer.pt"):
        for state, moments in zip(parts["optimizer"], optimizer.expected_state(), strict=True):
            # Empty before the first step that is not skipped.
            if state["state"] and _shapes(state["state"]) != _shapes(moments):
                raise UserError("optimizer.pt: the moments are not those of the optimizer")
    with parsing("rng.pt"):
        for state in parts["rng"]:
            torch.Generator().set_state(state["cpu"])
    return parts


def _shapes(tree: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: (tuple(tensor.shape), tensor.dtype), tree)


def restore(store: CheckpointStore, model: GPT, optimizer: Optimizer, group: Group) -> Checkpoint | None:
    """Loads model, optimizer and random state from the newest checkpoint and returns it; None if there is none.

    Every rank must call it. Only rank 0 reads the disk, so machines need not share one. Tensors are sent one by one,
    and a rank keeps only its shard. Raises UserError, on every rank, if all checkpoints are damaged.
    """
    parts: dict[str, Any] = {}
    message: Any = None
    if group.is_main:
        try:
            if loaded := _load(store, model, optimizer):
                store.rotate()  # a kill after the last save may have left one more
                checkpoint, parts = loaded
                shapes = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), parts)
                message = (checkpoint, {**shapes, "rng": parts["rng"]})
        except Exception as error:
            message = error  # raised on every rank, so that none waits for rank 0
    if group.world_size > 1:
        box = [message]
        dist.broadcast_object_list(box, src=0)
        message = box[0]
    if isinstance(message, Exception):
        raise message
    if message is None:
        return None
    restored: Checkpoint = message[0]
    parts = parts or message[1]

    weights = model.state_dict()
    model.load_state_dict({name: receive(t, weights[name], group) for name, t in parts["weights"].items()})
    for state, parameters in zip(parts["optimizer"], optimizer.indexed_parameters(), strict=True):
        for index, values in state["state"].items():
            values.update({name: receive(t, parameters[index], group) for name, t in values.items()})
    optimizer.load_state_dict(parts["optimizer"])
    if len(parts["rng"]) == group.world_size:
        rng = parts["rng"][group.rank]
        torch.set_rng_state(rng["cpu"])
        if group.device.type == "cuda" and "cuda" in rng:
            torch.cuda.set_rng_state(rng["cuda"], group.device)
    else:
        logger.info(
            "resuming on %d rank(s) (checkpoint was written on %d): same batches, but dropout masks and summation "
            "order differ",
            group.world_size,
            len(parts["rng"]),
        )
    return restored


def _rng_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state
