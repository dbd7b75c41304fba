"""Weights & Biases, kept where it can neither kill nor slow a run: the one module that imports wandb.

Every call to wandb runs in a thread of its own behind a bounded queue. Without a network, a key or wandb itself, or
with a server that hangs, training goes on and the curves are on the disk; what could not be sent is said in one line.
"""

import atexit
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipeline.log import logger
from pipeline.runs import main_root
from pipeline.tracking.curves import Curves, typed
from pipeline.tracking.identity import RunIdentity, run_group, run_identity, run_name
from pipeline.tracking.offline_runs import taken_up
from pipeline.tracking.params import TrackingParams
from pipeline.tracking.provenance import experiment, git_revision, params_at

QUEUE_LENGTH = 1000  # calls that wait at most, of ten rows each: hours of training
FINISH_TIMEOUT_S = 60.0
FAILED_TIMEOUT_S = 10.0  # of a run that was interrupted: torchrun and schedulers kill 30 s after their signal
Table = tuple[Sequence[str], Sequence[Sequence[Any]]]  # columns, rows


def resolved_mode(params: TrackingParams) -> str:
    """ "online", "offline" or "disabled": as params or WANDB_MODE say, else online where a key is configured.

    wandb itself would ask at the terminal, or raise where there is none.
    """
    choice = os.environ.get("WANDB_MODE", "auto") if params.mode == "auto" else params.mode
    if choice != "auto":
        return {"dryrun": "offline", "run": "online"}.get(choice, choice)  # wandb's own other words
    has_key = bool(os.environ.get("WANDB_API_KEY")) or _key_in_netrc()
    if not has_key:
        logger.info("W&B: no API key, so this run is logged offline; `wandb sync` sends it later")
    return "online" if has_key else "offline"


def _key_in_netrc() -> bool:
    """Whether `wandb login` has left a key. wandb.login itself would print, and may ask the server."""
    try:
        import wandb
        from wandb.sdk.lib import wbauth

        return bool(wbauth.read_netrc_auth(host=wandb.Settings().base_url))
    except Exception:  # not installed, a key that it cannot read, another version
        return False


def training_run(
    state: Path, tracking: TrackingParams, params: Mapping[str, Any], inputs: str, curves: Curves
) -> "WandbRun":
    """The W&B run of a training, new or gone on with.

    `state`: the training's directory, which keeps the run's identity. `params`: all of params.yaml. `inputs`: their
    fingerprint. `curves`: hold the rows of earlier processes.
    """
    of = experiment()
    name = run_name(params, params_at(of.baseline), of, inputs)
    identity = run_identity(state / "wandb.json", name, run_group(tracking.group, of), resolved_mode(tracking))
    about = {
        "config": {**params, "git": asdict(git_revision()), "dvc": asdict(of)},
        "tags": [*tracking.tags, params["data"]["source"], params["tokenizer"]["encoding"]],
        "notes": f"dvc exp apply {of.experiment}" if of.experiment else None,
    }
    return WandbRun(identity, tracking, about, curves)


class WandbRun:
    """One W&B run. Its methods return at once and never raise."""

    def __init__(
        self, identity: RunIdentity, params: TrackingParams, about: Mapping[str, Any], curves: Curves | None = None
    ) -> None:
        """`about`: config, tags and notes. `curves`: hold the rows of earlier processes."""
        self.identity, self.curves = identity, curves
        self._run: Any = None
        self._offline_steps: set[int] = set()
        self._given_up = False
        self._warnings: set[str] = set()
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(QUEUE_LENGTH)
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        if identity.mode == "disabled":
            return
        self._thread.start()
        self._submit(lambda: self._start(params, about))

    def rewind(self, step: int) -> None:
        """Logs the rows that an earlier process wrote to the curves, but those that W&B has; what it has stays."""
        if self.curves is not None:
            rows = [typed(row) for row in self.curves.rows()]
            self.record([row for row in rows if row["step"] <= step])

    def record(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Logs rows of the curves, but those that W&B has already; empty cells are left out."""
        self._submit(lambda: self._log(rows))

    def flush(self) -> None:
        """Nothing: wandb sends in the background."""

    def describe(self, values: Mapping[str, Any]) -> None:
        """Adds to the run's config: what the run is."""
        self._submit(lambda: self._run.config.update(dict(values), allow_val_change=True))

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Sets values of the run's summary: what came out."""
        self._submit(lambda: self._run.summary.update(dict(values)))

    def log_table(self, name: str, table: Table, after_step: int, tokens: int) -> None:
        """Logs a table under `name`, behind the row of `after_step`.

        Online, the server knows the steps that the run has; an offline part of it does not and would begin at 0.
        """

        def log() -> None:
            import wandb

            content = wandb.Table(columns=list(table[0]), data=[list(row) for row in table[1]])
            self._run.log({"tokens": tokens, name: content}, step=max(self._run.step, after_step + 1))

        self._submit(log)

    def save_files(self, base: Path, files: Sequence[Path]) -> None:
        """Copies files to the run, under their names relative to `base`."""
        for file in files:
            self._submit(lambda file=file: self._run.save(file, base_path=base, policy="now", glob=False))  # type: ignore[misc]

    def log_reference(self, name: str, kind: str, uri: str, facts: Mapping[str, Any]) -> None:
        """Logs an artifact that says where something is and holds no copy of it. The same URI is the same version."""

        def log() -> None:
            import wandb

            artifact = wandb.Artifact(name, type=kind, metadata=dict(facts))
            artifact.add_reference(uri, name=kind)
            self._run.log_artifact(artifact)

        self._submit(log)

    def finish(self, exit_code: int = 0) -> RunIdentity:
        """Ends the run and waits for what is left to be sent, a minute at most. Returns its identity with the URL.

        `exit_code`: what the process will end with. If not 0, it waits for ten seconds at most.
        """
        if self.identity.mode != "disabled":
            url = []
            if self.identity.mode == "online":
                self._submit(lambda: url.append(self._run.url))
            self._submit(lambda: self._run.finish(exit_code=exit_code))
            self._put(None)
            self._thread.join(FAILED_TIMEOUT_S if exit_code else 1.1 * FINISH_TIMEOUT_S)  # wandb keeps to the latter
            if self._thread.is_alive():
                self._warn("it does not end")
                if exit_code:
                    atexit.register(os._exit, exit_code)  # before wandb's own handler, which would wait on
            if url:
                return replace(self.identity, url=url[0] or None)
        return self.identity

    def _start(self, params: TrackingParams, about: Mapping[str, Any]) -> None:
        import wandb

        # Beside the runs, where they are found when they are synced: the home directory may be small, or not writable.
        os.environ.setdefault("WANDB_DATA_DIR", str(main_root() / "wandb"))
        wandb.setup(settings=wandb.Settings(silent=True))
        if self.identity.mode == "offline" and self.curves is not None:
            self._offline_steps = taken_up(main_root() / "wandb", self.identity.id)
        self._run = wandb.init(
            project=params.project,
            entity=params.entity,
            id=self.identity.id,
            name=self.identity.name,
            group=self.identity.group,
            job_type="train",
            mode=self.identity.mode,  # type: ignore[arg-type]
            dir=main_root(),
            resume="allow",
            settings=wandb.Settings(
                console="off",
                init_timeout=FINISH_TIMEOUT_S,
                finish_timeout=FINISH_TIMEOUT_S,
                finish_timeout_raises=True,
                # wandb/latest-run for training; no links to saved files, since DVC deletes the copies that it runs in.
                symlink=self.curves is not None,
            ),
            **about,
        )
        self._run.define_metric("tokens")
        self._run.define_metric("*", step_metric="tokens")

    def _log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            # The server's next step, when online, is the run's: a kill may have lost any rows that were on their way.
            if row["step"] >= self._run.step and row["step"] not in self._offline_steps:
                cells = {key: value for key, value in row.items() if value not in (None, "") and key != "step"}
                self._run.log(cells, step=row["step"])

    def _submit(self, call: Callable[[], None]) -> None:
        if self.identity.mode != "disabled" and not self._given_up:
            self._put(call)

    def _put(self, call: Callable[[], None] | None) -> None:
        try:
            self._queue.put_nowait(call)
        except queue.Full:
            self._given_up = True
            self._warn(f"{QUEUE_LENGTH} calls wait to be sent")

    def _work(self) -> None:
        while (call := self._queue.get()) is not None:
            if self._given_up:
                continue
            try:
                call()
            except BaseException as error:  # wandb raises its own kinds, and SystemExit too
                self._given_up |= self._run is None  # what one call could not send does not keep the rest back
                self._warn(f"{type(error).__name__}: {error}")

    def _warn(self, why: str) -> None:
        if why not in self._warnings:
            self._warnings.add(why)
            logger.warning(
                "W&B: %s; the run goes on, its numbers are in reports/, and `wandb sync` may send the rest", why
            )
